//! The newest checkpoint of each audit log that this command has verified, so that the next verification notices by itself
//! that a log was rewritten or cut.
//!
//! The file is `$XDG_STATE_HOME/postern/audit-checkpoints.json`, which is usually `~/.local/state/postern/…`, with mode 0600:
//! one checkpoint for each root and log. A checkpoint that the roots at hand do not vouch for is neither used nor replaced.

use std::io;
use std::path::PathBuf;

use postern_core::checkpoint::Relation;
use postern_pki::SignedCheckpoint;
use postern_runtime::files;

/// The most checkpoints in the file; the oldest entries go first.
const MAX_REMEMBERED: usize = 256;

/// The checkpoints of one deployment, in the file of all.
pub(crate) struct Remembered {
    file: Option<PathBuf>,
    /// The checkpoints of every deployment, the oldest entry first.
    all: Vec<SignedCheckpoint>,
    roots: Vec<Vec<u8>>,
}

impl Remembered {
    /// Reads the file. A file that is missing or malformed holds nothing.
    pub(crate) fn read(roots: &[Vec<u8>]) -> Self {
        let file = file();
        let text = file.as_ref().and_then(|file| std::fs::read(file).ok());
        let all = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { file, all, roots: roots.to_vec() }
    }

    /// Returns the checkpoints under these roots.
    pub(crate) fn all(&self) -> impl Iterator<Item = &SignedCheckpoint> {
        self.all.iter().filter(|kept| kept.verify(&self.roots, None).is_ok())
    }

    /// Returns the checkpoint of this log; of an unknown log the only one there is.
    pub(crate) fn of_log(&self, log: Option<&str>) -> Option<&SignedCheckpoint> {
        let Some(log) = log else {
            let mut all = self.all();
            return all.next().filter(|_| all.next().is_none());
        };
        self.all().find(|kept| kept.checkpoint.log == log)
    }

    /// Keeps a checkpoint, if it is newer than the one that is kept.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn keep(&mut self, newest: SignedCheckpoint) -> io::Result<()> {
        let kept = self.of_log(Some(&newest.checkpoint.log));
        if kept.is_some_and(|kept| kept.checkpoint.relation_of(&newest.checkpoint) != Relation::Newer) {
            return Ok(());
        }
        let (roots, log) = (&self.roots, &newest.checkpoint.log);
        self.all.retain(|kept| kept.checkpoint.log != *log || kept.verify(roots, None).is_err());
        self.all.push(newest);
        self.all.drain(..self.all.len().saturating_sub(MAX_REMEMBERED));
        let missing = || io::Error::new(io::ErrorKind::NotFound, "neither XDG_STATE_HOME nor HOME is set");
        let file = self.file.as_ref().ok_or_else(missing)?;
        if let Some(dir) = file.parent() {
            files::make_private_dir_all(dir)?;
        }
        files::replace_durably(file, &serde_json::to_vec_pretty(&self.all)?, files::PRIVATE)
    }
}

fn file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("postern/audit-checkpoints.json"))
}
