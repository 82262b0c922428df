//! The audit log: append-only lines, each chained to the one before by SHA-256 (I9).
//!
//! **The problem.** The log shows who opened a port, and who was refused. It must be possible to detect that a line was
//! changed, removed, inserted or moved, without the broker and without trust in the disk that holds the lines.
//!
//! **The words.**
//!
//! - An *event* ([`AuditEvent`]) is a decision or a change: who did what, on which grant and target, and whether it was
//!   done or denied.
//! - A *record* ([`AuditRecord`]) is an event in its place: one line of JSON with its fields in a fixed order. `seq`
//!   numbers the records from 1, `prev` repeats the hash of the record before, and `hash` is the SHA-256 of the line
//!   without `hash` itself.
//! - The *chain* is the sequence of records that follow each other by `seq` and by `prev`. The first record has
//!   [`Hash::ZERO`] as its `prev`.
//! - The *head* ([`Head`]) is the end of a chain: the number and the hash of its last record.
//! - A *checkpoint* ([`crate::checkpoint`]) is a head that a broker has signed, and that is kept elsewhere.
//!
//! **The rule.** A record never changes once it is written, and each follows the head before it
//! ([`AuditRecord::following`]). The [`Verifier`] accepts a line only if it is, byte for byte, the line that the broker
//! writes for that record after the line before it.
//!
//! **On failure.** A changed line does not match its `hash`. After a line that was removed, inserted or moved, the next
//! `seq` or `prev` does not match. The verifier names the line and the problem ([`Broken`]). A chain whose last lines
//! were cut off is whole, and so is one that was rewritten from some record on. Only a checkpoint shows these two, because
//! the chain no longer has that hash at that number.

use std::collections::BTreeMap;
use std::fmt;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{GrantId, TargetId};

/// A decision or a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEvent {
    /// The time, by the broker's clock.
    pub at: Timestamp,
    /// The actor, as a [`CallerKind`](crate::CallerKind) is written: a principal (`requester/alice`, or with its key in brackets
    /// if another issuer vouches for it), an agent (`agent/host:web-1`), or `broker`.
    pub actor: String,
    /// The action: dotted words such as `grant.requested` or `agent.tampering`.
    pub action: String,
    /// The outcome.
    pub outcome: Outcome,
    /// The grant concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<GrantId>,
    /// The target concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetId>,
    /// Further details, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// The outcome of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The action was done.
    Done,
    /// The action was refused.
    Denied,
}

impl AuditEvent {
    /// Makes the event of an action that was done.
    pub fn done(at: Timestamp, actor: impl fmt::Display, action: &str) -> Self {
        Self {
            at,
            actor: actor.to_string(),
            action: action.to_owned(),
            outcome: Outcome::Done,
            grant: None,
            target: None,
            details: BTreeMap::new(),
        }
    }

    /// Makes the event of an action that was refused.
    pub fn denied(at: Timestamp, actor: impl fmt::Display, action: &str) -> Self {
        Self { outcome: Outcome::Denied, ..Self::done(at, actor, action) }
    }

    /// Adds the grant concerned.
    #[must_use]
    pub fn on_grant(mut self, grant: GrantId) -> Self {
        self.grant = Some(grant);
        self
    }

    /// Adds the target concerned.
    #[must_use]
    pub fn on_target(mut self, target: &TargetId) -> Self {
        self.target = Some(target.clone());
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }
}

/// A SHA-256 value, written in 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash that the first record names as the one before it.
    pub const ZERO: Self = Self([0; 32]);

    fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl std::str::FromStr for Hash {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| "a hash is 64 lower-case hexadecimal digits".to_owned())
    }
}

impl TryFrom<String> for Hash {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Hash> for String {
    fn from(hash: Hash) -> String {
        hash.to_string()
    }
}

/// The end of a log: the number of records, and the hash of the last. A head that is kept elsewhere shows whether
/// the end of the log was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of records, which is the `seq` of the last.
    pub seq: u64,
    /// The hash of the last record.
    pub hash: Hash,
}

impl Head {
    /// The head of an empty log.
    pub const EMPTY: Self = Self { seq: 0, hash: Hash::ZERO };
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditRecord {
    /// 1, 2, 3 and so on, without a gap.
    pub seq: u64,
    /// The hash of the record before.
    pub prev: Hash,
    /// The event.
    pub event: AuditEvent,
    /// SHA-256 of the line `{"seq":…,"prev":…,"event":…}`.
    pub hash: Hash,
}

/// The part of a record that its hash covers.
#[derive(Serialize)]
struct Hashed<'a> {
    seq: u64,
    prev: &'a Hash,
    event: &'a AuditEvent,
}

impl AuditRecord {
    /// Makes the record that follows `head`.
    pub fn following(head: &Head, event: AuditEvent) -> Self {
        let (seq, prev) = (head.seq + 1, head.hash);
        let hash = hash_of(seq, &prev, &event);
        Self { seq, prev, event, hash }
    }

    /// Returns the head of a log that ends with this record.
    pub fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }

    /// Returns the head that this record follows.
    pub fn before(&self) -> Head {
        Head { seq: self.seq.saturating_sub(1), hash: self.prev }
    }

    /// Formats the record as its one line, without the line end.
    pub fn to_line(&self) -> String {
        json(self)
    }
}

fn hash_of(seq: u64, prev: &Hash, event: &AuditEvent) -> Hash {
    Hash::of(json(&Hashed { seq, prev, event }).as_bytes())
}

/// Formats a value as JSON. The values here have text keys, no floats and no foreign `Serialize`, so JSON can
/// express them.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// The place where a log is broken, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct Broken {
    /// The line, counted from 1.
    pub line: u64,
    /// The problem.
    pub problem: String,
}

/// Verifies a log line by line, holding one head in memory.
#[derive(Debug)]
pub struct Verifier {
    head: Head,
    line: u64,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { head: Head::EMPTY, line: 0 }
    }
}

impl Verifier {
    /// Starts after a record whose head is known: the next line must follow it.
    pub fn after(head: Head) -> Self {
        Self { head, line: head.seq }
    }

    /// Verifies the next line, without its line end.
    ///
    /// # Errors
    /// The line is not exactly what the broker wrote after the line before it.
    pub fn line(&mut self, line: &str) -> Result<AuditRecord, Broken> {
        self.line += 1;
        let broken = |problem: String| Broken { line: self.line, problem };
        let record: AuditRecord =
            serde_json::from_str(line).map_err(|error| broken(format!("is not an audit record: {error}")))?;
        if record.to_line() != line {
            return Err(broken("is not written as the broker writes it".into()));
        }
        if record.seq != self.head.seq + 1 {
            let problem = format!("is record {} where record {} belongs", record.seq, self.head.seq + 1);
            return Err(broken(problem));
        }
        if record.prev != self.head.hash {
            return Err(broken("does not follow from the record before it".into()));
        }
        if record.hash != hash_of(record.seq, &record.prev, &record.event) {
            return Err(broken("was changed after it was written: its hash does not match".into()));
        }
        self.head = record.head();
        Ok(record)
    }

    /// Returns the head of the lines so far.
    pub fn head(&self) -> Head {
        self.head
    }
}

/// Returns the head of a log that ends with this line; none if the line is not one that a broker writes. The records before it
/// are not looked at.
pub fn head_of_line(line: &str) -> Option<Head> {
    let record: AuditRecord = serde_json::from_str(line).ok()?;
    Verifier::after(record.before()).line(line).ok().map(|record| record.head())
}

/// Verifies a whole log of lines.
///
/// # Errors
/// The first line that is not what the broker wrote.
pub fn verify<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Head, Broken> {
    let mut verifier = Verifier::default();
    for line in lines {
        verifier.line(line)?;
    }
    Ok(verifier.head())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn a_log(length: usize) -> Vec<String> {
        let mut head = Head::EMPTY;
        (0..length)
            .map(|i| {
                let event = AuditEvent::done(Timestamp::UNIX_EPOCH, "requester/alice", "grant.requested")
                    .with("n", i);
                let record = AuditRecord::following(&head, event);
                head = record.head();
                record.to_line()
            })
            .collect()
    }

    fn check(log: &[String]) -> Result<Head, Broken> {
        verify(log.iter().map(String::as_str))
    }

    #[test]
    fn i9_an_untouched_log_verifies_to_its_head() {
        assert_eq!(check(&a_log(9)).unwrap().seq, 9);
        assert_eq!(check(&[]).unwrap(), Head::EMPTY);
    }

    #[test]
    fn i9_a_removed_line_is_named() {
        let mut log = a_log(9);
        log.remove(4);
        assert_eq!(check(&log).unwrap_err().line, 5);
    }

    #[test]
    fn i9_two_swapped_lines_are_named() {
        let mut log = a_log(9);
        log.swap(2, 6);
        assert_eq!(check(&log).unwrap_err().line, 3);
    }

    #[test]
    fn i9_a_cut_end_shows_against_a_kept_head() {
        let log = a_log(9);
        let kept = check(&log).unwrap();
        assert_ne!(check(&log[..8]).unwrap(), kept);
    }

    proptest! {
        #[test]
        fn i9_any_changed_byte_is_named(line in 0usize..5, at in 0usize..400, flip in 1u8..=255) {
            let mut log = a_log(5);
            let mut bytes = log[line].clone().into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            // A line that is no longer UTF-8 never reaches the verifier as text.
            let Ok(changed) = String::from_utf8(bytes) else { return Ok(()) };
            log[line] = changed;
            let broken = check(&log).unwrap_err();
            prop_assert_eq!(broken.line, line as u64 + 1);
        }
    }
}
