//! Checkpoints of the audit log: heads that a broker vouches for, so that a rewritten or cut log shows (I9).
//!
//! **The problem.** The chain of the audit log shows a changed line, but a program that can write the store can write a whole chain
//! with correct hashes, or leave out its end. Nothing in the store can show that.
//!
//! **The words.**
//!
//! - A *checkpoint* ([`Checkpoint`]) says that at a time the log had a record with this number and this hash. A broker signs
//!   it with a key that is not in the store (`pki/src/checkpoint.rs`), and it is kept outside the store: by each broker, by
//!   every agent, by the command of each operator, and in the journals of the brokers' machines.
//! - A record is *covered* if a checkpoint names it or a record after it.
//! - The *acceptance* of a checkpoint is the time at which an operator last accepted that the log is another than the
//!   checkpoints before had vouched for, for instance after a restore of the store.
//!
//! **The rule.** Of two checkpoints of one log with the same acceptance, the one of the higher number was made of a longer
//! log, and both heads are in it. A checkpoint with a later acceptance takes the place of every one with an earlier one.
//!
//! **The form.** The signature covers the text of [`Checkpoint::to_text`], which begins with words that no certificate
//! begins with, so that no signature of one can be taken for one of the other.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::audit::{Hash, Head};

/// The action of the audit records that carry a checkpoint.
pub const CHECKPOINT_ACTION: &str = "audit.checkpoint";
/// The detail of such a record that holds the checkpoint.
pub const CHECKPOINT_DETAIL: &str = "checkpoint";
/// The difference between the clocks of two brokers that is no sign of a log that went back.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(120);

/// The first line of the text that is signed.
const TITLE: &str = "postern audit checkpoint v1";

/// A head of the audit log at a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The trust domain of the brokers that write the log.
    pub trust_domain: String,
    /// The name of the log among those of one trust domain: the tenant of the store on Redis, otherwise the trust domain.
    pub log: String,
    /// The number of the record.
    pub seq: u64,
    /// The hash of the record.
    pub hash: Hash,
    /// The time of the signature, by the wall clock, in whole seconds.
    pub at: Timestamp,
    /// The time at which an operator last accepted another log; none if no operator ever did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Timestamp>,
}

/// The relation of a checkpoint to one that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The checkpoint is of a longer log, or an operator accepted another log since: it takes the place of the kept one.
    Newer,
    /// The checkpoint names the same head, or an earlier one that the kept one does not contradict.
    NoNewer,
    /// The checkpoint was made later, of a shorter log or under an earlier acceptance: the log went back.
    WentBack,
    /// The checkpoint names another hash for the same record: the log was rewritten.
    Rewritten,
}

impl Checkpoint {
    /// Makes the checkpoint of a head at a time, which is cut to whole seconds.
    pub fn of(trust_domain: &str, log: &str, head: Head, at: Timestamp, accepted: Option<Timestamp>) -> Self {
        let whole = |at: Timestamp| Timestamp::from_second(at.as_second()).unwrap_or(at);
        let (trust_domain, log) = (trust_domain.to_owned(), log.to_owned());
        Self {
            trust_domain,
            log,
            seq: head.seq,
            hash: head.hash,
            at: whole(at),
            accepted: accepted.map(whole),
        }
    }

    /// Returns the head that the checkpoint names.
    pub fn head(&self) -> Head {
        Head { seq: self.seq, hash: self.hash }
    }

    /// Formats the text that is signed: a title and one line `name: value` for each field, each ended by a line feed.
    pub fn to_text(&self) -> String {
        let accepted = self.accepted.map_or_else(|| "never".to_owned(), |at| at.to_string());
        format!(
            "{TITLE}\ntrust_domain: {}\nlog: {}\nseq: {}\nhash: {}\nat: {}\naccepted: {accepted}\n",
            self.trust_domain, self.log, self.seq, self.hash, self.at
        )
    }

    /// Compares a checkpoint with this one, which is kept. Signatures are not looked at. One of another log takes the place of
    /// the kept one: its store has moved, and only a broker can have signed that.
    pub fn relation_of(&self, other: &Self) -> Relation {
        if other.log != self.log {
            return Relation::Newer;
        }
        let is_later = other.at.duration_since(self.at) > CLOCK_TOLERANCE;
        match (other.accepted.cmp(&self.accepted), other.seq.cmp(&self.seq)) {
            (Ordering::Greater, _) | (Ordering::Equal, Ordering::Greater) => Relation::Newer,
            (Ordering::Equal, Ordering::Equal) if other.hash != self.hash => Relation::Rewritten,
            (Ordering::Less, _) | (Ordering::Equal, Ordering::Less) if is_later => Relation::WentBack,
            (Ordering::Less | Ordering::Equal, _) => Relation::NoNewer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn checkpoint(seq: u64, at: i64) -> Checkpoint {
        Checkpoint::of("postern", "postern", Head { seq, hash: Hash::ZERO }, second(at), None)
    }

    #[test]
    fn i9_the_signed_text_has_one_line_for_each_field() {
        let checkpoint = Checkpoint { accepted: Some(second(60)), ..checkpoint(7, 120) };
        let zeros = "0".repeat(64);
        assert_eq!(
            checkpoint.to_text(),
            format!(
                "postern audit checkpoint v1\ntrust_domain: postern\nlog: postern\nseq: 7\nhash: {zeros}\n\
                 at: 1970-01-01T00:02:00Z\naccepted: 1970-01-01T00:01:00Z\n"
            )
        );
        assert!(super::tests::checkpoint(7, 1).to_text().ends_with("\naccepted: never\n"));
    }

    #[test]
    fn i9_a_longer_log_is_newer_and_a_shorter_one_went_back_only_if_it_was_signed_later() {
        let kept = checkpoint(100, 1000);
        for (seq, at, relation) in [
            (101, 1001, Relation::Newer),
            (101, 1, Relation::Newer),
            (100, 2000, Relation::NoNewer),
            (99, 900, Relation::NoNewer),
            // Another broker looked at the log a moment before, and its clock is ahead.
            (99, 1120, Relation::NoNewer),
            (99, 1121, Relation::WentBack),
        ] {
            assert_eq!(kept.relation_of(&checkpoint(seq, at)), relation, "{seq} at {at}");
        }
    }

    #[test]
    fn i9_another_hash_for_one_record_is_a_rewritten_log_whenever_it_was_signed() {
        let other = Checkpoint { hash: "1".repeat(64).parse().unwrap(), ..checkpoint(100, 1) };
        assert_eq!(checkpoint(100, 1000).relation_of(&other), Relation::Rewritten);
    }

    #[test]
    fn i9_a_log_that_an_operator_accepted_takes_the_place_of_the_one_before() {
        let kept = checkpoint(100, 1000);
        let accepted = Checkpoint { accepted: Some(second(1500)), ..checkpoint(3, 1500) };
        assert_eq!(kept.relation_of(&accepted), Relation::Newer);
        assert_eq!(accepted.relation_of(&kept), Relation::NoNewer, "a broker that has not seen it yet");
        assert_eq!(accepted.relation_of(&checkpoint(200, 1700)), Relation::WentBack);
    }
}
