//! The checkpoints of the audit log on their way to one agent.

use std::sync::Arc;
use std::time::Duration;

use postern_pki::SignedCheckpoint;
use tokio::sync::watch;

use crate::clock::boottime;

/// The least time between two checkpoints that one agent receives.
const INTERVAL: Duration = Duration::from_secs(60);

/// Passes the newest checkpoint to one session: one at its beginning, and then at most one a minute.
#[derive(Debug)]
pub(super) struct CheckpointFeed {
    newest: watch::Receiver<Option<Arc<SignedCheckpoint>>>,
    /// The time of the next one at the earliest, as [`boottime`] counts.
    next_at: Duration,
    reported: bool,
}

impl CheckpointFeed {
    /// Begins with the checkpoint that is there.
    pub(super) fn new(mut newest: watch::Receiver<Option<Arc<SignedCheckpoint>>>) -> Self {
        newest.mark_changed();
        Self { newest, next_at: Duration::ZERO, reported: false }
    }

    /// Waits for the next checkpoint to send. Safe to cancel.
    pub(super) async fn next(&mut self) -> Arc<SignedCheckpoint> {
        tokio::time::sleep(self.next_at.saturating_sub(boottime())).await;
        loop {
            if self.newest.changed().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(newest) = self.newest.borrow_and_update().clone() {
                self.next_at = boottime().saturating_add(INTERVAL);
                return newest;
            }
        }
    }

    /// Reports whether the agent has not reported a contradiction on this session before.
    pub(super) fn takes_report(&mut self) -> bool {
        !std::mem::replace(&mut self.reported, true)
    }
}
