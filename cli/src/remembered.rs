//! The newest checkpoint of each audit log that this command has verified, so that the next verification notices by itself
//! that a log was rewritten or cut.
//!
//! The file is `$XDG_STATE_HOME/postern/audit-checkpoints.json`, which is usually `~/.local/state/postern/…`, with mode 0600:
//! one checkpoint for each deployment and log.
//!
//! **The rule.** An entry belongs to the deployment whose roots vouch for its checkpoint, and to that of the roots that are beside it: those
//! that the command trusted when it kept the checkpoint, and those that it learned later. So the memory outlives the replacement of a
//! root. An entry of another deployment is neither used nor replaced.
//!
//! **On failure.** Only a file that does not exist is an empty memory. One that cannot be read fails the verification, and is not written
//! over: it may hold the only checkpoint that shows a rewritten log.

use std::io;
use std::path::{Path, PathBuf};

use postern_core::KeyHash;
use postern_core::checkpoint::Relation;
use postern_pki::{SignedCheckpoint, identity};
use postern_runtime::files;
use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// The most checkpoints in the file; the oldest entries go first.
const MAX_REMEMBERED: usize = 256;

/// The checkpoints of one deployment, in the file of all.
pub(crate) struct Remembered {
    file: Option<PathBuf>,
    /// The checkpoints of every deployment, the oldest entry first.
    all: Vec<Entry>,
    roots: Vec<Vec<u8>>,
}

/// A checkpoint in the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    kept: SignedCheckpoint,
    /// The roots of its deployment, by the hashes of their public keys; none in an entry of an earlier version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    roots: Vec<KeyHash>,
}

impl Remembered {
    /// Reads the file. One that does not exist holds nothing.
    ///
    /// # Errors
    /// The file cannot be read, or is malformed.
    pub(crate) fn read(roots: &[Vec<u8>]) -> Result<Self, Failure> {
        let file = file();
        let all = match &file {
            Some(file) => read(file).map_err(|source| Failure::Memory { file: file.clone(), source })?,
            None => Vec::new(),
        };
        Ok(Self { file, all, roots: roots.to_vec() })
    }

    /// Returns the checkpoint of this log; of an unknown log the only one there is.
    pub(crate) fn of_log(&self, log: Option<&str>) -> Option<&SignedCheckpoint> {
        let mut own = self.all.iter().filter(|entry| is_of(entry, &self.roots)).map(|entry| &entry.kept);
        match log {
            Some(log) => own.find(|kept| kept.checkpoint.log == log),
            None => own.next().filter(|_| own.next().is_none()),
        }
    }

    /// Returns the numbers of the records that the checkpoints of this deployment name.
    pub(crate) fn records(&self) -> Vec<u64> {
        let own = self.all.iter().filter(|entry| is_of(entry, &self.roots));
        own.map(|entry| entry.kept.checkpoint.seq).collect()
    }

    /// Keeps a checkpoint, if it is newer than the one that is kept, and the roots at hand beside it.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(crate) fn keep(&mut self, newest: SignedCheckpoint) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "neither XDG_STATE_HOME nor HOME is set");
        let file = self.file.as_ref().ok_or_else(missing)?;
        // Another command may have kept something since.
        let mut all = read(file)?;
        let is_its =
            |entry: &Entry| entry.kept.checkpoint.log == newest.checkpoint.log && is_of(entry, &self.roots);
        let before = all.iter().find(|entry| is_its(entry)).cloned();
        let is_newer =
            |kept: &SignedCheckpoint| kept.checkpoint.relation_of(&newest.checkpoint) == Relation::Newer;
        let kept =
            before.as_ref().map(|before| &before.kept).filter(|kept| !is_newer(kept)).unwrap_or(&newest);
        let entry = Entry { kept: kept.clone(), roots: keys(&self.roots) };
        if before.as_ref() == Some(&entry) {
            return Ok(());
        }
        all.retain(|entry| !is_its(entry));
        all.push(entry);
        all.drain(..all.len().saturating_sub(MAX_REMEMBERED));
        write(file, &all)?;
        self.all = all;
        Ok(())
    }
}

/// Writes the roots that a command has learned beside the checkpoints of the deployment whose roots it trusted until then.
///
/// # Errors
/// The file cannot be read or written.
pub(crate) fn learn_roots(trusted: &[Vec<u8>], learned: &[Vec<u8>]) -> io::Result<()> {
    let Some(file) = file() else { return Ok(()) };
    let before = read(&file)?;
    let mut all = before.clone();
    for entry in all.iter_mut().filter(|entry| is_of(entry, trusted)) {
        let new = keys(learned).into_iter().filter(|key| !entry.roots.contains(key)).collect::<Vec<_>>();
        entry.roots.extend(new);
    }
    if all == before { Ok(()) } else { write(&file, &all) }
}

/// Reports whether an entry belongs to the deployment of these roots (DER).
fn is_of(entry: &Entry, roots: &[Vec<u8>]) -> bool {
    keys(roots).iter().any(|key| entry.roots.contains(key)) || entry.kept.verify(roots, None).is_ok()
}

/// Returns the hashes of the public keys of roots (DER).
fn keys(roots: &[Vec<u8>]) -> Vec<KeyHash> {
    roots.iter().filter_map(|root| identity::key_hash(root).ok()).collect()
}

fn read(file: &Path) -> io::Result<Vec<Entry>> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).map_err(io::Error::from),
        // Below something that is no directory, such as a home of /dev/null, there is no file either.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn write(file: &Path, all: &[Entry]) -> io::Result<()> {
    if let Some(dir) = file.parent() {
        files::make_private_dir_all(dir)?;
    }
    files::replace_durably(file, &serde_json::to_vec_pretty(all)?, files::PRIVATE)
}

fn file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("postern/audit-checkpoints.json"))
}
