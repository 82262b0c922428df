//! The keeper: checks the log against the trusted checkpoint, and makes the next one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use postern_core::audit::{AuditEvent, AuditRecord, Broken, Head, head_of_line};
use postern_core::checkpoint::{CHECKPOINT_ACTION, CHECKPOINT_DETAIL, Checkpoint};
use postern_pki::{Authority, CheckpointTrust, LogVerifier, SignedCheckpoint};
use postern_store::{Store, StoreError, Transaction};

use super::Checkpoints;
use super::alarm::{Alarm, AlarmKind};
use super::memory::{Memory, MemoryFile};
use crate::clock::{Clock, boottime, wall};
use crate::principals::Revocations;
use crate::signals::rounds::RoundReporter;
use crate::telemetry;

/// The interval at which the keeper looks at the log.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The lines that one read of the store returns at most.
const PAGE_SIZE: usize = 500;
/// The rounds in a row that records which leave the store may disturb: a read is faster than the broker that seals.
const MAX_DISTURBED: u32 = 10;

/// Keeps the trusted checkpoint of this broker.
pub struct CheckpointKeeper {
    /// The store.
    pub store: Store,
    /// The authority that signs.
    pub authority: Arc<Authority>,
    /// The revocations of this broker: a checkpoint by a revoked intermediate proves nothing.
    pub revocations: Arc<Revocations>,
    /// The checkpoints as other parts see them.
    pub checkpoints: Arc<Checkpoints>,
    /// The files in the data directory.
    pub file: MemoryFile,
    /// The number of new records after which a checkpoint is due.
    pub records: u64,
    /// The time after which a checkpoint is due if there are new records.
    pub every: Duration,
    /// The trust domain of the brokers.
    pub trust_domain: String,
    /// The name of the log.
    pub log: String,
    /// The broker's clock, for the audit records.
    pub clock: Clock,
}

/// The log, compared with a head that was in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Compared {
    /// The log has that head, or begins after it.
    Agrees,
    /// The log begins after this later head: the record is in a segment, if a broker sealed it.
    Sealed(Head),
    /// The log contradicts it, for this reason.
    Contradicts(AlarmKind, String),
}

/// The state of the keeper between two rounds.
#[derive(Debug, Default)]
pub(super) struct KeeperState {
    /// The memory, once it was read.
    memory: Option<Memory>,
    /// Set while the memory is newer than its file: an alarm stands also if it cannot be written.
    is_unwritten: bool,
    /// Set once the alarm is in the broker's log.
    is_logged: bool,
    /// The intermediates that count.
    pub(super) trust: CheckpointTrust,
    /// Verifies the records after the trusted checkpoint, each once; none before the first round and after an alarm.
    pub(super) verifier: Option<LogVerifier>,
    /// The number of the record that the newest checkpoint names whose own record is in the log; 0 if none is known.
    carried: u64,
    /// The rounds in a row in which records left the store between two reads.
    disturbed: u32,
    /// The end of the log at the last search for an acceptance that found none.
    pub(super) searched: Option<Head>,
    /// The moment at which the trusted checkpoint was made or found, as [`boottime`] counts.
    renewed: Duration,
}

impl CheckpointKeeper {
    /// Keeps until the process ends.
    ///
    /// # Errors
    /// Never: a round that fails is tried again.
    pub async fn keep(self, reporter: RoundReporter) -> anyhow::Result<()> {
        let mut state = KeeperState { renewed: boottime(), ..KeeperState::default() };
        loop {
            let round = self.round(&mut state).await;
            reporter.report(boottime(), round.map_err(|error| format!("{error:#}")));
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = self.checkpoints.due.notified() => {}
            }
        }
    }

    /// Goes round once.
    pub(super) async fn round(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        if state.memory.is_none() {
            state.memory = Some(self.file.read()?);
        }
        let outcome = self.look(state).await;
        let head = self.store.audit_head().await.ok();
        let uncovered = state.verifier.as_ref().map_or(0, |verifier| verifier.coverage().uncovered);
        if let Some(memory) = &state.memory {
            self.checkpoints.show(memory, head, state.carried);
            telemetry::audit_checkpoints(memory.alarm.is_some(), uncovered);
        }
        outcome
    }

    async fn look(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        self.take_up_acceptance(state).await?;
        if state.alarm().is_none() {
            self.check(state).await?;
        }
        if state.alarm().is_some() {
            self.find_acceptance(state).await?;
        }
        // An alarm is recorded also if the file cannot be written.
        let saved = self.save(state);
        self.record_alarm(state).await?;
        saved.and_then(|()| self.save(state))?;
        if state.alarm().is_none() { self.make_if_due(state).await } else { Ok(()) }
    }

    /// Compares the log with the trusted checkpoint and with those of agents, and reads the new records.
    async fn check(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        self.learn_signers(state);
        if self.compare_offered(state).await? {
            return Ok(());
        }
        let trusted = state.trusted().map(|trusted| trusted.checkpoint.clone());
        if let Some(trusted) = &trusted {
            match self.compare(trusted.head()).await? {
                Compared::Agrees => {}
                Compared::Contradicts(kind, reason) => {
                    raise(state, None, kind, reason);
                    return Ok(());
                }
                Compared::Sealed(base) => return self.go_on_from(state, base, trusted).await,
            }
        }
        let accepted = trusted.as_ref().and_then(|trusted| trusted.accepted);
        if let Some(broken) = self.checkpoints.take_broken(accepted) {
            raise_broken(state, &broken);
            return Ok(());
        }
        if state.verifier.is_none() {
            state.verifier = Some(self.verifier(state).await?);
        }
        let Some(verifier) = state.verifier.as_mut() else { return Ok(()) };
        if read_on(&self.store, verifier).await?.is_err() {
            // Records that were read before the store had confirmed them may be gone by right: read again from the checkpoint.
            let base = beginning(&self.store).await?;
            let mut verifier = self.verifier(state).await?;
            if let Err(broken) = read_on(&self.store, &mut verifier).await? {
                state.verifier = None;
                // Another broker may have sealed records between two reads: the next round goes on from the base.
                if let Some(trusted) = &trusted
                    && let Compared::Sealed(_) = self.compare(trusted.head()).await?
                {
                    return Ok(());
                }
                if !self.is_disturbed(state, base).await? {
                    raise_broken(state, &broken);
                }
                return Ok(());
            }
            state.verifier = Some(verifier);
        }
        self.adopt(state)
    }

    /// Takes up the roots and the revocations of this moment. What was read under others is read again.
    pub(super) fn learn_signers(&self, state: &mut KeeperState) {
        let trust = self.revocations.checkpoint_trust(self.authority.roots());
        if state.trust != trust {
            (state.trust, state.verifier, state.carried) = (trust, None, 0);
        }
    }

    /// Compares the log with the checkpoints that agents have shown, and forgets each one only then. Reports whether one raised the alarm.
    async fn compare_offered(&self, state: &mut KeeperState) -> anyhow::Result<bool> {
        for kept in self.checkpoints.offered() {
            if self.binds(state, &kept)
                // Of a record that left the store its segment tells; the trusted checkpoint vouches for what follows.
                && let Compared::Contradicts(kind, reason) = self.compare(kept.checkpoint.head()).await?
            {
                raise(state, Some(kept.clone()), kind, reason);
            }
            self.checkpoints.forget_offered(&kept);
            if state.alarm().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reports whether the log must agree with an agent's checkpoint.
    fn binds(&self, state: &KeeperState, kept: &SignedCheckpoint) -> bool {
        // From before the acceptance of another log, it proves nothing.
        let trusted = state.trusted().map(|trusted| trusted.checkpoint.accepted);
        kept.checkpoint.log == self.log
            && trusted.is_none_or(|accepted| kept.checkpoint.accepted >= accepted)
            && state.trust.verify(kept, Some(&self.trust_domain)).is_ok()
    }

    /// Reports whether records left the store since it began after `base`, so that a read which found the log broken proves nothing.
    /// The next round reads again, unless that has happened too often.
    async fn is_disturbed(&self, state: &mut KeeperState, base: Head) -> anyhow::Result<bool> {
        let is_disturbed = beginning(&self.store).await?.seq > base.seq;
        state.disturbed = if is_disturbed { state.disturbed + 1 } else { 0 };
        Ok(is_disturbed && state.disturbed <= MAX_DISTURBED)
    }

    /// Trusts the newest checkpoint that the log agrees with, if another broker has made it.
    fn adopt(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        state.disturbed = 0;
        let Some(verifier) = &state.verifier else { return Ok(()) };
        state.carried = state.carried.max(verifier.coverage().carried);
        match verifier.coverage().newest.clone() {
            Some(found) if state.trusted() != Some(&found) => self.trust(state, found),
            Some(_) | None => Ok(()),
        }
    }

    /// Compares the log with a head that was in it.
    pub(super) async fn compare(&self, head: Head) -> anyhow::Result<Compared> {
        let Some(before) = head.seq.checked_sub(1) else { return Ok(Compared::Agrees) };
        let Head { seq, hash } = head;
        let lines = self.store.audit_lines(before, 1).await?;
        let Some((_, line)) = lines.first() else {
            return Ok(Compared::Contradicts(
                AlarmKind::WentBack,
                format!(
                    "it no longer has record {seq}, which a signed checkpoint names with the hash {hash}"
                ),
            ));
        };
        let found = head_of_line(line);
        if found == Some(head) {
            return Ok(Compared::Agrees);
        }
        if found.is_some_and(|found| found.seq > seq) {
            // Only the first record of the store can be without the one before it.
            let base = beginning(&self.store).await?;
            if base == head {
                return Ok(Compared::Agrees);
            }
            if base.seq > seq {
                return Ok(Compared::Sealed(base));
            }
        }
        let reason =
            format!("its record {seq} is another than a signed checkpoint names with the hash {hash}");
        Ok(Compared::Contradicts(AlarmKind::Rewritten, reason))
    }

    /// Goes on from the base of a log whose records up to the trusted checkpoint's, and further, left the store. Only a signed
    /// checkpoint of a record that follows from the base shows that a broker sealed them.
    async fn go_on_from(
        &self,
        state: &mut KeeperState,
        base: Head,
        trusted: &Checkpoint,
    ) -> anyhow::Result<()> {
        let mut verifier = LogVerifier::from_head(base, state.trust.clone());
        if let Err(broken) = read_on(&self.store, &mut verifier).await? {
            if !self.is_disturbed(state, base).await? {
                raise_broken(state, &broken);
            }
            return Ok(());
        }
        let vouches = |found: &SignedCheckpoint| {
            let Checkpoint { log, seq, accepted, .. } = &found.checkpoint;
            *log == trusted.log && *seq >= base.seq && *accepted >= trusted.accepted
        };
        match verifier.coverage().newest.clone().filter(vouches) {
            Some(found) => {
                self.trust(state, found)?;
                state.verifier = Some(verifier);
                self.adopt(state)
            }
            None if self.is_disturbed(state, base).await? => Ok(()),
            None => {
                let reason = format!(
                    "its records up to {} left the store, and no signed checkpoint vouches for those that are left",
                    base.seq
                );
                raise(state, None, AlarmKind::Rewritten, reason);
                Ok(())
            }
        }
    }

    /// Makes a verifier of the records after the trusted checkpoint, or of the whole log.
    async fn verifier(&self, state: &KeeperState) -> anyhow::Result<LogVerifier> {
        let trust = state.trust.clone();
        Ok(match state.trusted().cloned() {
            Some(trusted) => LogVerifier::after(trusted, trust),
            None => LogVerifier::from_head(beginning(&self.store).await?, trust),
        })
    }

    /// Logs the alarm and writes it into the audit log, once.
    async fn record_alarm(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        let Some(memory) = state.memory.clone() else { return Ok(()) };
        let Some(alarm) = memory.alarm.clone().filter(|alarm| !alarm.recorded) else { return Ok(()) };
        let action = alarm.kind.action();
        // Before the record: who reads it finds the alarm in the status.
        self.checkpoints.show(&memory, self.store.audit_head().await.ok(), state.carried);
        // A store that refuses the record is asked again in each round.
        if !std::mem::replace(&mut state.is_logged, true) {
            tracing::error!(
                event = action,
                reason = alarm.reason,
                "the audit log contradicts a signed checkpoint"
            );
        }
        let mut event =
            AuditEvent::done(self.clock.now(), "broker", action).with("reason", alarm.reason.clone());
        if let Some(Checkpoint { seq, hash, at, .. }) =
            memory.trusted.as_ref().map(|trusted| &trusted.checkpoint)
        {
            event = event.with("trusted_seq", seq).with("trusted_hash", hash).with("trusted_at", at);
        }
        self.store.commit(Transaction::default().audit(event)).await.context("cannot record the alarm")?;
        state.memory = Some(Memory { alarm: Some(Alarm { recorded: true, ..alarm }), ..memory });
        state.is_unwritten = true;
        Ok(())
    }

    /// Makes a checkpoint, if one is due.
    async fn make_if_due(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        let Some(verifier) = &state.verifier else { return Ok(()) };
        let (head, uncovered) = (verifier.head(), verifier.coverage().uncovered);
        let is_late = boottime().saturating_sub(state.renewed) >= self.every;
        let is_due = match state.trusted() {
            None => head.seq > 0,
            Some(_) if uncovered >= self.records || (uncovered > 0 && is_late) => true,
            // The authority has another root since, or its signer was revoked: readers could not verify it, or would not believe it.
            Some(trusted) => state.trust.verify(trusted, None).is_err(),
        };
        if !is_due {
            return Ok(());
        }
        // A checkpoint outlives a failover, so each record that it covers has to.
        self.store.confirm().await.context("cannot confirm the audit log for a checkpoint")?;
        if self.compare(head).await? != Compared::Agrees {
            state.verifier = None;
            return Ok(());
        }
        let accepted = state.trusted().and_then(|trusted| trusted.checkpoint.accepted);
        let made = self.sign(state, head, accepted)?;
        self.trust(state, made.clone())?;
        state.verifier = Some(LogVerifier::after(made.clone(), state.trust.clone()));
        log_checkpoint(&made);
        // It gives way to nothing: without its record no other broker could believe the log after what it covers has left the store.
        match self.store.commit(Transaction::default().audit(self.record_of(&made))).await {
            Ok(_) => {
                state.carried = made.checkpoint.seq;
                Ok(())
            }
            // The file, the journal and the agents have it.
            Err(StoreError::Full(_) | StoreError::LowOnSpace { .. }) => Ok(()),
            Err(error) => Err(error).context("cannot write the checkpoint into the audit log"),
        }
    }

    pub(super) fn sign(
        &self,
        state: &KeeperState,
        head: Head,
        accepted: Option<jiff::Timestamp>,
    ) -> anyhow::Result<SignedCheckpoint> {
        let signer = self.authority.intermediate().key;
        anyhow::ensure!(
            !state.trust.revoked.contains(&signer),
            "this broker signs no checkpoint of the audit log, because its intermediate {signer} is revoked; run `postern-broker \
             authority renew --root-key FILE` on its machine"
        );
        let checkpoint = Checkpoint::of(&self.trust_domain, &self.log, head, wall(), accepted);
        self.authority.sign_checkpoint(checkpoint).context("cannot sign a checkpoint of the audit log")
    }

    pub(super) fn record_of(&self, checkpoint: &SignedCheckpoint) -> AuditEvent {
        AuditEvent::done(self.clock.now(), "broker", CHECKPOINT_ACTION).with(CHECKPOINT_DETAIL, checkpoint)
    }

    pub(super) fn trust(&self, state: &mut KeeperState, checkpoint: SignedCheckpoint) -> anyhow::Result<()> {
        let memory = state.memory.clone().unwrap_or_default().trusting(checkpoint);
        self.remember(state, memory)?;
        state.renewed = boottime();
        Ok(())
    }

    /// Writes the memory before anything follows from it.
    fn remember(&self, state: &mut KeeperState, memory: Memory) -> anyhow::Result<()> {
        self.file.write(&memory)?;
        (state.memory, state.is_unwritten) = (Some(memory), false);
        Ok(())
    }

    /// Writes the memory, if it is newer than its file.
    fn save(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        if let Some(memory) = state.memory.as_ref().filter(|_| state.is_unwritten) {
            self.file.write(memory)?;
            state.is_unwritten = false;
        }
        Ok(())
    }
}

/// Raises the alarm, which stands from now on although its file is written later in the round. `kept` is the checkpoint of an agent that
/// shows the contradiction.
fn raise(state: &mut KeeperState, kept: Option<SignedCheckpoint>, kind: AlarmKind, reason: String) {
    let alarm = Alarm { kind, reason, since: wall(), recorded: false };
    let trusted = kept.or_else(|| state.trusted().cloned());
    let accepted = state.memory.as_ref().and_then(|memory| memory.accepted.clone());
    state.memory = Some(Memory { trusted, accepted, alarm: Some(alarm) });
    (state.is_unwritten, state.is_logged) = (true, false);
    (state.verifier, state.carried, state.searched, state.disturbed) = (None, 0, None, 0);
}

fn raise_broken(state: &mut KeeperState, Broken { line, problem }: &Broken) {
    raise(state, None, AlarmKind::Broken, format!("record {line} {problem}"));
}

impl KeeperState {
    pub(super) fn trusted(&self) -> Option<&SignedCheckpoint> {
        self.memory.as_ref()?.trusted.as_ref()
    }

    /// Returns the time of the last acceptance that this broker knows.
    pub(super) fn accepted(&self) -> Option<jiff::Timestamp> {
        let memory = self.memory.as_ref()?;
        let known = [&memory.trusted, &memory.accepted].into_iter().flatten();
        known.filter_map(|known| known.checkpoint.accepted).max()
    }

    pub(super) fn alarm(&self) -> Option<&Alarm> {
        self.memory.as_ref()?.alarm.as_ref()
    }
}

/// Returns the head after which the log in the store begins: the empty one, unless its first records have left the store.
///
/// # Errors
/// The store failed.
pub(crate) async fn beginning(store: &Store) -> Result<Head, StoreError> {
    let lines = store.audit_lines(0, 1).await?;
    let first = lines.first().and_then(|(_, line)| serde_json::from_str::<AuditRecord>(line).ok());
    Ok(first.map_or(Head::EMPTY, |first| first.before()))
}

/// Verifies every line from the verifier's head to the end of the log, and the checkpoints that are known of it.
///
/// # Errors
/// The store failed; the inner error names the first line that is not as it was written, or that contradicts a checkpoint.
pub(crate) async fn read_on(
    store: &Store,
    verifier: &mut LogVerifier,
) -> Result<Result<(), Broken>, StoreError> {
    loop {
        let lines = store.audit_lines(verifier.head().seq, PAGE_SIZE).await?;
        let is_last = lines.len() < PAGE_SIZE;
        for (_, line) in lines {
            if let Err(broken) = verifier.line(&line) {
                return Ok(Err(broken));
            }
        }
        if is_last {
            return Ok(verifier.end());
        }
    }
}

pub(super) fn log_checkpoint(made: &SignedCheckpoint) {
    let Checkpoint { seq, hash, .. } = &made.checkpoint;
    tracing::info!(event = "audit.checkpoint", seq, %hash, checkpoint = %made, "signed a checkpoint of the audit log");
}
