//! The verifications of the audit log: one at a time, and of each record once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::{Broken, Head, head_of_line};
use postern_pki::{CheckpointTrust, LogVerifier, SignedCheckpoint};
use postern_store::{Store, StoreError};

use crate::checkpoints::{Alarm, Checkpoints, beginning, read_on};
use crate::clock::{boottime, wall};

/// The time after which a verification reads every record again.
pub const FULL_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// The reads in a row that records which leave the store may disturb: a read is faster than the broker that seals.
const MAX_DISTURBED: u32 = 10;

/// The result of verifying the audit log.
#[derive(Debug, Clone)]
pub struct Verification {
    /// The head of the lines that verify.
    pub head: Head,
    /// The first line that does not verify, if there is one.
    pub broken: Option<Broken>,
    /// The newest checkpoint that the log agrees with.
    pub checkpoint: Option<SignedCheckpoint>,
    /// The number of records that no checkpoint covers.
    pub uncovered: u64,
    /// The number of the first record that was read.
    pub read_from: u64,
    /// The time of the last verification that read every record; none before the first.
    pub verified_at: Option<Timestamp>,
    /// The number of the record that an operator accepted, where this verification began; none if no operator did.
    pub accepted_record: Option<u64>,
}

/// The verifications of the audit log by this broker.
///
/// One runs at a time, and callers that waited for it share the next: a result is always of a verification that began after
/// the call. A verification begins after the last record that this broker has verified, and first reads that one again: its
/// hash covers every record before it, so a log that was rewritten with correct hashes shows. One that was rewritten without
/// them shows in a full verification, of which one is due after [`FULL_INTERVAL`].
///
/// A log that is found broken twice in a row raises the alarm, and a read in which records left the store counts for neither. While an
/// alarm stands, only a full verification reads the log again. After an acceptance each verification begins at the accepted record.
#[derive(Debug, Default)]
pub struct Verifications {
    /// The number of verifications that have begun.
    begun: AtomicU64,
    pub(super) verified: tokio::sync::Mutex<Verified>,
}

/// The state that the last verification left.
#[derive(Debug, Default)]
pub(super) struct Verified {
    /// The number of the last verification.
    number: u64,
    /// Set if that one read every record.
    was_full: bool,
    outcome: Option<Verification>,
    /// The verifier after the last record that was read; none before the first verification and after one that failed.
    verifier: Option<LogVerifier>,
    /// The last head that verified.
    head: Option<Head>,
    /// The time of the last full verification, as [`boottime`] counts.
    full_at: Duration,
    /// The same time, by the wall clock.
    verified_at: Option<Timestamp>,
    /// The acceptance under which all this was verified.
    accepted: Option<Timestamp>,
    /// The intermediates that counted.
    trust: CheckpointTrust,
    /// The result under an alarm, and that alarm.
    under_alarm: Option<(Alarm, Verification)>,
}

/// The store, and what vouches for its audit log.
pub(crate) struct AuditedStore<'a> {
    pub(crate) store: &'a Store,
    pub(crate) checkpoints: &'a Checkpoints,
    /// The intermediates whose checkpoints count.
    pub(crate) trust: CheckpointTrust,
}

impl Verifications {
    /// Verifies the audit log. `full` asks for every record to be read.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn verify(&self, of: &AuditedStore<'_>, full: bool) -> Result<Verification, StoreError> {
        let arrived = self.begun.load(Ordering::SeqCst);
        let mut verified = self.verified.lock().await;
        if verified.number > arrived
            && (verified.was_full || !full)
            && let Some(outcome) = &verified.outcome
        {
            return Ok(outcome.clone());
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        verified.outcome = None;
        let outcome = verified.run(of, full).await?;
        (verified.number, verified.outcome) = (number, Some(outcome.clone()));
        Ok(outcome)
    }
}

impl Verified {
    async fn run(&mut self, of: &AuditedStore<'_>, full: bool) -> Result<Verification, StoreError> {
        let trusted = of.checkpoints.newest();
        let accepted = trusted.as_ref().and_then(|trusted| trusted.checkpoint.accepted);
        if accepted != self.accepted || of.trust != self.trust {
            // An operator accepted another log, or checkpoints in it count no more: this broker has verified nothing of that one.
            *self = Self { accepted, trust: of.trust.clone(), ..Self::default() };
        }
        let alarm = of.checkpoints.alarm();
        if let (false, Some((under, known))) = (full, &self.under_alarm)
            && alarm.as_ref() == Some(under)
        {
            self.was_full = false;
            return Ok(known.clone());
        }
        let first = self.read(of, full).await?;
        if first.broken.is_none() {
            return Ok(first);
        }
        if let Some(alarm) = alarm {
            self.under_alarm = Some((alarm, first.clone()));
            return Ok(first);
        }
        let again = self.read_again(of).await?;
        if let Some(broken) = &again.broken {
            of.checkpoints.report_broken(accepted, broken.clone());
        }
        Ok(again)
    }

    /// Reads every record of a log that was found broken once more: a failover looks like a broken log, but not twice. Records that
    /// leave the store between two reads do, too, as often as that happens.
    async fn read_again(&mut self, of: &AuditedStore<'_>) -> Result<Verification, StoreError> {
        let mut disturbed = 0;
        loop {
            let base = beginning(of.store).await?;
            let again = self.read(of, true).await?;
            disturbed += 1;
            if again.broken.is_none()
                || disturbed > MAX_DISTURBED
                || beginning(of.store).await?.seq <= base.seq
            {
                return Ok(again);
            }
        }
    }

    async fn read(&mut self, of: &AuditedStore<'_>, full: bool) -> Result<Verification, StoreError> {
        let base = beginning(of.store).await?;
        let accepted = of.checkpoints.accepted().filter(|accepted| accepted.checkpoint.seq >= base.seq);
        let accepted_record = accepted.as_ref().map(|accepted| accepted.checkpoint.seq);
        let first = accepted_record.unwrap_or(base.seq);
        let is_usable =
            |old: &LogVerifier| !full && boottime() < self.full_at + FULL_INTERVAL && old.head().seq >= first;
        let old = self.verifier.take().filter(is_usable);
        self.was_full = old.is_none();
        let mut verifier = match (old, accepted) {
            (Some(verifier), _) => verifier,
            (None, Some(accepted)) => LogVerifier::after(accepted, of.trust.clone()),
            (None, None) => LogVerifier::from_head(base, of.trust.clone()),
        };
        let read_from = verifier.head().seq + 1;
        let before = self.head;
        if let Some(trusted) = of.checkpoints.newest() {
            verifier.expect(trusted.as_ref().clone());
        }
        let mut outcome = read_on(of.store, &mut verifier).await?;
        if outcome.is_ok() {
            outcome = is_still_there(of.store, before).await?;
        }
        if let (Ok(()), Some(alarm)) = (&outcome, of.checkpoints.alarm()) {
            outcome = Err(Broken {
                line: verifier.head().seq,
                problem: format!("cannot be trusted: {}", alarm.reason),
            });
        }
        let coverage = verifier.coverage();
        let now = wall();
        let verification = Verification {
            head: verifier.head(),
            checkpoint: coverage.newest.clone(),
            uncovered: coverage.uncovered,
            read_from,
            verified_at: if self.was_full { Some(now) } else { self.verified_at },
            accepted_record,
            broken: outcome.err(),
        };
        // A record that is not durable yet may be gone by right the next time.
        if verification.broken.is_none() && of.store.confirm().await.is_ok() {
            if self.was_full {
                (self.full_at, self.verified_at) = (boottime(), Some(now));
            }
            self.head = Some(verifier.head());
            self.verifier = Some(verifier);
        }
        Ok(verification)
    }
}

/// Compares the log with a head that this broker has verified before.
async fn is_still_there(store: &Store, verified: Option<Head>) -> Result<Result<(), Broken>, StoreError> {
    let Some((before, head)) = verified.and_then(|head| Some((head.seq.checked_sub(1)?, head))) else {
        return Ok(Ok(()));
    };
    let lines = store.audit_lines(before, 1).await?;
    let found = lines.first().and_then(|(_, line)| head_of_line(line));
    let broken = |problem: &str| Err(Broken { line: head.seq, problem: problem.to_owned() });
    Ok(match found {
        Some(found) if found == head => Ok(()),
        // Its segment has left the store.
        Some(found) if found.seq > head.seq => Ok(()),
        Some(_) => broken("is another than this broker has verified before: the log was rewritten"),
        None => broken("is missing, and this broker has verified it before: the end of the log was cut off"),
    })
}
