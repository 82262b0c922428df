//! Notices a store that went back: one whose audit log ends before a record that this process knows to be in it.
//!
//! Such a store has lost records: by a failover without WAIT, or because the server is empty. Policies may be missing from
//! it, and an agent that got such a state would protect nothing (I1), so this process no longer uses it.
//!
//! Answers overtake each other: a command that is sent later may be answered earlier, with a later head. A head may therefore
//! be held only against what was known *when its command was sent*. [`RollbackGuard::ask`] is the one way to check a head, and
//! it sends the command itself, so that no caller can take that moment too late.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};

use postern_core::audit::Head;
use tokio::sync::watch;

use super::error::{failed, message};
use crate::store::StoreError;

/// The newest audit record that the store is known to have, and the alarm if the store has lost it.
#[derive(Debug)]
pub(super) struct RollbackGuard {
    /// The number of the newest record that the store may not lose any more.
    known: AtomicU64,
    /// Set if a record counts only after replicas have confirmed it: a failover may lose it before that, and no caller has an
    /// answer for it yet.
    needs_confirmation: bool,
    lost: watch::Sender<Option<String>>,
}

impl RollbackGuard {
    /// Makes a guard that knows of no record. `needs_confirmation`: a record counts once replicas have confirmed it.
    pub(super) fn new(needs_confirmation: bool) -> Self {
        Self { known: AtomicU64::new(0), needs_confirmation, lost: watch::Sender::default() }
    }

    /// Sends a command, which this future does when it is first polled, and checks the head in its answer, if it has one.
    ///
    /// # Errors
    /// The command fails, its head cannot be read, or the head is behind a record that was known when the command was sent.
    pub(super) async fn ask<T>(
        &self,
        command: impl Future<Output = Result<T, StoreError>>,
        head: impl FnOnce(&T) -> Result<Option<Head>, StoreError>,
    ) -> Result<T, StoreError> {
        // A command that is sent twice, because its connection broke, is answered later still: the earlier moment holds.
        let known_at_sending = self.known.load(Ordering::SeqCst);
        let answer = command.await?;
        if let Some(head) = head(&answer)? {
            self.check(known_at_sending, &head)?;
        }
        Ok(answer)
    }

    /// Notes that the store cannot lose the records up to this one: the configured number of replicas have them.
    pub(super) fn confirmed(&self, seq: u64) {
        self.known.fetch_max(seq, Ordering::SeqCst);
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

    fn check(&self, known_at_sending: u64, head: &Head) -> Result<(), StoreError> {
        if !self.needs_confirmation {
            self.confirmed(head.seq);
        }
        if head.seq >= known_at_sending {
            return Ok(());
        }
        let reason = format!(
            "the store went back from audit record {known_at_sending} to {}: it has lost what it had confirmed",
            head.seq
        );
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

    async fn look(guard: &RollbackGuard, seq: u64) -> Result<Head, StoreError> {
        guard.ask(async { Ok(head(seq)) }, |head| Ok(Some(*head))).await
    }

    #[tokio::test]
    async fn an_answer_that_a_later_one_overtook_is_no_rollback() {
        let guard = RollbackGuard::new(false);
        let (answer, answered) = oneshot::channel();
        let command = async { Ok(answered.await.unwrap_or(Head::EMPTY)) };
        let slow = guard.ask(command, |head: &Head| Ok(Some(*head)));
        let overtaking = async {
            look(&guard, 7).await.unwrap();
            answer.send(head(5)).unwrap();
        };
        let (slow, ()) = tokio::join!(slow, overtaking);
        assert_eq!(slow.unwrap(), head(5));
        assert!(guard.lost.borrow().is_none());
    }

    #[tokio::test]
    async fn an_older_head_than_was_known_at_sending_is_a_rollback() {
        let guard = RollbackGuard::new(false);
        look(&guard, 7).await.unwrap();
        let refused = look(&guard, 6).await.unwrap_err();
        assert!(format!("{refused:?}").contains("went back from audit record 7 to 6"), "{refused:?}");
        assert!(guard.lost().await.contains("went back"));
    }

    #[tokio::test]
    async fn a_record_that_no_replica_has_confirmed_may_be_lost() {
        let guard = RollbackGuard::new(true);
        look(&guard, 7).await.unwrap();
        look(&guard, 6).await.unwrap();
        guard.confirmed(7);
        assert!(look(&guard, 6).await.is_err());
    }
}
