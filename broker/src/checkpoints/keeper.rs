//! The keeper: checks the log against the trusted checkpoint, and makes the next one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use postern_core::audit::{AuditEvent, AuditRecord, Broken, Head, head_of_line};
use postern_core::checkpoint::{CHECKPOINT_ACTION, CHECKPOINT_DETAIL, Checkpoint};
use postern_pki::{Authority, LogVerifier, SignedCheckpoint};
use postern_store::{Store, StoreError, Transaction};

use super::Checkpoints;
use super::alarm::{Alarm, AlarmKind};
use super::memory::{Memory, MemoryFile};
use crate::clock::{Clock, boottime, wall};
use crate::signals::rounds::RoundReporter;
use crate::telemetry;

/// The interval at which the keeper looks at the log.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The lines that one read of the store returns at most.
const PAGE_SIZE: usize = 500;

/// Keeps the trusted checkpoint of this broker.
pub struct CheckpointKeeper {
    /// The store.
    pub store: Store,
    /// The authority that signs.
    pub authority: Arc<Authority>,
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
    /// Verifies the records after the trusted checkpoint, each once; none before the first round and after an alarm.
    pub(super) verifier: Option<LogVerifier>,
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
            self.checkpoints.show(memory, head);
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
        self.record_alarm(state).await?;
        if state.alarm().is_none() { self.make_if_due(state).await } else { Ok(()) }
    }

    /// Compares the log with the trusted checkpoint and with those of agents, and reads the new records.
    async fn check(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        for kept in self.checkpoints.take_offered() {
            let trusted = state.trusted().map(|trusted| trusted.checkpoint.accepted);
            // From before the acceptance of another log, it proves nothing.
            if trusted.is_some_and(|accepted| kept.checkpoint.accepted < accepted) {
                continue;
            }
            // Of a record that left the store its segment tells; the trusted checkpoint vouches for what follows.
            if let Compared::Contradicts(kind, reason) = self.compare(kept.checkpoint.head()).await? {
                return self.raise(state, Some(kept), kind, reason);
            }
        }
        let trusted = state.trusted().map(|trusted| trusted.checkpoint.clone());
        if let Some(trusted) = &trusted {
            match self.compare(trusted.head()).await? {
                Compared::Agrees => {}
                Compared::Contradicts(kind, reason) => return self.raise(state, None, kind, reason),
                Compared::Sealed(base) => return self.go_on_from(state, base, trusted).await,
            }
        }
        let accepted = trusted.as_ref().and_then(|trusted| trusted.accepted);
        if let Some(Broken { line, problem }) = self.checkpoints.take_broken(accepted) {
            return self.raise(state, None, AlarmKind::Broken, format!("record {line} {problem}"));
        }
        if state.verifier.is_none() {
            state.verifier = Some(self.verifier(state.trusted().cloned()).await?);
        }
        let Some(verifier) = state.verifier.as_mut() else { return Ok(()) };
        if read_on(&self.store, verifier).await?.is_err() {
            // Records that were read before the store had confirmed them may be gone by right: read again from the checkpoint.
            let mut verifier = self.verifier(state.trusted().cloned()).await?;
            if let Err(Broken { line, problem }) = read_on(&self.store, &mut verifier).await? {
                // Another broker may have sealed records between two reads: the next round goes on from the base.
                if let Some(trusted) = &trusted
                    && let Compared::Sealed(_) = self.compare(trusted.head()).await?
                {
                    return Ok(());
                }
                return self.raise(state, None, AlarmKind::Broken, format!("record {line} {problem}"));
            }
            state.verifier = Some(verifier);
        }
        self.adopt(state)
    }

    /// Trusts the newest checkpoint that the log agrees with, if another broker has made it.
    fn adopt(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        let found = state.verifier.as_ref().and_then(|verifier| verifier.coverage().newest.clone());
        match found {
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
        let mut verifier = LogVerifier::from_head(base, self.authority.roots());
        if let Err(Broken { line, problem }) = read_on(&self.store, &mut verifier).await? {
            return self.raise(state, None, AlarmKind::Broken, format!("record {line} {problem}"));
        }
        let vouches = |found: &SignedCheckpoint| {
            let Checkpoint { log, seq, accepted, .. } = &found.checkpoint;
            *log == trusted.log && *seq >= base.seq && *accepted >= trusted.accepted
        };
        match verifier.coverage().newest.clone().filter(vouches) {
            Some(found) => {
                state.verifier = Some(verifier);
                self.trust(state, found)
            }
            None => {
                let reason = format!(
                    "its records up to {} left the store, and no signed checkpoint vouches for those that are left",
                    base.seq
                );
                self.raise(state, None, AlarmKind::Rewritten, reason)
            }
        }
    }

    /// Makes a verifier of the records after the trusted checkpoint, or of the whole log.
    async fn verifier(&self, trusted: Option<SignedCheckpoint>) -> anyhow::Result<LogVerifier> {
        let roots = self.authority.roots();
        Ok(match trusted {
            Some(trusted) => LogVerifier::after(trusted, roots),
            None => LogVerifier::from_head(beginning(&self.store).await?, roots),
        })
    }

    /// Raises the alarm. `kept` is the checkpoint of an agent that shows the contradiction.
    fn raise(
        &self,
        state: &mut KeeperState,
        kept: Option<SignedCheckpoint>,
        kind: AlarmKind,
        reason: String,
    ) -> anyhow::Result<()> {
        state.verifier = None;
        let alarm = Alarm { kind, reason, since: wall(), recorded: false };
        let trusted = kept.or_else(|| state.trusted().cloned());
        let accepted = state.memory.as_ref().and_then(|memory| memory.accepted.clone());
        self.remember(state, Memory { trusted, accepted, alarm: Some(alarm) })
    }

    /// Logs the alarm and writes it into the audit log, once.
    async fn record_alarm(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        let Some(memory) = state.memory.clone() else { return Ok(()) };
        let Some(alarm) = memory.alarm.clone().filter(|alarm| !alarm.recorded) else { return Ok(()) };
        let action = alarm.kind.action();
        tracing::error!(
            event = action,
            reason = alarm.reason,
            "the audit log contradicts a signed checkpoint"
        );
        let mut event =
            AuditEvent::done(self.clock.now(), "broker", action).with("reason", alarm.reason.clone());
        if let Some(Checkpoint { seq, hash, at, .. }) =
            memory.trusted.as_ref().map(|trusted| &trusted.checkpoint)
        {
            event = event.with("trusted_seq", seq).with("trusted_hash", hash).with("trusted_at", at);
        }
        self.store.commit(Transaction::default().audit(event)).await.context("cannot record the alarm")?;
        self.remember(state, Memory { alarm: Some(Alarm { recorded: true, ..alarm }), ..memory })
    }

    /// Makes a checkpoint, if one is due.
    async fn make_if_due(&self, state: &mut KeeperState) -> anyhow::Result<()> {
        let Some(verifier) = &state.verifier else { return Ok(()) };
        let (head, uncovered) = (verifier.head(), verifier.coverage().uncovered);
        let is_late = boottime().saturating_sub(state.renewed) >= self.every;
        let is_due = match state.trusted() {
            None => head.seq > 0,
            Some(_) if uncovered >= self.records || (uncovered > 0 && is_late) => true,
            // The authority has another root since: readers of the present one could not verify it.
            Some(trusted) => trusted.verify(&self.authority.roots(), None).is_err(),
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
        let made = self.sign(head, accepted)?;
        self.trust(state, made.clone())?;
        state.verifier = Some(LogVerifier::after(made.clone(), self.authority.roots()));
        log_checkpoint(&made);
        let changes = Transaction::default().audit(self.record_of(&made)).giving_way();
        match self.store.commit(changes).await {
            // The file, the journal and the agents have it.
            Ok(_) | Err(StoreError::Full(_) | StoreError::LowOnSpace { .. }) => Ok(()),
            Err(error) => Err(error).context("cannot write the checkpoint into the audit log"),
        }
    }

    pub(super) fn sign(
        &self,
        head: Head,
        accepted: Option<jiff::Timestamp>,
    ) -> anyhow::Result<SignedCheckpoint> {
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
        state.memory = Some(memory);
        Ok(())
    }
}

impl KeeperState {
    pub(super) fn trusted(&self) -> Option<&SignedCheckpoint> {
        self.memory.as_ref()?.trusted.as_ref()
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
    Ok(first.map_or(Head::EMPTY, |first| Head { seq: first.seq.saturating_sub(1), hash: first.prev }))
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
