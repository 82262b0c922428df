//! Tampering: someone else changed our table. It is put back at once, and reported with the process that did it (I9).
//!
//! A change that is heard of is only a reason to look: the keeper tells whether anything was wrong. What it finds wrong
//! without having been told, when it looks anyway, is reported too, with no process.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::firewall::watch::{Change, Watch};
use crate::keeper::{Damage, KeeperHandle, Mended};
use crate::reports::{Report, Reporter};
use crate::status::Board;

/// Where tampering is told.
#[derive(Debug, Clone)]
pub struct Tampering {
    /// For the broker's audit log.
    pub reporter: Reporter,
    /// For `status`.
    pub board: Arc<Board>,
}

impl Tampering {
    /// Has every change mended that is heard of. Ends only when nothing can be heard any more.
    ///
    /// # Errors
    /// The watch is broken.
    pub async fn mend(self, mut watch: Watch, keeper: KeeperHandle) -> anyhow::Result<()> {
        loop {
            let change = watch.changed().await?;
            let changed = clock::boottime();
            let mended = keeper.mend().await;
            if let Some(Damage { what, .. }) = mended.damage {
                self.tell(what, change, clock::boottime().since(changed), mended.whole);
            }
        }
    }

    /// Tells of damage that was found though no change was heard of.
    pub fn unheard(&self, found: Mended) {
        if let Some(Damage { what, exposed_at_most }) = found.damage {
            self.tell(what, Change::default(), exposed_at_most, found.whole);
        }
    }

    fn tell(&self, what: String, by: Change, exposed_for: Duration, whole: bool) {
        let Change { process, pid } = by;
        tracing::warn!(what, process, pid, ?exposed_for, whole, "someone else changed our table");
        self.board.tampered();
        let what = if whole { what } else { format!("{what}; it could not be put back yet") };
        self.reporter.report(Report { what, process, pid, exposed_for });
    }
}
