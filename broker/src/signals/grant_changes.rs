//! Grant changes: which grants changed, for callers who watch them. They carry ids only; a watcher reads the store.

use postern_core::GrantId;
use tokio::sync::broadcast;

/// The number of changes by which a watcher may fall behind before it has to read everything again.
const BACKLOG: usize = 4096;

/// A message to a watcher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantChange {
    /// A grant changed.
    Of(GrantId),
    /// Changes were missed: any grant may have changed.
    Missed,
}

/// The channel from the parts that change grants to every watcher.
#[derive(Debug, Clone)]
pub struct GrantChanges {
    sender: broadcast::Sender<GrantChange>,
}

impl Default for GrantChanges {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG) }
    }
}

impl GrantChanges {
    /// Sends every watcher that this grant changed. No watcher need be there.
    pub fn changed(&self, grant: GrantId) {
        self.sender.send(GrantChange::Of(grant)).ok();
    }

    /// Sends every watcher that changes were missed.
    pub fn missed(&self) {
        self.sender.send(GrantChange::Missed).ok();
    }

    /// Receives every change from now on.
    pub fn watch(&self) -> broadcast::Receiver<GrantChange> {
        self.sender.subscribe()
    }
}
