//! Acceptances: an operator says that the log is right up to a record, after an alarm.
//!
//! The records before it may be others than were written, and need not follow from each other. So the keeper and each verification
//! begin at the accepted record from then on, and the acceptance is refused if what follows it does not hold.

use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use postern_core::audit::{AuditEvent, AuditRecord, Broken, Head};
use postern_core::checkpoint::Checkpoint;
use postern_pki::{LogVerifier, SignedCheckpoint};
use postern_store::{Store, StoreError, Transaction};

use super::CheckpointKeeper;
use super::keeper::{Compared, KeeperState, beginning, log_checkpoint, read_on};
use super::memory::Acceptance;
use crate::clock::wall;

/// The records at the end of the log among which the keeper looks for an acceptance by another broker.
const ACCEPTANCE_SEARCH: u64 = 1000;
/// The broken lines that the search passes over at most.
const MAX_BREAKS: usize = 16;

impl CheckpointKeeper {
    /// Looks at the end of the log for a checkpoint by which another broker's operator accepted the log. A log that has not moved since
    /// the last search is not read again.
    pub(super) async fn find_acceptance(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        let before = state.trusted().and_then(|trusted| trusted.checkpoint.accepted);
        let head = self.store.audit_head().await?;
        if state.searched == Some(head) {
            return Ok(());
        }
        self.learn_signers(state);
        let first = beginning(&self.store).await?;
        let from = head.seq.saturating_sub(ACCEPTANCE_SEARCH).max(first.seq);
        let from = head_before(&self.store, from).await?.unwrap_or(first);
        let found = self.newest_after(state, from).await?;
        let Some(found) = found.filter(|found| found.checkpoint.accepted > before) else {
            state.searched = Some(head);
            return Ok(());
        };
        tracing::warn!(
            event = "audit.head_accepted",
            seq = found.checkpoint.seq,
            hash = %found.checkpoint.hash,
            "the operator of another broker accepted the audit log"
        );
        self.trust(state, found)
    }

    /// Takes up the acceptance that an operator has left, or refuses it.
    pub(super) async fn take_up_acceptance(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        let Some(acceptance) = self.file.acceptance()? else { return Ok(()) };
        let refusal = match state.alarm() {
            None => Some("there is no alarm about the audit log".to_owned()),
            Some(_) if acceptance.seq == 0 => Some("a record has a number from 1 on".to_owned()),
            Some(_) => self.refusal(state, acceptance.head()).await?,
        };
        if let Some(reason) = refusal {
            tracing::error!(
                event = "audit.acceptance_refused",
                seq = acceptance.seq,
                reason,
                "the head that an operator accepted is not in the audit log as it is"
            );
            return self.file.remove_acceptance();
        }
        self.accept(state, &acceptance).await?;
        self.file.remove_acceptance()
    }

    async fn accept(&self, state: &mut KeeperState, acceptance: &Acceptance) -> anyhow::Result<()> {
        self.learn_signers(state);
        let at = acceptance_time(wall(), state.accepted());
        let accepted = self.sign(state, acceptance.head(), Some(at))?;
        let mut event = AuditEvent::done(self.clock.now(), "broker", "audit.head_accepted")
            .with("seq", acceptance.seq)
            .with("hash", acceptance.hash)
            .with("reason", &acceptance.reason);
        if let Some(Checkpoint { seq, hash, .. }) = state.trusted().map(|trusted| &trusted.checkpoint) {
            event = event.with("trusted_seq", seq).with("trusted_hash", hash);
        }
        // With the checkpoint, by which the other brokers learn of the acceptance.
        let changes = Transaction::default().audit(event).audit(self.record_of(&accepted));
        self.store.commit(changes).await.context("cannot record the acceptance")?;
        tracing::warn!(
            event = "audit.head_accepted",
            seq = acceptance.seq,
            hash = %acceptance.hash,
            reason = acceptance.reason,
            "an operator accepted the audit log"
        );
        state.verifier = None;
        log_checkpoint(&accepted);
        self.trust(state, accepted)
    }

    /// Returns the newest checkpoint in the log after a head. The acceptance takes the place of those before it, so a line that does
    /// not follow from the one before is passed over.
    async fn newest_after(
        &self,
        state: &KeeperState,
        from: Head,
    ) -> anyhow::Result<Option<SignedCheckpoint>> {
        let (mut from, mut newest) = (from, None::<SignedCheckpoint>);
        for _ in 0..MAX_BREAKS {
            let mut verifier = LogVerifier::from_head(from, state.trust.clone());
            let read = read_on(&self.store, &mut verifier).await?;
            let accepted = |found: &SignedCheckpoint| found.checkpoint.accepted;
            let found = verifier.coverage().newest.clone();
            if found.is_some() && found.as_ref().map(accepted) >= newest.as_ref().map(accepted) {
                newest = found;
            }
            let broken = read.err().map(|broken| broken.line).filter(|line| *line > verifier.head().seq);
            let Some(broken) = broken else { break };
            let Some(next) = head_before(&self.store, broken).await?.filter(|next| next.seq >= broken) else {
                break;
            };
            from = next;
        }
        Ok(newest)
    }

    /// Returns the reason for which a head cannot be accepted, if there is one.
    async fn refusal(&self, state: &KeeperState, head: Head) -> anyhow::Result<Option<String>> {
        match self.compare(head).await? {
            Compared::Contradicts(_, reason) => return Ok(Some(reason)),
            Compared::Sealed(_) => return Ok(Some(format!("record {} has left the store", head.seq))),
            Compared::Agrees => {}
        }
        let mut verifier = LogVerifier::from_head(head, state.trust.clone());
        // Checkpoints may contradict it: that is what the operator accepts. The records after it must follow.
        let read = read_on(&self.store, &mut verifier).await?;
        let is_broken = |broken: &Broken| broken.line > verifier.head().seq;
        Ok(read.err().filter(is_broken).map(|Broken { line, problem }| {
            format!("record {line}, after the accepted one, {problem}: accept the present end of the log")
        }))
    }
}

/// Returns the time of an acceptance: later than that of every one before, in the whole seconds of a checkpoint, also if the clock is
/// behind the one that set it. Otherwise the brokers, the agents and the commands of operators would keep what they had.
fn acceptance_time(now: Timestamp, before: Option<Timestamp>) -> Timestamp {
    let next = before.and_then(|before| before.checked_add(SignedDuration::from_secs(1)).ok());
    next.map_or(now, |next| next.max(now))
}

/// Returns the head that ends with record `seq`, as the record after it names it; none if there is no such record.
async fn head_before(store: &Store, seq: u64) -> Result<Option<Head>, StoreError> {
    let lines = store.audit_lines(seq, 1).await?;
    let next = lines.first().and_then(|(_, line)| serde_json::from_str::<AuditRecord>(line).ok());
    Ok(next.map(|next| next.before()))
}
