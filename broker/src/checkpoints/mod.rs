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
//! **Records that left the store.** Retention removes no record after that of the newest checkpoint whose own record the log has, and
//! none during an alarm. So a checkpoint in the log always vouches for what is left. A log that begins after the trusted
//! checkpoint's record is believed only if a signed checkpoint of a record that follows from its base says so.
//! An agent's checkpoint of a record that left the store is compared with nothing, and neither is one of another log.
//! Records that another broker seals between two reads look like a broken log: the keeper and each verification then read again from the new
//! beginning.
//!
//! **Signers.** A checkpoint by a revoked intermediate proves nothing, in the log or from an agent. This broker signs another in the place
//! of a trusted one whose signer was revoked, and signs none with a revoked intermediate: the rounds fail until an operator has renewed it.
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

/// The most checkpoints of agents that wait to be compared; the latest stay.
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
        let mut shown = self.shown();
        let offered = &mut shown.offered;
        // Two brokers may have signed the same head.
        let same = |other: &SignedCheckpoint| {
            let (one, other) = (&kept.checkpoint, &other.checkpoint);
            (&one.log, one.head(), one.accepted) == (&other.log, other.head(), other.accepted)
        };
        if offered.iter().any(same) {
            return;
        }
        if offered.len() >= MAX_OFFERED {
            let age = |offered: &SignedCheckpoint| (offered.checkpoint.accepted, offered.checkpoint.seq);
            // A later one covers every record that an earlier one does.
            let earliest = (0..offered.len()).min_by_key(|place| age(&offered[*place])).unwrap_or_default();
            if age(&kept) <= age(&offered[earliest]) {
                return;
            }
            offered.swap_remove(earliest);
        }
        offered.push(kept);
        drop(shown);
        self.due.notify_one();
    }

    /// Returns the checkpoint by which an operator last accepted the log: a verification begins at its record.
    pub fn accepted(&self) -> Option<SignedCheckpoint> {
        self.shown().accepted.clone()
    }

    /// Raises the alarm for a log that a verification found broken. `accepted` is the acceptance under which it did.
    pub fn report_broken(&self, accepted: Option<Timestamp>, broken: Broken) {
        let mut shown = self.shown();
        shown.broken = Some((accepted, broken));
        // Until the keeper has decided.
        shown.sealable = 0;
        drop(shown);
        self.due.notify_one();
    }

    /// Returns the number of the last record that may leave the store: that of the newest checkpoint whose own record the log has, so
    /// that it or a later one vouches for what is left, to every broker; 0 before the first, and while there is an alarm.
    pub fn sealable(&self) -> u64 {
        self.shown().sealable
    }

    /// Makes checkpoints that let the records up to this number leave the store.
    #[cfg(test)]
    pub(crate) fn letting_leave(upto: u64) -> Arc<Self> {
        let checkpoints = Self::default();
        checkpoints.shown().sealable = upto;
        Arc::new(checkpoints)
    }

    /// Takes what a verification found, unless it was of a log that was accepted since.
    pub(crate) fn take_broken(&self, accepted: Option<Timestamp>) -> Option<Broken> {
        let (under, broken) = self.shown().broken.take()?;
        (under == accepted).then_some(broken)
    }

    /// Returns the checkpoints of agents that wait to be compared.
    fn offered(&self) -> Vec<SignedCheckpoint> {
        self.shown().offered.clone()
    }

    /// Forgets a checkpoint of an agent that was compared.
    fn forget_offered(&self, kept: &SignedCheckpoint) {
        self.shown().offered.retain(|offered| offered != kept);
    }

    /// Shows the memory. `carried` is the number of the record that the newest checkpoint in the log names.
    fn show(&self, memory: &Memory, head: Option<Head>, carried: u64) {
        let mut shown = self.shown();
        shown.alarm.clone_from(&memory.alarm);
        shown.head = head;
        shown.accepted.clone_from(&memory.accepted);
        let trusted = memory.trusted.as_ref().filter(|_| memory.alarm.is_none());
        let is_reported = shown.broken.is_some();
        let sealable = trusted.map_or(0, |trusted| trusted.checkpoint.seq.min(carried));
        shown.sealable = if is_reported { 0 } else { sealable };
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
