//! Retention: records that are over leave the store.
//!
//! **The problem.** A store that only grows fills its disk or its memory one day, and a Redis keeps everything in memory. But a
//! window that is open, and whatever protects against replay, must never leave.
//!
//! **The words.**
//!
//! - A record is *over* once nothing depends on it any more: a grant that is closed, a join token that has expired, a
//!   certificate that has ended.
//! - The *retention* is how long a record that is over stays. The *cutoff* is the present time less the retention.
//! - A *segment* is a file with a range of the audit log's lines, exactly as the export has them.
//!
//! **The rule.** Once an hour one broker of the store removes the records that were over before the cutoff, in batches of at
//! most 256 writes with a pause after each, so that no request waits for more than one batch. Each record is removed on the
//! condition that it has not changed, with its idempotency key in the same transaction, and each batch is one audit record
//! (`retention.removed`). Records of the audit log that a checkpoint covers ([`crate::checkpoints`]) are first sealed into a segment ([`segments`]), durably, and only then
//! removed. Each broker also gives back its leases on targets that are gone ([`targets`]), with their reports. No database's time to live decides about any of this.
//!
//! **Forged records.** A forged record gives no right, so it leaves as soon as it is met: a grant once the time in its id is before
//! the cutoff, as only those are read, and a token or a principal in the next round. The read names it in the log, the status and the
//! audit log ([`crate::forgeries`]). A forged key of an index that names no record cannot be removed; it is named there, too.
//!
//! **What stays.** The record of a forgotten agent, because it refuses that agent's old certificates; the version of a deleted
//! policy, because a request that was decided under the old policy must not fit a new one of that name; a revocation, because
//! certificates that it covers may still be valid and have no record. These grow with what administrators do, and not with use.
//!
//! **On failure.** A round that fails is repeated after an hour, and each batch is whole or not made. Two brokers that remove
//! at once, because one lost its membership meanwhile, conflict on each record.

mod records;
mod segments;
mod settings;
mod targets;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_store::Store;

use crate::checkpoints::Checkpoints;
use crate::clock::{Clock, boottime};
use crate::cluster::Cluster;
use crate::layers::cloud::CloudLayer;
use crate::signals::rounds::RoundReporter;
pub(crate) use settings::in_days;
pub use settings::{RetentionSettings, Segments};

/// The interval of the rounds.
pub const ROUND_INTERVAL: Duration = Duration::from_secs(3600);
/// The time from the start to the first round.
const FIRST_ROUND: Duration = Duration::from_secs(60);
/// The name of the job, which one broker does at a time.
const JOB: &str = "retention";

/// Removes records that are over.
pub struct RetentionKeeper {
    /// The store.
    pub store: Store,
    /// The other brokers on it.
    pub cluster: Arc<Cluster>,
    /// The cloud layer.
    pub cloud: Arc<CloudLayer>,
    /// The checkpoints of the audit log, which say what may leave.
    pub checkpoints: Arc<Checkpoints>,
    /// The settings.
    pub settings: RetentionSettings,
    /// The broker's clock.
    pub clock: Clock,
}

impl RetentionKeeper {
    /// Removes until the process ends.
    ///
    /// # Errors
    /// Never: a round that fails is repeated.
    pub async fn keep(self, reporter: RoundReporter) -> anyhow::Result<()> {
        tokio::time::sleep(FIRST_ROUND).await;
        loop {
            let round = self.round(self.clock.now()).await.inspect_err(|error| {
                tracing::warn!(
                    event = "retention.failed",
                    error = format!("{error:#}"),
                    "cannot remove records that are over, will retry"
                );
            });
            reporter.report(boottime(), round.map_err(|error| format!("{error:#}")));
            tokio::time::sleep(ROUND_INTERVAL).await;
        }
    }

    /// Removes whatever is due, unless another broker does so now.
    pub(crate) async fn round(&self, now: Timestamp) -> anyhow::Result<()> {
        let leases = &self.cluster.leases;
        // Each broker does this for the targets on which it works.
        targets::forget(&self.store, leases, &self.cloud, self.settings.cutoff(now)).await?;
        // A lock that could not be given back after the last round would keep every broker out, this one too.
        leases.unlock(JOB).await?;
        if !leases.try_lock(JOB).await? {
            return Ok(());
        }
        let removed = self.remove(now).await;
        leases.unlock(JOB).await?;
        removed
    }

    async fn remove(&self, now: Timestamp) -> anyhow::Result<()> {
        let records = records::remove(&self.store, self.settings.cutoff(now), now).await;
        // A segment that cannot be written keeps no record that is over, nor the other way round.
        let sealed = match &self.settings.audit {
            Some(rule) => segments::seal(&self.store, rule, now, &self.checkpoints).await,
            None => Ok(()),
        };
        records?;
        sealed
    }
}

#[cfg(test)]
mod tests;
