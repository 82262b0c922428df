//! Files that are replaced whole, and directories that only their owner can enter.
//!
//! **The problem.** A key, a certificate or a ledger that is written in place is half written if the power goes, and a private
//! file that gets its mode after its content is readable for a moment.
//!
//! **The rule.** A file is written beside its name, with the mode that it should have from its first byte, and then renamed. A
//! reader sees the old content or the new one. A durable replacement syncs the file before the rename and the directory after it,
//! so that a power cut cannot bring back the old content once the function has returned.
//!
//! **On failure.** The old content is still there. The temporary file may be left; its name is fixed, so that the next
//! attempt replaces it. There must be only one writer at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// The mode of a file that only its owner may read.
pub const PRIVATE: u32 = 0o600;

/// The owner of a file that is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileOwner {
    Process,
    Directory,
}

/// Makes a directory that only its owner can enter, if it does not exist.
///
/// # Errors
/// The directory cannot be made, for instance because its parent is missing.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        other => other,
    }
}

/// Makes a directory and its missing parents, as [`make_private_dir`] makes one; an existing one stays as it is.
///
/// # Errors
/// A directory cannot be made.
pub fn make_private_dir_all(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Replaces a file so that a crash at any point leaves the old content or the new one, and the new one once this function has
/// returned.
///
/// # Errors
/// A step failed; see the module.
pub fn replace_durably(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_and_sync(path, content, mode, FileOwner::Process)
}

/// Replaces a file as [`replace_durably`] does, and gives it to the owner of its directory: a command that root runs must not
/// leave a file that the program's user cannot read.
///
/// # Errors
/// A step failed; see the module.
pub fn replace_durably_for_owner_of_dir(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    replace_and_sync(path, content, mode, FileOwner::Directory)
}

/// Replaces a file so that a reader sees the old content or the new one. A power cut may lose the new one.
///
/// # Errors
/// A step failed; see the module.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (temporary, _) = write_beside(path, content, mode, FileOwner::Process)?;
    fs::rename(temporary, path)
}

/// Reports whether there is nothing at a path, not even a link. A path that cannot be looked at does not count as absent: its use then
/// fails with the cause.
pub fn is_absent(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Removes a file; a missing file counts as removed.
///
/// # Errors
/// The file exists and cannot be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Returns the name under which a replacement of a file is written before it gets the file's name. A crash may leave such a file.
pub fn temporary(path: &Path) -> PathBuf {
    path.with_extension("tmp")
}

fn replace_and_sync(path: &Path, content: &[u8], mode: u32, owner: FileOwner) -> io::Result<()> {
    let (temporary, file) = write_beside(path, content, mode, owner)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    // Without the sync a power cut may bring back the old file, and with it a window that was revoked since.
    File::open(directory_of(path))?.sync_all()
}

fn write_beside(path: &Path, content: &[u8], mode: u32, owner: FileOwner) -> io::Result<(PathBuf, File)> {
    let temporary = temporary(path);
    // A file that a crash left may have another mode: `create_new` must make the file.
    remove(&temporary)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    if owner == FileOwner::Directory {
        let (directory, own) = (fs::metadata(directory_of(path))?, file.metadata()?);
        if (directory.uid(), directory.gid()) != (own.uid(), own.gid()) {
            fchown(&file, Some(directory.uid()), Some(directory.gid()))?;
        }
    }
    file.write_all(content)?;
    Ok((temporary, file))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for replace in [replace, replace_durably, replace_durably_for_owner_of_dir] {
            replace(&path, b"a long first content", PRIVATE).unwrap();
            replace(&path, b"second", PRIVATE).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"second");
            assert_eq!(mode(&path), 0o600);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
        }
    }

    #[test]
    fn what_a_crash_left_lends_a_file_neither_its_mode_nor_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let (path, left) = (dir.path().join("key.pem"), dir.path().join("key.tmp"));
        fs::write(&left, "half of a longer content").unwrap();
        fs::set_permissions(&left, fs::Permissions::from_mode(0o644)).unwrap();
        replace_durably(&path, b"whole", PRIVATE).unwrap();
        assert_eq!((fs::read(&path).unwrap().as_slice(), mode(&path)), (b"whole".as_slice(), 0o600));
    }

    #[test]
    fn a_private_directory_is_made_once_and_its_parents_only_if_asked() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("outer/inner");
        assert_eq!(make_private_dir(&inner).unwrap_err().kind(), io::ErrorKind::NotFound);
        make_private_dir_all(&inner).unwrap();
        make_private_dir_all(&inner).unwrap();
        make_private_dir(&inner).unwrap();
        assert_eq!((mode(&inner), mode(inner.parent().unwrap())), (0o700, 0o700));
    }
}
