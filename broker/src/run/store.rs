//! The store of a broker that runs: it is opened, asked for its newest record, and left with a word where it has lost records.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord};
use postern_store::embedded::Embedded;
use postern_store::redis::{Redis, RedisSettings};
use postern_store::single_broker::SingleBroker;
use postern_store::{Coordination, Sealing, Store, Transaction};

use crate::clock::Clock;
use crate::config::{BrokerConfig, plain_warning};
use crate::records_key::RecordsKeyFile;

/// The time limit of the record of a loss.
const RECORD_TIMEOUT: Duration = Duration::from_secs(3);

/// A store, and its side of the cluster.
pub type OpenedStore = (Store, Arc<dyn Coordination>);

/// Opens the store that the configuration names, and logs what its settings cannot promise.
///
/// # Errors
/// It cannot be opened.
pub async fn open(config: &BrokerConfig) -> anyhow::Result<OpenedStore> {
    let key = RecordsKeyFile::of(config);
    let sealing = key.load_or_make().context("cannot use the records key")?;
    let opened = open_sealed(config, &sealing).await?;
    // Only now: a broker that dies before goes on to seal the records that it found.
    key.settle()?;
    Ok(opened)
}

async fn open_sealed(config: &BrokerConfig, sealing: &Sealing) -> anyhow::Result<OpenedStore> {
    let Some(settings) = &config.redis else {
        let store = Embedded::open(&config.store_path(), sealing).with_context(|| {
            format!("cannot open {}; was `postern-broker init` run?", config.store_path().display())
        })?;
        return Ok((store, Arc::new(SingleBroker::default())));
    };
    let redis = Arc::new(Redis::open(settings, sealing).await.context("cannot open the store on Redis")?);
    if let Some(warning) = plain_warning(settings) {
        tracing::warn!(event = "store.plain", %warning, "the store is reached in plain text");
    }
    for warning in Redis::warnings(settings).await.context("cannot look at Redis's settings")? {
        tracing::warn!(%warning, "Redis cannot keep what is promised");
    }
    Ok((redis.store(), redis))
}

/// Returns the time of the newest audit record; the clock never falls behind it.
pub(super) async fn newest_record(store: &Store) -> anyhow::Result<Timestamp> {
    let head = store.audit_head().await?;
    let Some(before) = head.seq.checked_sub(1) else { return Ok(Timestamp::UNIX_EPOCH) };
    let lines = store.audit_lines(before, 1).await?;
    let record = lines.first().and_then(|(_, line)| serde_json::from_str::<AuditRecord>(line).ok());
    // A broken line is for `audit verify` to name; it must not keep the broker from closing what is open.
    Ok(record.map_or(Timestamp::UNIX_EPOCH, |record| record.event.at))
}

/// Waits until the store has lost records, or works no more, and then fails with the reason.
///
/// # Errors
/// Always, once that happens.
pub(super) async fn watch_for_loss(
    store: Store,
    reopening: Option<(RedisSettings, Sealing)>,
    clock: Clock,
) -> anyhow::Result<()> {
    let reason = tokio::select! {
        reason = store.lost() => reason,
        reason = store.ended() => anyhow::bail!(reason),
    };
    tracing::error!(event = "store.went_back", reason, "the store has lost records; this broker ends");
    if let Some((settings, sealing)) = reopening {
        record_loss(&settings, &sealing, &reason, clock).await;
    }
    Err(anyhow::anyhow!(reason))
}

/// Records a loss in the audit log that goes on without the lost records (I9). The store as it was opened is believed no more.
async fn record_loss(settings: &RedisSettings, sealing: &Sealing, reason: &str, clock: Clock) {
    let event = AuditEvent::done(clock.now(), "broker", "store.went_back").with("reason", reason);
    let recording = async {
        let redis = Arc::new(Redis::open(settings, sealing).await?);
        redis.store().commit(Transaction::default().audit(event)).await?;
        redis.leave().await
    };
    match tokio::time::timeout(RECORD_TIMEOUT, recording).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot record the loss in the audit log"
            )
        }
        Err(_) => {
            tracing::error!("cannot record the loss in the audit log: the store did not answer in time")
        }
    }
}
