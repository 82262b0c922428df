//! Periodic counts from the store: the grants in each state, and the age of the oldest close.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::Grant;
use postern_core::plan::Layer;
use postern_runtime::error_chain::error_chain;
use postern_store::Store;

use super::{GRANTS, GrantProgress, OLDEST_CLOSE, OPEN_STATES};
use crate::clock::{Clock, boottime};
use crate::signals::rounds::RoundReporter;

/// The interval of the counts: each reads all open grants.
pub const SAMPLE_INTERVAL: Duration = Duration::from_secs(30);

/// Counts until the process ends.
///
/// # Errors
/// Never: if the store fails, the last counts stay.
pub async fn keep_sampling(
    store: Store,
    progress: Arc<GrantProgress>,
    clock: Clock,
    reporter: RoundReporter,
) -> anyhow::Result<()> {
    loop {
        match store.open_grants().await {
            Ok(grants) => {
                let grants: Vec<Grant> = grants.into_iter().map(|grant| grant.record).collect();
                progress.keep(&grants, clock.now());
                show(&grants, &progress, clock.now());
                reporter.succeeded(boottime());
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot count the grants");
                reporter.failed(boottime(), error_chain(&error));
            }
        }
        tokio::time::sleep(SAMPLE_INTERVAL).await;
    }
}

fn show(grants: &[Grant], progress: &GrantProgress, now: Timestamp) {
    let mut states: BTreeMap<&str, u32> = OPEN_STATES.iter().map(|state| (*state, 0)).collect();
    for grant in grants {
        *states.entry(grant.state.word()).or_default() += 1;
    }
    for (state, count) in states {
        metrics::gauge!(GRANTS, "state" => state).set(count);
    }
    for layer in Layer::ALL {
        let oldest = progress.oldest_close(grants, layer, now);
        metrics::gauge!(OLDEST_CLOSE, "layer" => layer.word()).set(oldest.as_secs_f64());
    }
}
