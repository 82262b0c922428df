//! The lock of the state directory.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use postern_runtime::files::PRIVATE;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The lock that the one running agent of a state directory holds; the kernel releases it when the process ends.
#[derive(Debug)]
pub struct StateDirLock {
    _file: File,
}

impl StateDirLock {
    /// Takes the lock; returns `None` if another process holds it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn take(dir: &Path) -> io::Result<Option<Self>> {
        let path = dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let held = StateDirLock::take(dir.path()).unwrap();
        assert!(held.is_some());
        assert!(StateDirLock::take(dir.path()).unwrap().is_none());
        drop(held);
        assert!(StateDirLock::take(dir.path()).unwrap().is_some());
    }
}
