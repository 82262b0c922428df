//! A log that is verified together with the checkpoints in it, and with those that its reader has kept elsewhere.

use std::collections::VecDeque;

use jiff::Timestamp;
use postern_core::audit::{AuditRecord, Broken, Head, Verifier};
use postern_core::checkpoint::{CHECKPOINT_ACTION, CHECKPOINT_DETAIL, Checkpoint, Relation};

use super::{CheckpointTrust, SignedCheckpoint};

/// The records before a checkpoint's own within which the record that it names must be.
const MAX_REMEMBERED: usize = 4096;

/// Verifies a log line by line: the chain, the checkpoints in the log, and the checkpoints that the reader has kept.
///
/// A record with a checkpoint that no trusted root vouches for says nothing, as an attacker who writes the store can put one there.
#[derive(Debug)]
pub struct LogVerifier {
    chain: Verifier,
    trust: CheckpointTrust,
    /// The number of the last record before the first line.
    begins_after: u64,
    /// The newest records, the last at the end, and whether each one carries a checkpoint.
    recent: VecDeque<(Head, bool)>,
    kept: Vec<SignedCheckpoint>,
    /// The kept checkpoints of records before the first line, which cannot be compared.
    kept_before: Vec<SignedCheckpoint>,
    /// The checkpoints that contradict the lines so far.
    contradicted: Vec<SignedCheckpoint>,
    coverage: Coverage,
}

/// The part of a log that checkpoints cover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// The newest checkpoint that the log agrees with.
    pub newest: Option<SignedCheckpoint>,
    /// The number of records after it, without those that carry a checkpoint.
    pub uncovered: u64,
    /// The number of records with a checkpoint that is not good: no trusted root vouches for it, or its signer is revoked.
    pub untrusted: u64,
    /// The number of the record that the newest good checkpoint *in the log* names; 0 if the lines have none.
    pub carried: u64,
}

impl LogVerifier {
    /// Starts before the first record. Without roots no checkpoint in the log is trusted.
    pub fn new(trust: impl Into<CheckpointTrust>) -> Self {
        Self::on(Verifier::default(), trust)
    }

    /// Starts after a checkpoint that is trusted: the next line must follow the record that it names.
    pub fn after(trusted: SignedCheckpoint, trust: impl Into<CheckpointTrust>) -> Self {
        let head = trusted.checkpoint.head();
        let mut verifier = Self::on(Verifier::after(head), trust);
        verifier.recent.push_back((head, false));
        verifier.coverage.newest = Some(trusted);
        verifier
    }

    /// Starts after a head that was read, and not verified.
    pub fn from_head(head: Head, trust: impl Into<CheckpointTrust>) -> Self {
        let mut verifier = Self::on(Verifier::after(head), trust);
        verifier.recent.push_back((head, false));
        verifier
    }

    fn on(chain: Verifier, trust: impl Into<CheckpointTrust>) -> Self {
        Self {
            begins_after: chain.head().seq,
            chain,
            trust: trust.into(),
            recent: VecDeque::new(),
            kept: Vec::new(),
            kept_before: Vec::new(),
            contradicted: Vec::new(),
            coverage: Coverage::default(),
        }
    }

    /// Requires that the log agrees with a checkpoint that the reader has verified and kept elsewhere. A checkpoint of a record before
    /// the first line cannot be compared: then a good checkpoint in the lines must vouch for what is left, as for records that a broker
    /// sealed. Of a line that was read more than 4,096 lines ago the hash is forgotten: expect a checkpoint before.
    pub fn expect(&mut self, kept: SignedCheckpoint) {
        let seq = kept.checkpoint.seq;
        if seq < self.begins_after {
            if !self.kept_before.contains(&kept) {
                self.kept_before.push(kept);
            }
        } else if seq > self.head().seq {
            self.kept.push(kept);
        } else if let Some((named, _)) = self.recent.iter().find(|(head, _)| head.seq == seq) {
            let agrees = *named == kept.checkpoint.head();
            self.compared(kept, agrees);
        }
    }

    /// Verifies the next line, without its line end.
    ///
    /// # Errors
    /// The line is not what the broker wrote after the line before it.
    pub fn line(&mut self, line: &str) -> Result<AuditRecord, Broken> {
        let record = self.chain.line(line)?;
        let carried = carried(&record);
        self.remember(record.head(), record.event.action == CHECKPOINT_ACTION);
        self.compare_kept(&record);
        if let Some(carried) = carried {
            self.take(&record, carried);
        }
        Ok(record)
    }

    /// Returns the head of the lines so far.
    pub fn head(&self) -> Head {
        self.chain.head()
    }

    /// Returns the part of the lines so far that checkpoints cover.
    pub fn coverage(&self) -> &Coverage {
        &self.coverage
    }

    /// Ends the log after the lines so far.
    ///
    /// # Errors
    /// A checkpoint contradicts the lines, or a kept one names a record that they have not reached: the end of the log was cut off. Or
    /// it names a record before the first line, and no checkpoint of the same log vouches for the lines. A checkpoint from before the acceptance of the log that the lines show contradicts nothing.
    pub fn end(&self) -> Result<(), Broken> {
        let accepted = self.accepted();
        if let Some(by) = self.contradicted.iter().find(|by| by.checkpoint.accepted >= accepted) {
            return Err(contradicted(by));
        }
        let binding = self.kept.iter().filter(|kept| kept.checkpoint.accepted >= accepted);
        if let Some(kept) = binding.max_by_key(|kept| kept.checkpoint.seq) {
            return Err(cut_off(self.head(), kept));
        }
        match self.kept_before.iter().find(|kept| !self.vouches_after(kept)) {
            Some(kept) => Err(unvouched(self.begins_after, kept)),
            None => Ok(()),
        }
    }

    /// Reports whether a good checkpoint of the same log vouches for the lines after those that a kept one named.
    fn vouches_after(&self, kept: &SignedCheckpoint) -> bool {
        self.coverage.newest.as_ref().is_some_and(|newest| {
            let (newest, kept) = (&newest.checkpoint, &kept.checkpoint);
            newest.log == kept.log && newest.accepted >= kept.accepted
        })
    }

    /// Returns the time at which an operator last accepted this log, as its newest checkpoint says.
    fn accepted(&self) -> Option<Timestamp> {
        self.coverage.newest.as_ref().and_then(|newest| newest.checkpoint.accepted)
    }

    fn remember(&mut self, head: Head, carries: bool) {
        if self.recent.len() == MAX_REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back((head, carries));
        self.coverage.uncovered += u64::from(!carries);
    }

    /// Compares the record with the kept checkpoints that name it.
    fn compare_kept(&mut self, record: &AuditRecord) {
        let reached = |kept: &SignedCheckpoint| kept.checkpoint.seq == record.seq;
        while let Some(place) = self.kept.iter().position(reached) {
            let kept = self.kept.swap_remove(place);
            let agrees = kept.checkpoint.hash == record.hash;
            self.compared(kept, agrees);
        }
    }

    /// Takes a checkpoint that a record carries.
    fn take(&mut self, record: &AuditRecord, carried: SignedCheckpoint) {
        if carried.checkpoint.seq >= record.seq || self.trust.verify(&carried, None).is_err() {
            self.coverage.untrusted += u64::from(!self.trust.roots.is_empty());
            return;
        }
        if let Some((named, _)) = self.recent.iter().find(|(head, _)| head.seq == carried.checkpoint.seq) {
            let agrees = *named == carried.checkpoint.head();
            if agrees {
                self.coverage.carried = self.coverage.carried.max(carried.checkpoint.seq);
            }
            self.compared(carried, agrees);
        }
    }

    /// Notes a checkpoint that was compared with its record. Of those that contradict the log, one for each acceptance is enough.
    fn compared(&mut self, checkpoint: SignedCheckpoint, agrees: bool) {
        if agrees {
            self.cover(checkpoint);
        } else if self.contradicted.iter().all(|by| by.checkpoint.accepted < checkpoint.checkpoint.accepted) {
            self.contradicted.push(checkpoint);
        }
    }

    fn cover(&mut self, found: SignedCheckpoint) {
        let newest = self.coverage.newest.as_ref();
        if newest.is_none_or(|newest| newest.checkpoint.relation_of(&found.checkpoint) == Relation::Newer) {
            let after = self.recent.iter().rev().take_while(|(head, _)| head.seq > found.checkpoint.seq);
            self.coverage.uncovered = after.fold(0, |count, (_, carries)| count + u64::from(!carries));
            self.coverage.newest = Some(found);
        }
    }
}

/// Returns the checkpoint that a record carries, if it can be read.
fn carried(record: &AuditRecord) -> Option<SignedCheckpoint> {
    if record.event.action != CHECKPOINT_ACTION {
        return None;
    }
    SignedCheckpoint::parse(record.event.details.get(CHECKPOINT_DETAIL)?).ok()
}

fn cut_off(end: Head, kept: &SignedCheckpoint) -> Broken {
    let Checkpoint { seq, at, .. } = &kept.checkpoint;
    let problem = format!(
        "is missing: the checkpoint of {at} vouches for {seq} records, so the end of the log was cut off"
    );
    Broken { line: end.seq + 1, problem }
}

fn unvouched(begins_after: u64, kept: &SignedCheckpoint) -> Broken {
    let Checkpoint { seq, at, .. } = &kept.checkpoint;
    let problem = format!(
        "is the first one here, after record {seq} that the checkpoint of {at} vouches for, and no signed checkpoint in the log vouches \
         for what follows: the log was rewritten, or the records before are elsewhere; verify them together"
    );
    Broken { line: begins_after + 1, problem }
}

fn contradicted(by: &SignedCheckpoint) -> Broken {
    let at = by.checkpoint.at;
    Broken {
        line: by.checkpoint.seq,
        problem: format!(
            "is another than the checkpoint of {at} vouches for ({}): the log was rewritten",
            by.checkpoint.hash
        ),
    }
}
