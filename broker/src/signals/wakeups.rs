//! Wake-ups: the targets at which the reconciler looks next. They carry no data; the reconciler reads the store.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use postern_core::TargetId;
use tokio::sync::Notify;

/// The targets to look at again. A target woken twice is looked at once.
#[derive(Debug, Default)]
pub struct Wakeups {
    targets: Mutex<BTreeSet<TargetId>>,
    notify: Notify,
}

impl Wakeups {
    /// Asks for one target to be looked at.
    pub fn wake(&self, target: &TargetId) {
        self.wake_all([target.clone()]);
    }

    /// Asks for several targets to be looked at.
    pub fn wake_all(&self, targets: impl IntoIterator<Item = TargetId>) {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).extend(targets);
        self.notify.notify_one();
    }

    /// Waits for wake-ups and takes them all.
    pub async fn take(&self) -> BTreeSet<TargetId> {
        loop {
            let taken = std::mem::take(&mut *self.targets.lock().unwrap_or_else(PoisonError::into_inner));
            if !taken.is_empty() {
                return taken;
            }
            self.notify.notified().await;
        }
    }
}
