//! The checkpoints of the audit log that this agent keeps for the brokers (I9).
//!
//! **The problem.** An attacker who can write the brokers' store, and has a broker's machine besides, can replace the audit log and all
//! that the brokers know of it. Machines that they do not have must still know better.
//!
//! **The rule.** A broker sends each signed checkpoint of the log to every agent ([`postern_pki::checkpoint`]). The agent verifies
//! the signature under its own roots and keeps the newest, durably in `state_dir/audit-checkpoint`. A checkpoint that contradicts
//! the kept one (made later of a shorter log, or with another hash for the same record) raises an *alarm*: the agent keeps what it
//! had, logs `event = "audit.contradicted"`, shows the alarm in `status` and `doctor`, and reports both checkpoints to the broker.
//! The agent also shows the kept one at the beginning of each session, and the broker compares its log with it: that finds a log that
//! was rewritten and is longer. The alarm ends with a checkpoint that says that an operator accepted another log since.
//!
//! What is kept does not depend on the roots of today: once the authority has a new root, an older checkpoint can no longer be verified,
//! and still says what the log was. Only an enrolment under another authority drops it, with its alarm.
//!
//! The file is written at most once a minute, and at once for an alarm. The windows of this host depend on none of this. All of it runs
//! on a thread of its own ([`handle`]), because the disk blocks.
//!
//! **On failure.** A checkpoint that cannot be verified changes nothing, and is logged once an hour at most. While the file cannot be
//! read, the agent keeps no checkpoint and writes none over it, logs that, and shows it in `status` and `doctor`; it reads the file again
//! with each checkpoint that comes. A file that cannot be written is logged.

mod handle;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::checkpoint::Relation;
use postern_pki::SignedCheckpoint;
use postern_pki::checkpoint::CheckpointError;
use postern_pki::credentials::Credentials;
use postern_runtime::error_chain::error_chain;
use postern_runtime::files;
use serde::{Deserialize, Serialize};

use crate::clock::{self, BootTime};
use crate::reports::{CheckpointReport, Report, Reporter};
pub use handle::{CheckpointHandle, Commands, channel, serve};

/// The least time between two writes of the file.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);
/// The least time between two log lines on checkpoints that cannot be verified.
const LOG_INTERVAL: Duration = Duration::from_secs(3600);

/// The content of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptCheckpoint {
    /// The newest checkpoint; none before the first.
    pub newest: Option<SignedCheckpoint>,
    /// The alarm, if a broker sent a checkpoint that contradicts it.
    pub alarm: Option<CheckpointAlarm>,
}

/// A checkpoint that contradicts the kept one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointAlarm {
    /// The time at which the agent received it (UTC).
    pub since: Timestamp,
    /// The checkpoint.
    pub received: SignedCheckpoint,
}

/// The file cannot be read, or is damaged. A missing file is no error.
#[derive(Debug, thiserror::Error)]
pub enum KeptCheckpointError {
    /// Reading failed.
    #[error("cannot read the kept checkpoint of the audit log, {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The content is not a kept checkpoint.
    #[error("the kept checkpoint of the audit log, {}, is damaged; restore the file, or remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}

/// Keeps the newest checkpoint.
#[derive(Debug)]
pub struct CheckpointKeeper {
    state_dir: PathBuf,
    kept: KeptCheckpoint,
    /// Set while the file cannot be read: then nothing is kept, and nothing is written.
    is_unreadable: bool,
    reporter: Reporter,
    /// The identity whose roots vouch for checkpoints.
    credentials: Option<Arc<Credentials>>,
    written: Option<BootTime>,
    /// Set while the file is older than `kept`.
    unwritten: bool,
    logged: Option<BootTime>,
}

impl CheckpointKeeper {
    /// Reads what was kept in a state directory. An alarm that stands is reported again: the report may have been lost.
    pub fn in_dir(state_dir: &Path, reporter: Reporter) -> Self {
        let mut keeper = Self {
            state_dir: state_dir.to_owned(),
            kept: KeptCheckpoint::default(),
            is_unreadable: false,
            reporter,
            credentials: None,
            written: None,
            unwritten: false,
            logged: None,
        };
        keeper.read();
        keeper
    }

    /// Verifies checkpoints under the roots of this identity from now on. If its session is the first of an enrolment (`is_enrolment`),
    /// and what is kept is of another authority, that is dropped.
    pub fn trust(&mut self, credentials: Arc<Credentials>, is_enrolment: bool) {
        if is_enrolment && self.is_of_another_authority(&credentials) {
            tracing::info!(
                event = "audit.checkpoint_dropped",
                "this host was enrolled under another authority; the kept checkpoint of the audit log is dropped"
            );
            self.keep(KeptCheckpoint::default(), true);
        }
        self.credentials = Some(credentials);
    }

    /// Returns the newest checkpoint as its line of JSON, for the hello of a session with this identity; empty if there is none, or if
    /// [`Self::trust`] will drop it.
    pub fn line(&self, credentials: &Credentials, is_enrolment: bool) -> String {
        if is_enrolment && self.is_of_another_authority(credentials) {
            return String::new();
        }
        self.kept.newest.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Takes a checkpoint that a broker sent, as its line of JSON.
    pub fn receive(&mut self, line: &str) {
        let Some(credentials) = self.credentials.clone() else { return };
        if self.is_unreadable && !self.read() {
            return;
        }
        let received = SignedCheckpoint::parse(line)
            .and_then(|received| verify(&received, &credentials).map(|()| received));
        match received {
            Ok(received) => self.compare(received),
            Err(error) if is_due(self.logged, LOG_INTERVAL) => {
                self.logged = Some(clock::boottime());
                tracing::warn!(%error, "the broker sent a checkpoint of the audit log that cannot be verified");
            }
            Err(_) => {}
        }
    }

    /// Writes the newest checkpoint, if it was not written and a write is due.
    pub fn flush(&mut self) {
        if self.unwritten && is_due(self.written, WRITE_INTERVAL) {
            self.write();
        }
    }

    fn compare(&mut self, received: SignedCheckpoint) {
        let Some(newest) = &self.kept.newest else {
            return self.keep(KeptCheckpoint { newest: Some(received), alarm: None }, false);
        };
        match newest.checkpoint.relation_of(&received.checkpoint) {
            Relation::NoNewer => {}
            Relation::Newer => {
                let is_accepted = received.checkpoint.accepted > newest.checkpoint.accepted;
                // A longer log need not be the one that was kept: an alarm ends with an acceptance alone.
                if self.kept.alarm.is_some() && !is_accepted {
                    return;
                }
                if is_accepted {
                    tracing::warn!(
                        event = "audit.head_accepted",
                        seq = received.checkpoint.seq,
                        "an operator of the brokers accepted another audit log"
                    );
                }
                self.keep(KeptCheckpoint { newest: Some(received), alarm: None }, is_accepted);
            }
            Relation::WentBack | Relation::Rewritten if self.kept.alarm.is_some() => {}
            Relation::WentBack | Relation::Rewritten => {
                tracing::error!(
                    event = "audit.contradicted",
                    kept_seq = newest.checkpoint.seq,
                    kept_hash = %newest.checkpoint.hash,
                    received_seq = received.checkpoint.seq,
                    received_hash = %received.checkpoint.hash,
                    "the broker sent a checkpoint that contradicts the kept one: its audit log went back, or was rewritten"
                );
                let alarm = CheckpointAlarm { since: clock::wall(), received };
                self.keep(KeptCheckpoint { alarm: Some(alarm), newest: self.kept.newest.clone() }, true);
                self.report();
            }
        }
    }

    /// Reads the file. Returns whether it can be read.
    fn read(&mut self) -> bool {
        match read(&self.state_dir) {
            Ok(kept) => {
                (self.kept, self.is_unreadable) = (kept, false);
                self.report();
            }
            Err(error) => {
                // Once, until the file can be read.
                if !self.is_unreadable {
                    tracing::error!(
                        event = "audit.checkpoint_unreadable",
                        error = error_chain(&error),
                        "this host keeps no checkpoint of the audit log while its file cannot be read"
                    );
                }
                self.is_unreadable = true;
            }
        }
        !self.is_unreadable
    }

    fn is_of_another_authority(&self, credentials: &Credentials) -> bool {
        self.kept.newest.as_ref().is_some_and(|kept| verify(kept, credentials).is_err())
    }

    fn report(&self) {
        if let KeptCheckpoint { newest: Some(kept), alarm: Some(alarm) } = &self.kept {
            let (kept, received) = (kept.to_string(), alarm.received.to_string());
            self.reporter.report(Report::Checkpoint(CheckpointReport { kept, received }));
        }
    }

    fn keep(&mut self, kept: KeptCheckpoint, at_once: bool) {
        (self.kept, self.unwritten) = (kept, true);
        if at_once { self.write() } else { self.flush() }
    }

    fn write(&mut self) {
        self.written = Some(clock::boottime());
        let content = serde_json::to_vec(&self.kept).unwrap_or_default();
        match files::replace_durably(&path(&self.state_dir), &content, files::PRIVATE) {
            Ok(()) => self.unwritten = false,
            Err(error) => tracing::warn!(%error, "cannot write the checkpoint of the audit log"),
        }
    }
}

/// Returns the path of the file.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("audit-checkpoint")
}

/// Reads what is kept in a state directory; nothing if there is no file.
///
/// # Errors
/// The file exists, and cannot be read or understood.
pub fn read(state_dir: &Path) -> Result<KeptCheckpoint, KeptCheckpointError> {
    let path = path(state_dir);
    match std::fs::read(&path) {
        Ok(content) => {
            serde_json::from_slice(&content).map_err(|source| KeptCheckpointError::Damaged { path, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(KeptCheckpoint::default()),
        Err(source) => Err(KeptCheckpointError::Read { path, source }),
    }
}

fn verify(checkpoint: &SignedCheckpoint, credentials: &Credentials) -> Result<(), CheckpointError> {
    let domain = credentials.trust_domain().map(|domain| domain.to_string()).ok();
    checkpoint.verify(credentials.roots(), domain.as_deref())
}

fn is_due(last: Option<BootTime>, interval: Duration) -> bool {
    last.is_none_or(|last| clock::boottime().since(last) >= interval)
}

#[cfg(test)]
mod tests;
