//! What the cloud layer has to tell the audit log (I9). Telling waits for the store; the cloud does not wait for telling.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_core::audit::AuditEvent;
use tokio::sync::Notify;

use super::Clouds;
use crate::measure;
use crate::store::{Store, Transaction};

/// A window was closed that nobody wants: of a grant that the store does not know.
pub(super) const UNKNOWN: &str = "cloud.unknown_window_closed";
/// A window was closed that nobody wants any more: of a grant that is over.
const ENDED: &str = "cloud.ended_window_closed";
/// A rule was removed from among a target's own that was no window: another principal made or edited it.
pub(super) const FOREIGN: &str = "cloud.foreign_rule_removed";
/// How long a failing store is left alone.
const RETRY: Duration = Duration::from_millis(500);

/// Events on their way to the audit log, in order. They are kept in memory until the store has them.
#[derive(Debug, Default)]
pub(super) struct Journal {
    waiting: Mutex<VecDeque<AuditEvent>>,
    notify: Notify,
}

impl Journal {
    /// Tells the audit log, some time soon.
    pub(super) fn tell(&self, event: AuditEvent) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        self.notify.notify_one();
    }

    /// Everything that waits.
    pub(super) fn take(&self) -> Vec<AuditEvent> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

impl Clouds {
    /// Writes what the cloud layer tells into the audit log, until the process ends.
    ///
    /// # Errors
    /// Never: a failing store is retried.
    pub async fn keep_journal(self: Arc<Self>, store: Arc<dyn Store>) -> anyhow::Result<()> {
        loop {
            let events = self.journal.take();
            if events.is_empty() {
                self.journal.notify.notified().await;
                continue;
            }
            let events = self.named(events, store.as_ref()).await;
            let telling = events.iter().cloned().fold(Transaction::default(), Transaction::audit);
            while let Err(error) = store.commit(telling.clone()).await {
                tracing::error!(%error, events = events.len(), "the audit log has to wait for the store");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    /// Gives each window that nobody wanted its right name, now that the store can be asked: that of a grant which is over
    /// was closed too late, or shown by a read that is not the newest; that of a grant nobody knows is an alarm.
    async fn named(&self, mut events: Vec<AuditEvent>, store: &dyn Store) -> Vec<AuditEvent> {
        for event in events.iter_mut().filter(|event| event.action == UNKNOWN) {
            let Some(id) = event.grant else { continue };
            loop {
                match store.grant(id).await {
                    Ok(Some(_)) => ENDED.clone_into(&mut event.action),
                    Ok(None) => metrics::counter!(measure::CLOUD_UNKNOWN).increment(1),
                    Err(error) => {
                        tracing::error!(%error, "the audit log has to wait for the store");
                        tokio::time::sleep(RETRY).await;
                        continue;
                    }
                }
                break;
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::reconcile::Wakeups;
    use crate::replica::Replica;
    use crate::samples::{a_grant, at};
    use crate::store::memory::Memory;
    use crate::store::{Change, Expect};

    #[tokio::test]
    async fn only_the_window_of_a_grant_that_nobody_knows_is_told_as_unknown() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let (known, stray) = (a_grant().number(1).build(), a_grant().number(2).build());
        let put = Change::PutGrant { grant: known.clone(), expect: Expect::Absent };
        let event = |grant| AuditEvent::done(at(0), "broker", UNKNOWN).on_grant(grant);
        store.commit(Transaction::default().change(put).audit(event(known.id))).await.unwrap();

        let clouds = Clouds::new(
            BTreeMap::new(),
            crate::clock::Clock::start(at(0)),
            Arc::new(Wakeups::default()),
            Replica::alone(),
        );
        let named = clouds.named(vec![event(known.id), event(stray.id)], store.as_ref()).await;
        assert_eq!(named.iter().map(|event| event.action.as_str()).collect::<Vec<_>>(), [ENDED, UNKNOWN]);
    }
}
