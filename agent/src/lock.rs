//! The locks of the agent's directories: files that one process holds; the kernel releases them when the process ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_runtime::files::PRIVATE;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The longest wait for the lock of an identity. Its holder writes a few files.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause between two attempts to take the lock of an identity.
const IDENTITY_PAUSE: Duration = Duration::from_millis(20);

/// The lock that the one running agent of a state directory holds.
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
        Ok(take(dir)?.map(|file| Self { _file: file }))
    }
}

/// The lock of an identity: a process holds it while it writes the identity's files, or reads files that must belong together.
#[derive(Debug)]
pub struct IdentityLock {
    _file: File,
}

impl IdentityLock {
    /// Takes the lock; returns `None` if another process or task holds it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn try_take(identity_dir: &Path) -> io::Result<Option<Self>> {
        Ok(take(identity_dir)?.map(|file| Self { _file: file }))
    }

    /// Takes the lock; waits for its holder.
    ///
    /// # Errors
    /// The lock file cannot be opened, or its holder keeps it for more than 10 s ([`io::ErrorKind::TimedOut`]).
    pub async fn take(identity_dir: &Path) -> io::Result<Self> {
        let waited = async {
            loop {
                if let Some(lock) = Self::try_take(identity_dir)? {
                    return Ok(lock);
                }
                tokio::time::sleep(IDENTITY_PAUSE).await;
            }
        };
        tokio::time::timeout(IDENTITY_TIMEOUT, waited).await.unwrap_or_else(|_| {
            let problem = format!(
                "another process has held {} for {} s; end it",
                path(identity_dir).display(),
                IDENTITY_TIMEOUT.as_secs()
            );
            Err(io::Error::new(io::ErrorKind::TimedOut, problem))
        })
    }
}

/// The lock of the mark of enforcement: a process holds it while it reads and writes the mark.
#[derive(Debug)]
pub struct MarkLock {
    _file: File,
}

impl MarkLock {
    /// Takes the lock; returns `None` if another process holds it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        Ok(take_file(path)?.map(|file| Self { _file: file }))
    }
}

/// Returns the path of the lock file of a directory.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("lock")
}

fn take(dir: &Path) -> io::Result<Option<File>> {
    take_file(&path(dir))
}

fn take_file(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(PRIVATE).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
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

    #[tokio::test(start_paused = true)]
    async fn the_lock_of_an_identity_is_waited_for_but_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let held = IdentityLock::try_take(dir.path()).unwrap();
        let release = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(held);
        };
        let (lock, ()) = tokio::join!(IdentityLock::take(dir.path()), release);
        let _lock = lock.unwrap();
        let error = IdentityLock::take(dir.path()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("lock for 10 s"), "{error}");
    }
}
