//! The feed: tells watchers which grant changed. It carries ids only; watchers read the store.

use postern_core::GrantId;
use tokio::sync::broadcast;

/// How many changes a watcher may fall behind before it has to read everything anew.
const BACKLOG: usize = 4096;

/// Tells which grants changed.
#[derive(Debug, Clone)]
pub struct Feed {
    sender: broadcast::Sender<GrantId>,
}

impl Default for Feed {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG) }
    }
}

impl Feed {
    /// Tells every watcher. Nobody listening is fine.
    pub fn changed(&self, grant: GrantId) {
        self.sender.send(grant).ok();
    }

    /// Hears every change from now on.
    pub fn watch(&self) -> broadcast::Receiver<GrantId> {
        self.sender.subscribe()
    }
}
