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
//! The file is written at most once a minute, and at once for an alarm. The windows of this host depend on none of this.
//!
//! **On failure.** A checkpoint that cannot be verified changes nothing, and is logged once an hour at most. A file that cannot be
//! read counts as absent, and one that cannot be written is logged. A kept checkpoint of a root that this host no longer trusts is
//! dropped: the host was enrolled under another authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::checkpoint::Relation;
use postern_pki::SignedCheckpoint;
use postern_pki::credentials::Credentials;
use postern_runtime::files;
use serde::{Deserialize, Serialize};

use crate::clock::{self, BootTime};
use crate::reports::{CheckpointReport, Report, Reporter};

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

/// Keeps the newest checkpoint.
#[derive(Debug)]
pub struct CheckpointKeeper {
    file: PathBuf,
    kept: KeptCheckpoint,
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
        let keeper = Self {
            file: path(state_dir),
            kept: read(state_dir),
            reporter,
            credentials: None,
            written: None,
            unwritten: false,
            logged: None,
        };
        keeper.report();
        keeper
    }

    /// Verifies checkpoints under the roots of this identity from now on.
    pub fn trust(&mut self, credentials: Arc<Credentials>) {
        self.credentials = Some(credentials);
    }

    /// Returns the newest checkpoint as its line of JSON; empty if there is none.
    pub fn line(&self) -> String {
        self.kept.newest.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// Takes a checkpoint that a broker sent, as its line of JSON.
    pub fn receive(&mut self, line: &str) {
        let Some(credentials) = self.credentials.clone() else { return };
        let domain = credentials.trust_domain().map(|domain| domain.to_string()).ok();
        let verify =
            |checkpoint: &SignedCheckpoint| checkpoint.verify(credentials.roots(), domain.as_deref());
        if self.kept.newest.as_ref().is_some_and(|kept| verify(kept).is_err()) {
            tracing::info!("the kept checkpoint of the audit log is of another authority; it is dropped");
            self.keep(KeptCheckpoint::default(), true);
        }
        let received =
            SignedCheckpoint::parse(line).and_then(|received| verify(&received).map(|()| received));
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
        match files::replace_durably(&self.file, &content, files::PRIVATE) {
            Ok(()) => self.unwritten = false,
            Err(error) => tracing::warn!(%error, "cannot write the checkpoint of the audit log"),
        }
    }
}

/// Returns the path of the file.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("audit-checkpoint")
}

/// Reads what is kept in a state directory; nothing if there is no file, or none that can be read.
pub fn read(state_dir: &Path) -> KeptCheckpoint {
    let content = std::fs::read(path(state_dir)).ok();
    content.and_then(|content| serde_json::from_slice(&content).ok()).unwrap_or_default()
}

fn is_due(last: Option<BootTime>, interval: Duration) -> bool {
    last.is_none_or(|last| clock::boottime().since(last) >= interval)
}

#[cfg(test)]
mod tests;
