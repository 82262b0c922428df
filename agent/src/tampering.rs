//! Tampering: another process changed Postern's table. The agent repairs it at once, and reports it with that process (I9).
//!
//! A change that the watch reports is only a reason to look: the reconciler decides whether anything was wrong. Damage that
//! the reconciler finds by its own checks, without a change from the watch, is reported as well, with no process.

use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::firewall::watch::{TableChange, TableWatch};
use crate::host_reconciler::{Damage, ReconcilerHandle, RepairOutcome};
use crate::reports::{RepairReport, Report, Reporter};
use crate::status::StatusFile;

/// The destinations of reports of tampering.
#[derive(Debug, Clone)]
pub struct Tampering {
    /// The queue to the broker, which audits each report.
    pub reporter: Reporter,
    /// The file behind `status`.
    pub status_file: Arc<StatusFile>,
}

impl Tampering {
    /// Repairs the table after every change that the watch reports. Ends only when the watch fails.
    ///
    /// # Errors
    /// The watch failed.
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

    /// Reports damage that the reconciler found without a change from the watch.
    pub fn report_unattributed(&self, found: RepairOutcome) {
        if let Some(Damage { what, exposed_at_most }) = found.damage {
            self.report(what, TableChange::default(), exposed_at_most, found.in_sync);
        }
    }

    fn report(&self, what: String, by: TableChange, exposed_for: Duration, in_sync: bool) {
        let TableChange { process, pid } = by;
        tracing::warn!(what, process, pid, ?exposed_for, in_sync, "another process changed the table");
        self.status_file.tampered();
        let what = if in_sync { what } else { format!("{what}; the agent could not repair it yet") };
        self.reporter.report(Report::Repair(RepairReport { what, process, pid, exposed_for }));
    }
}
