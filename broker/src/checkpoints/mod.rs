//! Checkpoints of the audit log: this broker signs the head of the log, keeps the newest checkpoint outside the store, and
//! notices a log that contradicts it (I9).
//!
//! **The problem.** An attacker who can write the store can write another log with correct hashes, or cut off its end. The chain alone
//! does not show that.
//!
//! **The words.**
//!
//! - A *checkpoint* is a head of the log with the signature of the authority's intermediate ([`postern_pki::checkpoint`]). The
//!   key is in `data_dir`, and never in the store.
//! - The *trusted* checkpoint is the newest that this broker has made, or has found in the log and verified. It is in
//!   `data_dir/audit-checkpoint` ([`MemoryFile`]), and the store cannot change it.
//! - The *alarm* says that the log contradicts the trusted checkpoint: it *went back* (the record is gone), it was *rewritten*
//!   (the record is another), or it is *broken* (a later record does not follow, or a verification of the whole log found one).
//! - An operator *accepts* a head after an alarm (`postern-broker audit accept-head`), for instance after a restore. The time of
//!   the acceptance is part of every checkpoint from then on, so that agents, other brokers and the commands of operators know
//!   that the checkpoints from before do not hold any more.
//!
//! **The course.** Every two seconds the [`CheckpointKeeper`] reads the record that the trusted checkpoint names, and the new
//! records, each once, in a chain from there on. It signs a checkpoint after so many new records or so much time (`[audit]`), writes
//! the file, logs it, gives it to the agents' sessions, and puts it into the log as the record `audit.checkpoint`. A checkpoint of
//! another broker that the log agrees with becomes the trusted one, so that brokers on one store take turns.
//!
//! **The rules.** A checkpoint is signed only of records that follow from the trusted one and that are as durable as an answered
//! commit, so that no honest failover contradicts it. While there is an alarm, this broker
//! signs none. Neither stops anything else: grants, revocations and closes go on.
//!
//! **Records that left the store.** Retention removes no record after the trusted checkpoint's, and none during an alarm. So the
//! trusted checkpoint, or a later one in the log, always vouches for what is left. A log that begins after the trusted
//! checkpoint's record is believed only if a signed checkpoint of a record that follows from its base says so.
//! An agent's checkpoint of a record that left the store is compared with nothing.
//!
//! **On failure.** Without a file (a first start, or a lost `data_dir`) the broker verifies the whole log and trusts its present end;
//! the agents then still know better, and report it. A file that cannot be read or written fails the rounds of the task, and so does
//! an intermediate that has ended. A store that does not answer is no alarm.

mod acceptance;
mod alarm;
pub mod command;
mod keeper;
mod memory;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use postern_core::audit::{Broken, Head};
use postern_pki::SignedCheckpoint;
use tokio::sync::{Notify, watch};

use alarm::in_words;
pub use alarm::{Alarm, AlarmKind};
pub use keeper::{CheckpointKeeper, LOOK_INTERVAL};
pub(crate) use keeper::{beginning, read_on};
pub use memory::{Acceptance, Memory, MemoryFile};

/// The most checkpoints of agents that wait to be compared.
const MAX_OFFERED: usize = 64;

/// The checkpoints as other parts of this broker see them.
#[derive(Debug)]
pub struct Checkpoints {
    newest: watch::Sender<Option<Arc<SignedCheckpoint>>>,
    shown: Mutex<Shown>,
    due: Notify,
}

#[derive(Debug, Default)]
struct Shown {
    alarm: Option<Alarm>,
    /// The head that an operator would accept.
    head: Option<Head>,
    offered: Vec<SignedCheckpoint>,
    /// The record by which an operator last accepted the log.
    accepted: Option<SignedCheckpoint>,
    /// The first line that a verification found broken, and the acceptance under which it did.
    broken: Option<(Option<Timestamp>, Broken)>,
    /// The last record that may leave the store.
    sealable: u64,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { newest: watch::Sender::new(None), shown: Mutex::default(), due: Notify::new() }
    }
}

impl Checkpoints {
    /// Receives each new trusted checkpoint.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<SignedCheckpoint>>> {
        self.newest.subscribe()
    }

    /// Returns the trusted checkpoint; none before the first.
    pub fn newest(&self) -> Option<Arc<SignedCheckpoint>> {
        self.newest.borrow().clone()
    }

    /// Returns the alarm, if there is one.
    pub fn alarm(&self) -> Option<Alarm> {
        self.shown().alarm.clone()
    }

    /// Returns the warnings for an operator, one line each; none if the log agrees with the trusted checkpoint.
    pub fn warnings(&self) -> Vec<String> {
        let shown = self.shown();
        shown.alarm.iter().map(|alarm| in_words(alarm, shown.head)).collect()
    }

    /// Has the log compared with a checkpoint that an agent has kept. The caller has verified its signature.
    pub fn offer(&self, kept: SignedCheckpoint) {
        let offered = &mut self.shown().offered;
        if offered.len() < MAX_OFFERED && !offered.contains(&kept) {
            offered.push(kept);
            self.due.notify_one();
        }
    }

    /// Returns the checkpoint by which an operator last accepted the log: a verification begins at its record.
    pub fn accepted(&self) -> Option<SignedCheckpoint> {
        self.shown().accepted.clone()
    }

    /// Raises the alarm for a log that a verification found broken. `accepted` is the acceptance under which it did.
    pub fn report_broken(&self, accepted: Option<Timestamp>, broken: Broken) {
        self.shown().broken = Some((accepted, broken));
        self.due.notify_one();
    }

    /// Returns the number of the last record that may leave the store: the trusted checkpoint's, so that it or a later one vouches
    /// for what is left; 0 before the first, and while there is an alarm.
    pub fn sealable(&self) -> u64 {
        self.shown().sealable
    }

    /// Makes checkpoints that let every record leave the store.
    #[cfg(test)]
    pub(crate) fn letting_all_leave() -> Arc<Self> {
        let checkpoints = Self::default();
        checkpoints.shown().sealable = u64::MAX;
        Arc::new(checkpoints)
    }

    /// Takes what a verification found, unless it was of a log that was accepted since.
    pub(crate) fn take_broken(&self, accepted: Option<Timestamp>) -> Option<Broken> {
        let (under, broken) = self.shown().broken.take()?;
        (under == accepted).then_some(broken)
    }

    fn take_offered(&self) -> Vec<SignedCheckpoint> {
        std::mem::take(&mut self.shown().offered)
    }

    fn show(&self, memory: &Memory, head: Option<Head>) {
        let mut shown = self.shown();
        shown.alarm.clone_from(&memory.alarm);
        shown.head = head;
        shown.accepted.clone_from(&memory.accepted);
        let trusted = memory.trusted.as_ref().filter(|_| memory.alarm.is_none());
        shown.sealable = trusted.map_or(0, |trusted| trusted.checkpoint.seq);
        drop(shown);
        self.newest.send_if_modified(|newest| {
            let changed = newest.as_deref() != memory.trusted.as_ref();
            if changed {
                *newest = memory.trusted.clone().map(Arc::new);
            }
            changed
        });
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
