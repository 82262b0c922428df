//! Grant changes: which grants changed, for callers who watch them. They carry ids only; a watcher reads the store. Each change has
//! a number, so that watchers can share one read of its grant.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use postern_core::GrantId;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

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
    sender: broadcast::Sender<(u64, GrantChange)>,
    /// The number of the newest change.
    newest: Arc<AtomicU64>,
}

/// The changes that a watcher receives.
#[derive(Debug)]
pub struct GrantWatcher(broadcast::Receiver<(u64, GrantChange)>);

impl Default for GrantChanges {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG), newest: Arc::default() }
    }
}

impl GrantChanges {
    /// Sends every watcher that this grant changed. No watcher need be there.
    pub fn changed(&self, grant: GrantId) {
        self.send(GrantChange::Of(grant));
    }

    /// Sends every watcher that changes were missed.
    pub fn missed(&self) {
        self.send(GrantChange::Missed);
    }

    /// Receives every change from now on.
    pub fn watch(&self) -> GrantWatcher {
        GrantWatcher(self.sender.subscribe())
    }

    /// Returns the number of the newest change. A read of the store that begins later shows that change and all before it.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    fn send(&self, change: GrantChange) {
        let number = self.newest.fetch_add(1, Ordering::SeqCst) + 1;
        self.sender.send((number, change)).ok();
    }
}

impl GrantWatcher {
    /// Receives the next change.
    ///
    /// # Errors
    /// The watcher has fallen behind, or the broker is ending.
    pub async fn recv(&mut self) -> Result<GrantChange, RecvError> {
        self.recv_numbered().await.map(|(_, change)| change)
    }

    /// Receives the next change with its number.
    ///
    /// # Errors
    /// The watcher has fallen behind, or the broker is ending.
    pub async fn recv_numbered(&mut self) -> Result<(u64, GrantChange), RecvError> {
        self.0.recv().await
    }
}
