//! What the cloud layer has to tell the audit log (I9). Telling waits for the store; the cloud does not wait for telling.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_core::audit::AuditEvent;
use tokio::sync::Notify;

use super::Clouds;
use crate::store::{Store, Transaction};

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
            let telling = events.iter().cloned().fold(Transaction::default(), Transaction::audit);
            while let Err(error) = store.commit(telling.clone()).await {
                tracing::error!(%error, events = events.len(), "the audit log has to wait for the store");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}
