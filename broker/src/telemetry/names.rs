//! The table of metrics.

use postern_core::agent_keys::Cloned;

use crate::limits::LABELS as LIMITS;
use crate::signals::parts::{AUTHORITY, ENDING, MEMBERSHIP, RECONCILER, STORE};
use crate::signals::rounds::Task;

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricKind,
    /// The label with its values, if the metric has one.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// The help text.
    pub what: &'static str,
}

/// The kind of a metric.
#[derive(Debug, Clone, Copy)]
pub enum MetricKind {
    /// A number that only rises.
    Counter,
    /// A number that rises and falls.
    Gauge,
    /// Samples, counted in buckets with these upper bounds.
    Histogram(&'static [f64]),
}

pub(crate) const BUILD_INFO: &str = "postern_build_info";
pub(crate) const GRANTS: &str = "postern_grants";
pub(crate) const GRANT_TRANSITIONS: &str = "postern_grant_transitions_total";
pub(crate) const ACTIVATION: &str = "postern_activation_seconds";
pub(crate) const OPEN: &str = "postern_open_seconds";
pub(crate) const CLOSE: &str = "postern_close_seconds";
pub(crate) const EXPIRY_LAG: &str = "postern_expiry_lag_seconds";
pub(crate) const OLDEST_CLOSE: &str = "postern_oldest_close_seconds";
pub(crate) const CONNECTED_AGENTS: &str = "postern_connected_agents";
pub(crate) const AGENT_CLONES: &str = "postern_agent_clones_total";
pub(crate) const CONNECTIONS: &str = "postern_connections";
pub(crate) const LIMITED: &str = "postern_limited_total";
pub(crate) const DENIALS_OMITTED: &str = "postern_denials_omitted_total";
pub(crate) const AUDIT_ALARM: &str = "postern_audit_alarm";
pub(crate) const AUDIT_UNCOVERED: &str = "postern_audit_uncovered_records";
pub(crate) const STORE_CALLS: &str = "postern_store_seconds";
pub(crate) const STORE_FREE: &str = "postern_store_free_bytes";
pub(crate) const STORE_LOW: &str = "postern_store_low_on_space";
pub(crate) const STORE_FORGED: &str = "postern_store_forged_total";
pub(crate) const STORE_FAILURES: &str = "postern_store_failures_total";
pub(crate) const LEASE_CHANGES: &str = "postern_lease_changes_total";
pub(crate) const READY: &str = "postern_ready";
pub(crate) const NOT_READY: &str = "postern_not_ready";
pub(crate) const TASK_ROUND_AGE: &str = "postern_task_round_age_seconds";
pub(crate) const CLOCK_AHEAD: &str = "postern_clock_ahead_seconds";
pub(crate) const CLOCK_AHEAD_OF_STORE: &str = "postern_clock_ahead_of_store_seconds";
pub(crate) const CERTIFICATE_EXPIRY: &str = "postern_certificate_expiry_timestamp_seconds";
pub(crate) const AUTHORITY_RENEWAL_FAILURES: &str = "postern_authority_renewal_failures_total";
pub(crate) const CLOUD_FAILURES: &str = "postern_cloud_failures_total";
pub(crate) const CLOUD_STUCK: &str = "postern_cloud_stuck_targets";
pub(crate) const CLOUD_UNREAD: &str = "postern_cloud_unread_places";
pub(crate) const CLOUD_DRIFT: &str = "postern_cloud_drift_total";
pub(crate) const CLOUD_UNKNOWN: &str = "postern_cloud_unknown_windows_total";
pub(crate) const CLOUD_SWEEP: &str = "postern_cloud_sweep_seconds";

/// The states in which a grant is not over.
pub(crate) const OPEN_STATES: &[&str] = &["pending_approval", "opening", "active", "closing"];
/// The parts that can keep a broker from its work.
pub(crate) const PARTS: [&str; 5] = [STORE, RECONCILER, MEMBERSHIP, AUTHORITY, ENDING];
/// The events of grants; `refused` is a request that did not become a grant.
const EVENTS: &[&str] = &[
    "requested",
    "refused",
    "approved",
    "denied",
    "activated",
    "expired",
    "revoked",
    "superseded",
    "rolled_back",
    "closed",
];
const LAYERS: &[&str] = &["host", "cloud"];
/// The signs by which a clone is found.
const CLONE_SIGNS: &[&str] = &[Cloned::Renewed.word(), Cloned::Unknown.word(), Cloned::SameKey.word()];
/// Handshakes, and the classes of connections after their handshake.
const CONNECTION_KINDS: &[&str] = &["handshake", "anonymous", "people", "administrators", "agents"];
/// The tasks of the broker that go round.
const TASKS: &[&str] = &[
    Task::Reconciler.word(),
    Task::CloudLayer.word(),
    Task::Sweep.word(),
    Task::AuditOutbox.word(),
    Task::Membership.word(),
    Task::Follower.word(),
    Task::PeerStatus.word(),
    Task::Authority.word(),
    Task::Denials.word(),
    Task::Readiness.word(),
    Task::Health.word(),
    Task::Clock.word(),
    Task::Sample.word(),
    Task::Metrics.word(),
    Task::Principals.word(),
    Task::Retention.word(),
    Task::Checkpoints.word(),
    Task::Forgeries.word(),
];
const OPERATIONS: &[&str] = &["commit", "read"];
const CERTIFICATES: &[&str] = &["root", "intermediate", "serving", "store"];
const LEASE_CHANGE_KINDS: &[&str] = &["taken", "taken_over", "forced", "lost", "released"];

/// Buckets from a host on the same switch to a firewall that takes minutes.
const LAYER_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0];
const STORE_SECONDS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
const SWEEP_SECONDS: &[f64] = &[0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0];

/// Every metric of the broker.
pub const ALL: [Metric; 34] = [
    gauge(BUILD_INFO, Some(("version", &[])), "Always 1; the label says which version runs"),
    gauge(GRANTS, Some(("state", OPEN_STATES)), "Grants in the store that are not over, by their state"),
    counter(
        GRANT_TRANSITIONS,
        Some(("event", EVENTS)),
        "Events of grants, counted by the broker that recorded them",
    ),
    histogram(ACTIVATION, LAYER_SECONDS, None, "From the request to every layer's confirmation"),
    histogram(
        OPEN,
        LAYER_SECONDS,
        Some(("layer", LAYERS)),
        "From the request to the layer's confirmation of every window",
    ),
    histogram(
        CLOSE,
        LAYER_SECONDS,
        Some(("layer", LAYERS)),
        "From a grant's revocation or end to the layer's confirmation that every window is closed",
    ),
    histogram(
        EXPIRY_LAG,
        LAYER_SECONDS,
        Some(("layer", LAYERS)),
        "How long after the end of a grant the layer confirmed that every window is closed",
    ),
    gauge(
        OLDEST_CLOSE,
        Some(("layer", LAYERS)),
        "For how long the layer has not confirmed the oldest close that is due; 0 where there is none",
    ),
    gauge(CONNECTED_AGENTS, None, "Agents with a session on this broker"),
    counter(
        AGENT_CLONES,
        Some(("sign", CLONE_SIGNS)),
        "Attempts of agents' clones that this broker refused, by the sign that showed them",
    ),
    gauge(CONNECTIONS, Some(("kind", CONNECTION_KINDS)), "Connections to this broker's port"),
    counter(
        LIMITED,
        Some(("limit", LIMITS)),
        "Connections and calls that one of this broker's limits refused or ended",
    ),
    counter(
        DENIALS_OMITTED,
        None,
        "Refusals without a record of their own in the audit log; a summary there counts them",
    ),
    gauge(
        AUDIT_ALARM,
        None,
        "1 while the audit log contradicts a checkpoint that this broker trusts, otherwise 0",
    ),
    gauge(AUDIT_UNCOVERED, None, "Records of the audit log that no checkpoint covers yet"),
    histogram(
        STORE_CALLS,
        STORE_SECONDS,
        Some(("operation", OPERATIONS)),
        "How long the store took to answer",
    ),
    counter(
        STORE_FAILURES,
        Some(("operation", OPERATIONS)),
        "Calls of the store that failed; a conflict is not a failure",
    ),
    gauge(
        STORE_FREE,
        None,
        "Bytes that the store has left: on the disk of data_dir, or below Redis's maxmemory; 0 if it does not tell",
    ),
    gauge(STORE_LOW, None, "1 while the store is low on space and takes no new grant, otherwise 0"),
    counter(
        STORE_FORGED,
        None,
        "Reads of the store that met a forged record: one that no broker with this records key wrote",
    ),
    counter(
        LEASE_CHANGES,
        Some(("why", LEASE_CHANGE_KINDS)),
        "Leases on targets that this broker took, lost or gave back",
    ),
    gauge(READY, None, "1 while this broker can do its work, otherwise 0"),
    gauge(NOT_READY, Some(("part", &PARTS)), "1 for each part that keeps this broker from its work"),
    gauge(
        TASK_ROUND_AGE,
        Some(("task", TASKS)),
        "How long ago a task of this broker last went round, or began if it has not gone round yet",
    ),
    gauge(
        CLOCK_AHEAD,
        None,
        "How far the machine's wall clock is ahead of the broker's own; negative: behind",
    ),
    gauge(
        CLOCK_AHEAD_OF_STORE,
        None,
        "How far the broker's clock is ahead of the store's, and so of other brokers' on it; negative: behind",
    ),
    gauge(
        CERTIFICATE_EXPIRY,
        Some(("certificate", CERTIFICATES)),
        "When a certificate of this broker ends, in seconds since 1970; 0 where there is none",
    ),
    counter(
        AUTHORITY_RENEWAL_FAILURES,
        None,
        "Attempts of this broker to renew the authority's intermediate that failed",
    ),
    counter(CLOUD_FAILURES, None, "Rounds on a target that failed"),
    gauge(CLOUD_STUCK, None, "Targets whose cloud has failed three times in a row or more"),
    gauge(
        CLOUD_UNREAD,
        None,
        "Accounts, Regions, subscriptions and kinds of resource that the last sweep could not read",
    ),
    counter(CLOUD_DRIFT, None, "Changes in a cloud that Postern did not make"),
    counter(CLOUD_UNKNOWN, None, "Windows closed because no grant was known for them"),
    histogram(CLOUD_SWEEP, SWEEP_SECONDS, None, "How long sweeps of a cloud took"),
];

type Labels = Option<(&'static str, &'static [&'static str])>;

const fn counter(name: &'static str, label: Labels, what: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, label, what }
}

const fn gauge(name: &'static str, label: Labels, what: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, label, what }
}

const fn histogram(name: &'static str, buckets: &'static [f64], label: Labels, what: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram(buckets), label, what }
}
