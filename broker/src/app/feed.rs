//! The feed: tells watchers which grant changed. It carries ids only; watchers read the store.

use postern_core::GrantId;
use tokio::sync::broadcast;

/// How many changes a watcher may fall behind before it has to read everything anew.
const BACKLOG: usize = 4096;

/// What a watcher hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// This grant changed.
    Of(GrantId),
    /// Changes were missed: any may have.
    Missed,
}

/// Tells which grants changed.
#[derive(Debug, Clone)]
pub struct Feed {
    sender: broadcast::Sender<Change>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG) }
    }
}

impl Feed {
    /// Tells every watcher. Nobody listening is fine.
    pub fn changed(&self, grant: GrantId) {
        self.sender.send(Change::Of(grant)).ok();
    }

    /// Tells every watcher that something was missed.
    pub fn missed(&self) {
        self.sender.send(Change::Missed).ok();
    }

    /// Hears every change from now on.
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.sender.subscribe()
    }
}
