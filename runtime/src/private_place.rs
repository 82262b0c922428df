//! The check of a place for secrets: a directory that no other user can change, under parents that no other user can replace.
//!
//! **The problem.** A private file in a directory that other users can write is not private: they put another file in its place,
//! or a link to a file of their own, before or after it is written.
//!
//! **The rule.** The directory belongs to this process's user or to root, and no other user can write to it. The same holds for
//! each of its parents, except that others may write to a parent with the sticky bit, such as `/tmp`, in which they cannot
//! rename or remove the entries of other users. A directory that does not exist yet is judged by its nearest parent that does.
//!
//! **On failure.** Nothing is made or written. The error names the directory, the problem and the remedy.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The bits of a mode with which others than the owner may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// The sticky bit: only the owner of an entry may rename or remove it.
const STICKY: u32 = 0o1000;

/// Checks a directory for secrets, and returns its path without symbolic links. Write there: a link in the given path could
/// lead elsewhere by then.
///
/// # Errors
/// Another user can change the directory or one of its parents, or they cannot be read. The kind of the first is
/// [`io::ErrorKind::PermissionDenied`].
pub fn private_place(dir: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(dir)?;
    let nearest = absolute.ancestors().find(|path| fs::symlink_metadata(path).is_ok()).unwrap_or(&absolute);
    let real = fs::canonicalize(nearest)?;
    let missing = absolute.strip_prefix(nearest).unwrap_or(Path::new("")).to_owned();
    let user = rustix::process::geteuid().as_raw();
    for path in real.ancestors() {
        let metadata = fs::metadata(path)?;
        let is_place = path == real && missing.as_os_str().is_empty();
        if let Some(problem) = problem(user, metadata.uid(), metadata.mode(), is_place) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} is no place for a secret: {}{problem}",
                    dir.display(),
                    if is_place { String::new() } else { format!("its parent {} ", path.display()) }
                ),
            ));
        }
    }
    Ok(if missing.as_os_str().is_empty() { real } else { real.join(missing) })
}

/// Returns the problem with a directory of this owner and mode; none if no other user than root can change it. `is_place` is
/// the directory itself, and not a parent.
fn problem(user: u32, owner: u32, mode: u32, is_place: bool) -> Option<String> {
    if owner != user && owner != 0 {
        return Some(format!(
            "belongs to another user (uid {owner}); run the command as that user, or name a directory of your own"
        ));
    }
    let others_write = mode & WRITABLE_BY_OTHERS != 0;
    let is_sticky_parent = !is_place && mode & STICKY != 0;
    (others_write && !is_sticky_parent).then(|| {
        format!(
            "can be changed by other users (mode {:04o}); run `chmod go-w` on it, or name another directory",
            mode & 0o7777
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn made(parent: &Path, name: &str, mode: u32) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_directory_that_others_can_write_is_no_place_for_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let (own, open) = (made(dir.path(), "own", 0o755), made(dir.path(), "open", 0o777));
        assert_eq!(private_place(&own).unwrap(), fs::canonicalize(&own).unwrap());
        for (place, names) in [
            (open.clone(), "mode 0777"),
            (made(dir.path(), "group", 0o775), "mode 0775"),
            (made(dir.path(), "sticky", 0o1777), "mode 1777"),
            (made(&open, "inner", 0o700), "its parent"),
            (open.join("missing/deeper"), "its parent"),
        ] {
            let error = private_place(&place).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
            assert!(error.to_string().contains(names), "{error}");
        }
    }

    #[test]
    fn a_missing_directory_is_judged_by_its_nearest_parent_and_a_sticky_parent_is_good() {
        let dir = tempfile::tempdir().unwrap();
        let sticky = made(dir.path(), "sticky", 0o1777);
        for place in [dir.path().join("a/b"), sticky.join("a"), made(&sticky, "own", 0o700)] {
            private_place(&place).unwrap();
        }
        assert!(!dir.path().join("a").exists(), "the check makes nothing");
    }

    #[test]
    fn a_link_is_followed_and_the_place_that_it_leads_to_is_judged() {
        let dir = tempfile::tempdir().unwrap();
        let (own, open) = (made(dir.path(), "own", 0o700), made(dir.path(), "open", 0o777));
        symlink(&own, dir.path().join("good")).unwrap();
        symlink(&open, dir.path().join("bad")).unwrap();
        let place = private_place(&dir.path().join("good/new")).unwrap();
        assert_eq!(place, fs::canonicalize(&own).unwrap().join("new"));
        assert!(private_place(&dir.path().join("bad")).is_err());
    }

    #[test]
    fn a_directory_of_another_user_is_no_place_for_a_secret() {
        assert!(problem(1000, 1000, 0o700, true).is_none());
        assert!(problem(1000, 0, 0o755, false).is_none(), "root's");
        assert!(problem(1000, 1001, 0o700, true).unwrap().contains("uid 1001"));
        assert!(
            problem(0, 1001, 0o700, true).is_some(),
            "also for root: the owner can put another file there"
        );
        assert!(problem(1000, 0, 0o1777, false).is_none(), "/tmp");
        assert!(problem(1000, 0, 0o1777, true).is_some());
    }
}
