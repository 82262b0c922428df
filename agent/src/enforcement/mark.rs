//! The mark: the file with the phase of this machine, which the agent and its commands share.
//!
//! A process that writes it holds its lock, and reads it under that lock first.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use postern_runtime::files;
use serde::{Deserialize, Serialize};

use super::Phase;
use crate::lock::MarkLock;

/// The version of the file format.
const VERSION: u32 = 1;

/// The file with the phase.
#[derive(Debug, Clone)]
pub struct EnforcementMark {
    path: PathBuf,
}

/// The mark cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// Reading failed.
    #[error("cannot read {}, so this host counts as confirmed; check its disk", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The content is no mark.
    #[error(
        "{} is damaged, so this host counts as confirmed; `postern-agent enforce --now` writes it again",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Another version of the agent wrote it.
    #[error(
        "{} has version {version} and this agent reads {VERSION}, so this host counts as confirmed; install the newer agent again",
        path.display()
    )]
    OtherVersion {
        /// The file.
        path: PathBuf,
        /// The version of the file.
        version: u32,
    },
}

/// A content of the file, as far as its metadata tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    inode: u64,
    modified: (i64, i64),
}

#[derive(Serialize, Deserialize)]
struct Content<P> {
    version: u32,
    enforcement: P,
}

#[derive(Deserialize)]
struct ContentVersion {
    version: u32,
}

impl EnforcementMark {
    /// Returns the mark of a state directory. Reads nothing yet.
    pub fn in_dir(state_dir: &Path) -> Self {
        Self { path: state_dir.join("enforcement.json") }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the file's lock.
    pub fn lock_path(&self) -> PathBuf {
        self.path.with_extension("lock")
    }

    /// Reads the phase; `None` where there is no mark.
    ///
    /// # Errors
    /// The file exists and cannot be read or understood.
    pub fn read(&self) -> Result<Option<Phase>, MarkError> {
        let path = || self.path.clone();
        let content = match fs::read(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(MarkError::Read { path: path(), source }),
        };
        let damaged = |source| MarkError::Damaged { path: path(), source };
        let ContentVersion { version } = serde_json::from_slice(&content).map_err(damaged)?;
        if version != VERSION {
            return Err(MarkError::OtherVersion { path: path(), version });
        }
        let content: Content<Phase> = serde_json::from_slice(&content).map_err(damaged)?;
        Ok(Some(content.enforcement))
    }

    /// Writes the phase; durable once this function has returned.
    ///
    /// # Errors
    /// The file cannot be written; the former content is still there.
    pub fn write(&self, phase: &Phase, _lock: &MarkLock) -> io::Result<()> {
        let content = serde_json::to_vec(&Content { version: VERSION, enforcement: phase })?;
        files::replace_durably(&self.path, &content, files::PRIVATE)
    }

    /// Takes the lock; returns `None` while another process holds it.
    ///
    /// # Errors
    /// The lock file cannot be opened.
    pub fn try_lock(&self) -> io::Result<Option<MarkLock>> {
        MarkLock::try_take(&self.lock_path())
    }

    /// Returns the stamp of the present content; `None` where there is no file.
    pub(super) fn stamp(&self) -> Option<FileStamp> {
        let metadata = fs::metadata(&self.path).ok()?;
        Some(FileStamp { inode: metadata.ino(), modified: (metadata.mtime(), metadata.mtime_nsec()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written_and_what_is_no_mark_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mark = EnforcementMark::in_dir(dir.path());
        assert_eq!(mark.read().unwrap(), None);
        let lock = mark.try_lock().unwrap().unwrap();
        assert!(mark.try_lock().unwrap().is_none());
        for phase in [Phase::Untried, Phase::Lapsed { since: jiff::Timestamp::UNIX_EPOCH }, Phase::Confirmed]
        {
            mark.write(&phase, &lock).unwrap();
            assert_eq!(mark.read().unwrap(), Some(phase));
        }
        for (content, what) in [
            ("", "damaged"),
            ("{\"version\":1,\"enforcement\":{\"phase\":\"relaxed\"}}", "damaged"),
            ("{\"version\":2,\"enforcement\":7}", "version 2"),
        ] {
            fs::write(mark.path(), content).unwrap();
            let error = mark.read().unwrap_err().to_string();
            assert!(error.contains(what) && error.contains("counts as confirmed"), "{error}");
        }
    }
}
