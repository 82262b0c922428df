//! Tampering: someone else changed our table. It is put back at once, and reported with the process that did it (I9).
//!
//! A change that is heard of is only a reason to look: the reconciler tells whether anything was wrong. What it finds wrong
//! without having been told, when it looks anyway, is reported too, with no process.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::firewall::watch::{TableChange, TableWatch};
use crate::host_reconciler::{Damage, ReconcilerHandle, RepairOutcome};
use crate::reports::{Report, Reporter};
use crate::status::StatusFile;

/// Where tampering is told.
#[derive(Debug, Clone)]
pub struct Tampering {
    /// For the broker's audit log.
    pub reporter: Reporter,
    /// For `status`.
    pub status_file: Arc<StatusFile>,
}

impl Tampering {
    /// Repairs the table after every change that the watch reports. Ends only when the watch fails.
    ///
    /// # Errors
    /// The watch is broken.
    pub async fn repair(self, mut watch: TableWatch, reconciler: ReconcilerHandle) -> anyhow::Result<()> {
        loop {
            let change = watch.changed().await?;
            let changed = clock::boottime();
            let outcome = reconciler.repair().await;
            if let Some(Damage { what, .. }) = outcome.damage {
                self.report(what, change, clock::boottime().since(changed), outcome.in_sync);
            }
        }
    }

    /// Tells of damage that was found though no change was heard of.
    pub fn report_unattributed(&self, found: RepairOutcome) {
        if let Some(Damage { what, exposed_at_most }) = found.damage {
            self.report(what, TableChange::default(), exposed_at_most, found.in_sync);
        }
    }

    fn report(&self, what: String, by: TableChange, exposed_for: Duration, in_sync: bool) {
        let TableChange { process, pid } = by;
        tracing::warn!(what, process, pid, ?exposed_for, in_sync, "someone else changed our table");
        self.status_file.tampered();
        let what = if in_sync { what } else { format!("{what}; it could not be put back yet") };
        self.reporter.report(Report { what, process, pid, exposed_for });
    }
}
