//! Secrets that are read from a file: a key, a password, a token. One function reads all of them.
//!
//! **The problem.** A secret that other users of the machine can read is no secret, and one that they can write is whatever they like. A mistake in a
//! mode shows nowhere: the program works.
//!
//! **The rule.** The file gives group and others no access at all, and its owner is root or the process's own user. For a process of
//! root, which runs commands over files of a service, the owner of the file's directory will do: that user can replace the file anyway.
//! The file that was checked is the one that is read, whatever another user puts in its place meanwhile. A pipe, such as standard input,
//! has no mode that means anything, and passes.
//!
//! **On failure.** Nothing is read. The error names the file, its mode or owner, and the remedy.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The bits of a mode with which others than the owner have access.
const ACCESS_OF_OTHERS: u32 = 0o077;

/// A secret cannot be read, or is none.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// Other users have access.
    #[error(
        "{path} can be read by other users (mode {mode:04o}); run `chmod 600 {path}` and consider its content leaked",
        path = path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file belongs to another user.
    #[error(
        "{path} belongs to another user (uid {owner}), who can change it; run `chown` on it to the user of this program, and \
         `chmod 600 {path}`",
        path = path.display()
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// The user id of the owner.
        owner: u32,
    },
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Opens the file of a secret, if no other user can read or change it.
///
/// # Errors
/// Another user can, or the file cannot be opened.
pub fn open(path: &Path) -> Result<File, PrivateFileError> {
    let failed = |source| PrivateFileError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Ok(file);
    }
    let mode = metadata.mode() & 0o7777;
    if mode & ACCESS_OF_OTHERS != 0 {
        return Err(PrivateFileError::Exposed { path: path.to_owned(), mode });
    }
    let user = rustix::process::geteuid().as_raw();
    let of_directory = || {
        let real = fs::canonicalize(path).ok()?;
        Some(fs::metadata(real.parent()?).ok()?.uid())
    };
    if is_good_owner(user, metadata.uid(), of_directory) {
        Ok(file)
    } else {
        Err(PrivateFileError::Owner { path: path.to_owned(), owner: metadata.uid() })
    }
}

/// Reads at most `longest` bytes of the text of a secret, as [`open`] opens it.
///
/// # Errors
/// As [`open`], or the file cannot be read or is no text.
pub fn read(path: &Path, longest: u64) -> Result<String, PrivateFileError> {
    let mut text = String::new();
    let failed = |source| PrivateFileError::Read { path: path.to_owned(), source };
    open(path)?.take(longest).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

fn is_good_owner(user: u32, owner: u32, of_directory: impl FnOnce() -> Option<u32>) -> bool {
    owner == 0 || owner == user || (user == 0 && of_directory() == Some(owner))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn i7_a_secret_that_others_can_read_is_refused_with_the_file_the_mode_and_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, "geheim\n").unwrap();
        for mode in [0o600, 0o400, 0o700] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, 100).unwrap(), "geheim\n");
        }
        symlink(&path, dir.path().join("link")).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o644, 0o666] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            for name in ["password", "link"] {
                let error = read(&dir.path().join(name), 100).unwrap_err().to_string();
                assert!(
                    error.contains(&format!("mode {mode:04o}")) && error.contains("chmod 600"),
                    "{error}"
                );
                assert!(error.contains(name) && !error.contains("geheim"), "{error}");
            }
        }
        let missing = read(&dir.path().join("missing"), 100).unwrap_err();
        assert!(matches!(missing, PrivateFileError::Read { .. }), "{missing}");
    }

    #[test]
    fn i7_a_secret_belongs_to_root_or_to_the_user_of_the_program() {
        assert!(is_good_owner(1000, 1000, || None) && is_good_owner(1000, 0, || None));
        assert!(!is_good_owner(1000, 1001, || Some(1001)));
        assert!(is_good_owner(0, 1001, || Some(1001)), "a command that root runs over a service's directory");
        assert!(!is_good_owner(0, 1001, || Some(0)) && !is_good_owner(0, 1001, || None));
    }
}
