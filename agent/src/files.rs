//! Files of the state directory: private to the agent, and each replaced whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Makes the state directory, readable by its owner alone, if it does not exist.
///
/// # Errors
/// The directory cannot be made, for instance because its parent is missing.
pub fn make_private_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        other => other,
    }
}

/// Replaces `path` so that a crash at any point leaves the old content or the new one, and the new one once this
/// function has returned. There must be only one writer at a time.
///
/// # Errors
/// A step failed; the old content is still there.
pub fn replace_durably(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, content)?;
    File::open(&temporary)?.sync_all()?;
    fs::rename(&temporary, path)?;
    // Without the sync a power cut may bring back the old file, and with it a window that was revoked since.
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Replaces `path` so that a reader sees the old content or the new one. A power cut may lose the new one.
///
/// # Errors
/// A step failed; the old content is still there.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::rename(write_beside(path, content)?, path)
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

/// Writes a temporary file beside `path`. Its name is fixed, so that the next attempt overwrites what a crash left.
fn write_beside(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    Ok(temporary)
}

/// The lock that the one running agent of a state directory holds; the kernel releases it when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock; returns `None` if another process holds it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn take(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        replace_durably(&path, b"a long first content").unwrap();
        replace_durably(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn one_process_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let held = Lock::take(dir.path()).unwrap();
        assert!(held.is_some());
        assert!(Lock::take(dir.path()).unwrap().is_none());
        drop(held);
        assert!(Lock::take(dir.path()).unwrap().is_some());
    }
}
