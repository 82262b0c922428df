//! The audit outbox: records of the cloud layer on their way to the audit log (I9). A record waits for the store; the cloud layer
//! does not wait for the record.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postern_core::Grant;
use postern_core::audit::AuditEvent;
use postern_runtime::error_chain::error_chain;
use postern_store::{Store, Transaction};
use tokio::sync::Notify;

use crate::clock::boottime;
use crate::signals::rounds::RoundReporter;
use crate::telemetry;

/// A stray window was closed: its grant is unknown to the store.
pub(super) const UNKNOWN: &str = "cloud.unknown_window_closed";
/// A stray window was closed: its grant is over.
const ENDED: &str = "cloud.ended_window_closed";
/// A rule among a target's own was removed that was no window: another principal made or edited it.
pub(super) const FOREIGN: &str = "cloud.foreign_rule_removed";
/// The pause after a failure of the store.
const RETRY: Duration = Duration::from_millis(500);

/// Events on their way to the audit log, in order. They are kept in memory until the store has them.
#[derive(Debug, Default)]
pub(super) struct AuditOutbox {
    waiting: Mutex<VecDeque<AuditEvent>>,
    notify: Notify,
}

impl AuditOutbox {
    /// Queues a record.
    pub(super) fn push(&self, event: AuditEvent) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        self.notify.notify_one();
    }

    /// Takes every record that waits.
    pub(super) fn take(&self) -> Vec<AuditEvent> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }

    /// Writes the queued records into the audit log, until the process ends.
    ///
    /// # Errors
    /// Never: a failing store is retried.
    pub(super) async fn keep_writing(&self, store: &Store, reporter: &RoundReporter) -> anyhow::Result<()> {
        loop {
            let events = self.take();
            if events.is_empty() {
                self.notify.notified().await;
                continue;
            }
            let events = classified(events, store, reporter).await;
            let transaction = events.iter().cloned().fold(Transaction::default(), Transaction::audit);
            while let Err(error) = store.commit(transaction.clone()).await {
                tracing::error!(%error, events = events.len(), "the audit records wait for the store");
                reporter.failed(boottime(), error_chain(&error));
                tokio::time::sleep(RETRY).await;
            }
            reporter.succeeded(boottime());
        }
    }
}

/// Classifies each closed stray window, now that the store can be asked: late close, stale read, or unknown grant (alarm).
async fn classified(mut events: Vec<AuditEvent>, store: &Store, reporter: &RoundReporter) -> Vec<AuditEvent> {
    for event in events.iter_mut().filter(|event| event.action == UNKNOWN) {
        let Some(id) = event.grant else { continue };
        loop {
            match store.genuine::<Grant>(&id).await {
                Ok(Some(_)) => ENDED.clone_into(&mut event.action),
                Ok(None) => metrics::counter!(telemetry::CLOUD_UNKNOWN).increment(1),
                Err(error) => {
                    tracing::error!(%error, "the audit records wait for the store");
                    reporter.failed(boottime(), error_chain(&error));
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
            break;
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use postern_store::Expect;
    use postern_store::testing::memory::Memory;

    use super::*;
    use crate::signals::rounds::Task;
    use crate::testing::builders::{a_grant, at};
    use crate::testing::reporter;

    #[tokio::test]
    async fn only_the_window_of_a_grant_that_the_store_does_not_know_is_recorded_as_unknown() {
        let store = Memory::default();
        let (known, stray) = (a_grant().number(1).build(), a_grant().number(2).build());
        let event = |grant| AuditEvent::done(at(0), "broker", UNKNOWN).on_grant(grant);
        store
            .commit(Transaction::default().put_grant(known.clone(), Expect::Absent).audit(event(known.id)))
            .await
            .unwrap();
        let records =
            classified(vec![event(known.id), event(stray.id)], &store, &reporter(Task::AuditOutbox)).await;
        assert_eq!(records.iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), [ENDED, UNKNOWN]);
    }
}
