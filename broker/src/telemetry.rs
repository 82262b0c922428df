//! The metrics: every one with its name, its labels and its meaning. Tests compare the documentation, the dashboard and the
//! alert rules with this table. Durations are in seconds.

mod agent_gauge;
mod grant_progress;
mod instrumented;
mod lease_change;
mod names;
mod sample;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use metrics::Label;
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use postern_core::agent_keys::Cloned;
use postern_store::RoomStatus;

use crate::limits::Limit;
use crate::signals::parts::Reasons;
use crate::signals::rounds::Round;
pub use agent_gauge::AgentGauge;
pub use grant_progress::GrantProgress;
pub use instrumented::InstrumentedStore;
pub use lease_change::LeaseChange;
pub(crate) use names::*;
pub use names::{ALL, Metric, MetricKind};
pub use sample::{SAMPLE_INTERVAL, keep_sampling};

/// Counts a change of a lease.
pub fn lease_changed(change: LeaseChange) {
    metrics::counter!(LEASE_CHANGES, "why" => change.word()).increment(1);
}

/// Counts a connection or call that a limit refused or ended.
pub(crate) fn limited(limit: Limit) {
    metrics::counter!(LIMITED, "limit" => limit.word()).increment(1);
}

/// Counts a refusal that has no record of its own.
pub(crate) fn denial_omitted() {
    metrics::counter!(DENIALS_OMITTED).increment(1);
}

/// Shows whether the audit log contradicts a trusted checkpoint, and how many records no checkpoint covers.
pub(crate) fn audit_checkpoints(alarm: bool, uncovered: u64) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    metrics::gauge!(AUDIT_UNCOVERED).set(uncovered as f64);
    metrics::gauge!(AUDIT_ALARM).set(f64::from(u8::from(alarm)));
}

/// Shows the room that the store has left.
pub(crate) fn store_room(room: Option<&RoomStatus>) {
    #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
    metrics::gauge!(STORE_FREE).set(room.map_or(0.0, |status| status.room.free as f64));
    metrics::gauge!(STORE_LOW).set(f64::from(u8::from(room.is_some_and(RoomStatus::is_low))));
}

/// Counts the reads of the store that met a forged record.
pub(crate) fn forged_records_met(reads: u64) {
    metrics::counter!(STORE_FORGED).increment(reads);
}

/// Shows how many handshakes are in progress.
pub(crate) fn handshakes(count: usize) {
    connections("handshake", count);
}

/// Shows how many connections there are of a kind.
pub(crate) fn connections(kind: &'static str, count: usize) {
    metrics::gauge!(CONNECTIONS, "kind" => kind).set(u32::try_from(count).unwrap_or(u32::MAX));
}

/// Shows how far the wall clock is ahead of the broker's own.
pub(crate) fn clock_ahead(ahead: SignedDuration) {
    metrics::gauge!(CLOCK_AHEAD).set(ahead.as_secs_f64());
}

/// Shows how far the broker's clock is ahead of its store's.
pub(crate) fn clock_ahead_of_store(ahead: SignedDuration) {
    metrics::gauge!(CLOCK_AHEAD_OF_STORE).set(ahead.as_secs_f64());
}

/// Shows when a certificate ends.
pub(crate) fn certificate_ends(certificate: &'static str, end: Timestamp) {
    metrics::gauge!(CERTIFICATE_EXPIRY, "certificate" => certificate).set(end.as_duration().as_secs_f64());
}

/// Counts an attempt to renew the authority's intermediate that failed.
pub(crate) fn authority_renewal_failed() {
    metrics::counter!(AUTHORITY_RENEWAL_FAILURES).increment(1);
}

/// Counts a refused attempt of an agent's clone.
pub(crate) fn agent_cloned(sign: Cloned) {
    metrics::counter!(AGENT_CLONES, "sign" => sign.word()).increment(1);
}

/// Shows the age of each task's last round.
pub(crate) fn rounds(rounds: &[Round], now: Duration) {
    for round in rounds {
        metrics::gauge!(TASK_ROUND_AGE, "task" => round.task.word()).set(round.age(now).as_secs_f64());
    }
}

/// Makes the recorder of the metrics, with the buckets of every histogram.
///
/// # Errors
/// A histogram without buckets.
pub fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in &ALL {
        match metric.kind {
            MetricKind::Histogram(buckets) => {
                builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
            }
            MetricKind::Counter | MetricKind::Gauge => {}
        }
    }
    Ok(builder.build_recorder())
}

/// Installs the recorder for this process.
///
/// # Errors
/// It does already.
pub fn install(reasons: &Reasons) -> anyhow::Result<PrometheusHandle> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| anyhow::anyhow!("{error}"))?;
    begin();
    ready(reasons);
    Ok(handle)
}

/// Describes every metric, and sets it to zero: a rate over an absent counter misses its first count.
pub fn begin() {
    for metric in &ALL {
        match metric.kind {
            MetricKind::Counter => metrics::describe_counter!(metric.name, metric.what),
            MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.what),
            MetricKind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.what),
        }
        for labels in metric.labels() {
            match metric.kind {
                MetricKind::Counter => metrics::counter!(metric.name, labels).increment(0),
                MetricKind::Gauge => metrics::gauge!(metric.name, labels).set(0),
                // The histogram only has to exist: a sample of zero would be one that was never taken.
                MetricKind::Histogram(_) => drop(metrics::histogram!(metric.name, labels)),
            }
        }
    }
    metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1);
}

/// Shows whether the broker is ready, and the parts that are not.
pub(crate) fn ready(reasons: &Reasons) {
    metrics::gauge!(READY).set(f64::from(u8::from(reasons.is_empty())));
    for part in PARTS {
        metrics::gauge!(NOT_READY, "part" => part).set(f64::from(u8::from(reasons.contains_key(part))));
    }
}

impl Metric {
    /// Returns each set of labels with which the metric exists from the start.
    fn labels(&self) -> Vec<Vec<Label>> {
        match self.label {
            None => vec![Vec::new()],
            Some((name, values)) => values.iter().map(|value| vec![Label::new(name, *value)]).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
