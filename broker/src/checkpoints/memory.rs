//! The files in `data_dir` by which a broker remembers its trusted checkpoint, and receives an operator's acceptance.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use postern_core::audit::{Hash, Head};
use postern_pki::SignedCheckpoint;
use postern_runtime::files;
use serde::{Deserialize, Serialize};

use super::alarm::Alarm;

/// The file with the trusted checkpoint and the alarm.
const MEMORY: &str = "audit-checkpoint";
/// The file with an acceptance that no broker has taken up yet.
const ACCEPTANCE: &str = "audit-acceptance";

/// The trusted checkpoint, and the alarm if there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The trusted checkpoint; none before the first.
    pub trusted: Option<SignedCheckpoint>,
    /// The checkpoint by which an operator last accepted the log; none if no operator ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<SignedCheckpoint>,
    /// The alarm.
    pub alarm: Option<Alarm>,
}

impl Memory {
    /// Trusts a checkpoint from now on, without an alarm.
    #[must_use]
    pub fn trusting(self, checkpoint: SignedCheckpoint) -> Self {
        let before = self.accepted.as_ref().and_then(|accepted| accepted.checkpoint.accepted);
        let is_accepted = checkpoint.checkpoint.accepted > before;
        let accepted = if is_accepted { Some(checkpoint.clone()) } else { self.accepted };
        Self { trusted: Some(checkpoint), accepted, alarm: None }
    }
}

/// An operator's acceptance of a head after an alarm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// The number of the record.
    pub seq: u64,
    /// The hash of the record.
    pub hash: Hash,
    /// The operator's reason.
    pub reason: String,
}

impl Acceptance {
    /// Returns the head that the operator accepts.
    pub fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }
}

/// The files in one data directory.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    memory: PathBuf,
    acceptance: PathBuf,
}

impl MemoryFile {
    /// Returns the files in a data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self { memory: data_dir.join(MEMORY), acceptance: data_dir.join(ACCEPTANCE) }
    }

    /// Reads the memory; an empty one if there is no file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> anyhow::Result<Memory> {
        Ok(read(&self.memory)?.unwrap_or_default())
    }

    /// Writes the memory durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, memory: &Memory) -> anyhow::Result<()> {
        write(&self.memory, memory)
    }

    /// Reads the acceptance that waits, if one does.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn acceptance(&self) -> anyhow::Result<Option<Acceptance>> {
        read(&self.acceptance)
    }

    /// Leaves an acceptance for the broker, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn leave(&self, acceptance: &Acceptance) -> anyhow::Result<()> {
        write(&self.acceptance, acceptance)
    }

    /// Removes the acceptance that waits.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove_acceptance(&self) -> anyhow::Result<()> {
        files::remove(&self.acceptance)
            .with_context(|| format!("cannot remove {}", self.acceptance.display()))
    }
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<Option<T>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let malformed = || format!("{} is malformed; move it away, and verify the audit log", path.display());
    serde_json::from_slice(&text).map(Some).with_context(malformed)
}

fn write(path: &Path, content: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_vec(content)?;
    files::replace_durably_for_owner_of_dir(path, &text, files::PRIVATE)
        .with_context(|| format!("cannot write {}", path.display()))
}
