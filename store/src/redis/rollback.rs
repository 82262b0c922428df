//! Notices a store that went back: one whose audit log no longer has a record that this process knows to be in it.
//!
//! Such a store has lost records: by a failover without WAIT, because the server is empty, or because it was put back to an
//! older state. Policies may be missing from it, and an agent that got such a state would protect nothing (I1), so this
//! process no longer uses it.
//!
//! **What is known.** The guard keeps one head, the number *and the hash* of the newest record that the store may not lose
//! any more. The number alone does not suffice: a store that was put back and that other brokers have written to since may
//! have grown past it. As each record has the hash of the one before, the one hash stands for every record up to it.
//!
//! **How it is checked.** Every command that returns the head carries the known head. The server looks at the record with the
//! known number, and marks the head in its answer if that is another record (`known.lua`). An answer is an alarm if its head
//! has a lower number, or if it is marked.
//!
//! **The moment.** Answers overtake each other: a command that is sent later may be answered earlier, with a later head. A
//! head may therefore be held only against what was known *when its command was sent*. [`RollbackGuard::ask`] is the one way
//! to check a head, and it sends the command itself, so that no caller can take that moment too late.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};

use postern_core::audit::Head;
use tokio::sync::watch;

use super::error::{failed, message};
use super::keys::head_of;
use crate::error::StoreError;

/// The mark of a head in an answer: the record with the known number is not the known one.
const OTHER: &str = "other ";

/// The newest audit record that the store is known to have, and the alarm if the store has lost it.
#[derive(Debug)]
pub(super) struct RollbackGuard {
    /// The newest record that the store may not lose any more.
    known: Mutex<Head>,
    /// Set if a record counts only after replicas have confirmed it: a failover may lose it before that, and no caller has an
    /// answer for it yet.
    needs_confirmation: bool,
    lost: watch::Sender<Option<String>>,
}

/// The head in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HeadReply {
    /// The head.
    pub(super) head: Head,
    /// Set if the record with the known number is another one, or is not there.
    other: bool,
}

impl HeadReply {
    /// Reads the text that `known.lua` answers.
    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        let (other, head) = text.strip_prefix(OTHER).map_or((false, text), |head| (true, head));
        Ok(Self { head: head_of(head)?, other })
    }
}

impl RollbackGuard {
    /// Makes a guard that knows of no record. `needs_confirmation`: a record counts once replicas have confirmed it.
    pub(super) fn new(needs_confirmation: bool) -> Self {
        Self { known: Mutex::new(Head::EMPTY), needs_confirmation, lost: watch::Sender::default() }
    }

    /// Sends the command that `command` makes for the known head, and checks the head in its answer, if it has one.
    ///
    /// # Errors
    /// The command fails, its head cannot be read, or the store has lost a record that was known when the command was sent.
    pub(super) async fn ask<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        command: impl FnOnce(Head) -> F,
        head: impl FnOnce(&T) -> Result<Option<HeadReply>, StoreError>,
    ) -> Result<T, StoreError> {
        // A command that is sent twice, because its connection broke, is answered later still: the earlier moment holds.
        let known_at_sending = *self.known();
        let answer = command(known_at_sending).await?;
        if let Some(reply) = head(&answer)? {
            self.check(&known_at_sending, &reply)?;
        }
        Ok(answer)
    }

    /// Notes that the store cannot lose the records up to this one: the configured number of replicas have them.
    pub(super) fn confirmed(&self, head: Head) {
        let mut known = self.known();
        if head.seq > known.seq {
            *known = head;
        }
    }

    /// Waits until the store has gone back, and returns the reason.
    pub(super) async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        let reason = lost.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    fn known(&self) -> MutexGuard<'_, Head> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, known: &Head, reply: &HeadReply) -> Result<(), StoreError> {
        let HeadReply { head, other } = reply;
        let (before, now) = (known.seq, head.seq);
        let reason = if now < before {
            format!(
                "the store went back from audit record {before} to {now}: it has lost what it had confirmed"
            )
        } else if *other || (now == before && head.hash != known.hash) {
            format!(
                "the store went back to before audit record {before} and has grown to {now} since: record {before} is \
                 another one now, and it has lost what it had confirmed"
            )
        } else {
            if !self.needs_confirmation {
                self.confirmed(*head);
            }
            return Ok(());
        };
        self.lost.send_replace(Some(reason.clone()));
        Err(failed(message(&reason)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    fn head(seq: u64) -> Head {
        Head { seq, ..Head::EMPTY }
    }

    /// A head of a log that has other records.
    fn foreign(seq: u64) -> Head {
        Head { seq, hash: "ab".repeat(32).parse().unwrap() }
    }

    async fn answer(guard: &RollbackGuard, head: Head, other: bool) -> Result<HeadReply, StoreError> {
        guard.ask(async |_| Ok(HeadReply { head, other }), |reply| Ok(Some(*reply))).await
    }

    async fn look(guard: &RollbackGuard, seq: u64) -> Result<HeadReply, StoreError> {
        answer(guard, head(seq), false).await
    }

    #[tokio::test]
    async fn an_answer_that_a_later_one_overtook_is_no_rollback() {
        let guard = RollbackGuard::new(false);
        let (send, sent) = oneshot::channel();
        let command = async |_| Ok(HeadReply { head: sent.await.unwrap_or(Head::EMPTY), other: false });
        let slow = guard.ask(command, |reply: &HeadReply| Ok(Some(*reply)));
        let overtaking = async {
            look(&guard, 7).await.unwrap();
            send.send(head(5)).unwrap();
        };
        let (slow, ()) = tokio::join!(slow, overtaking);
        assert_eq!(slow.unwrap().head, head(5));
        assert!(guard.lost.borrow().is_none());
    }

    #[tokio::test]
    async fn i1_an_older_head_than_was_known_at_sending_is_a_rollback() {
        let guard = RollbackGuard::new(false);
        look(&guard, 7).await.unwrap();
        let refused = look(&guard, 6).await.unwrap_err();
        assert!(format!("{refused:?}").contains("went back from audit record 7 to 6"), "{refused:?}");
        assert!(guard.lost().await.contains("went back"));
    }

    #[tokio::test]
    async fn i1_a_log_that_has_another_record_at_the_known_number_is_a_rollback() {
        for (now, other) in [(foreign(7), false), (foreign(42), true)] {
            let guard = RollbackGuard::new(false);
            look(&guard, 7).await.unwrap();
            let refused = answer(&guard, now, other).await.unwrap_err();
            assert!(format!("{refused:?}").contains("record 7 is another one now"), "{refused:?}");
            assert!(guard.lost().await.contains("went back"));
        }
    }

    #[tokio::test]
    async fn the_known_head_is_the_newest_one_and_goes_with_each_command() {
        let guard = RollbackGuard::new(false);
        for (seq, known) in [(7, 0), (9, 7), (9, 9)] {
            let command = async |sent: Head| {
                assert_eq!(sent, head(known));
                Ok(HeadReply { head: head(seq), other: false })
            };
            guard.ask(command, |reply| Ok(Some(*reply))).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_record_that_no_replica_has_confirmed_may_be_lost() {
        let guard = RollbackGuard::new(true);
        look(&guard, 7).await.unwrap();
        look(&guard, 6).await.unwrap();
        guard.confirmed(head(7));
        assert!(look(&guard, 6).await.is_err());
    }

    #[test]
    fn a_head_is_read_with_its_mark() {
        let text = format!("42 {}", foreign(42).hash);
        assert_eq!(HeadReply::parse(&text).unwrap(), HeadReply { head: foreign(42), other: false });
        let marked = HeadReply { head: foreign(42), other: true };
        assert_eq!(HeadReply::parse(&format!("other {text}")).unwrap(), marked);
        assert_eq!(HeadReply::parse("").unwrap(), HeadReply { head: Head::EMPTY, other: false });
    }
}
