//! The status of targets, published by the broker that works on each for those that do not.
//!
//! A grant may have targets at several brokers, and becomes active once all of its windows are open. So each broker publishes
//! how the windows of its targets stand, and reads the statuses of the others. A status counts only together with the lease
//! under which it was published: the store returns no others.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_core::plan::{Layer, Observed};
use postern_core::{Grant, GrantId, GrantState, ProtectedPort, SourcePrefix, TargetId, Window};
use postern_runtime::error_chain::error_chain;
use postern_store::StoreError;
use postern_store::coordination::{Coordination, Lease, PublishedStatus};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::clock::boottime;
use crate::layers::report::LayerReport;
use crate::signals::rounds::RoundReporter;

/// The pause after a failure of the store.
const RETRY: Duration = Duration::from_millis(500);
/// The number of statuses that are published at once.
const MAX_BATCH: usize = 100;

/// The status of one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetStatus {
    /// The report on its host layer.
    pub host: LayerReport,
    /// The report on its cloud layer.
    pub cloud: LayerReport,
    /// Set if something on the way to it replaces the source of connections by its own address.
    pub translated: bool,
    /// The windows of each grant that is not over, in each layer.
    windows: Vec<WindowStatus>,
}

/// The status of one window in one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowStatus {
    grant: GrantId,
    port: ProtectedPort,
    source: SourcePrefix,
    layer: Layer,
    /// Set if the grant was closing already: an observation of a grant that opens says nothing about one that closes.
    closing: bool,
    observed: Observed,
    endpoint: Option<SocketAddr>,
}

impl TargetStatus {
    /// Joins the reports and the windows of a target.
    pub(crate) fn new(
        host: LayerReport,
        cloud: LayerReport,
        translated: bool,
        windows: Vec<WindowStatus>,
    ) -> Self {
        Self { host, cloud, translated, windows }
    }

    fn seen(&self, grant: &Grant, window: &Window, layer: Layer) -> Option<&WindowStatus> {
        self.windows.iter().find(|seen| {
            seen.grant == grant.id
                && seen.port == window.port
                && seen.source == window.source
                && seen.layer == layer
                && seen.closing == is_closing(grant)
        })
    }

    /// Reports whether both say the same, apart from when a layer last answered.
    fn is_same_as(&self, other: &Self) -> bool {
        let still = |report: &LayerReport| LayerReport { last_seen: None, ..report.clone() };
        self.translated == other.translated
            && self.windows == other.windows
            && still(&self.host) == still(&other.host)
            && still(&self.cloud) == still(&other.cloud)
    }
}

impl WindowStatus {
    /// Describes a window of a grant as it was observed in a layer.
    pub(crate) fn of(
        grant: &Grant,
        window: &Window,
        layer: Layer,
        observed: Observed,
        endpoint: Option<SocketAddr>,
    ) -> Self {
        let (port, source, closing) = (window.port, window.source, is_closing(grant));
        Self { grant: grant.id, port, source, layer, closing, observed, endpoint }
    }
}

fn is_closing(grant: &Grant) -> bool {
    matches!(grant.state, GrantState::Closing(_))
}

/// The statuses that other brokers have published of some targets.
#[derive(Debug, Default)]
pub struct PeerStatus {
    targets: HashMap<TargetId, TargetStatus>,
}

impl PeerStatus {
    /// Returns the status of a target, if a broker has published one.
    pub fn of(&self, target: &TargetId) -> Option<&TargetStatus> {
        self.targets.get(target)
    }

    /// Returns the observation of a window in a layer by the broker that works on its target; unconfirmed without one.
    pub fn observe(&self, grant: &Grant, window: &Window, layer: Layer) -> Observed {
        let seen = self.of(&window.target).and_then(|status| status.seen(grant, window, layer));
        seen.map_or(Observed::Unconfirmed, |seen| seen.observed.clone())
    }

    /// Returns the address to connect to for a window, if something on the way translates it.
    pub fn endpoint(&self, grant: &Grant, window: &Window) -> Option<SocketAddr> {
        let status = self.of(&window.target)?;
        Layer::ALL.into_iter().find_map(|layer| status.seen(grant, window, layer)?.endpoint)
    }
}

/// The exchange of statuses with the other brokers.
pub struct StatusExchange {
    coordination: Arc<dyn Coordination>,
    queue: Mutex<Queue>,
    notify: Notify,
}

#[derive(Default)]
struct Queue {
    /// The last status of each target that was published, and the token under which it was.
    published: HashMap<TargetId, (u64, TargetStatus)>,
    waiting: HashMap<TargetId, (Lease, TargetStatus, Vec<TargetId>)>,
}

impl StatusExchange {
    pub(super) fn new(coordination: Arc<dyn Coordination>) -> Self {
        Self { coordination, queue: Mutex::default(), notify: Notify::new() }
    }

    /// Reports whether there can be other brokers to read statuses.
    pub fn is_read(&self) -> bool {
        !self.coordination.is_alone()
    }

    /// Publishes the status of a target, if it differs from the last one; `awaited_by` are the other targets of its grants.
    pub fn publish(&self, lease: &Lease, status: TargetStatus, awaited_by: Vec<TargetId>) {
        let mut queue = self.lock();
        let is_old = queue
            .published
            .get(&lease.target)
            .is_some_and(|(token, last)| *token == lease.token && last.is_same_as(&status));
        if is_old {
            return;
        }
        queue.published.insert(lease.target.clone(), (lease.token, status.clone()));
        queue.waiting.insert(lease.target.clone(), (lease.clone(), status, awaited_by));
        self.notify.notify_one();
    }

    /// Returns the statuses that the other brokers have published of these targets.
    ///
    /// # Errors
    /// The store failed.
    pub async fn read(&self, targets: &[TargetId]) -> Result<PeerStatus, StoreError> {
        if targets.is_empty() || !self.is_read() {
            return Ok(PeerStatus::default());
        }
        let mut statuses = HashMap::new();
        for (target, text) in self.coordination.statuses(targets).await? {
            // A newer broker may write another form: that is as good as no status.
            if let Ok(status) = serde_json::from_str(&text) {
                statuses.insert(target, status);
            }
        }
        Ok(PeerStatus { targets: statuses })
    }

    /// Publishes the statuses that wait, until the process ends.
    ///
    /// # Errors
    /// Never: a failing store is tried again.
    pub async fn keep_publishing(&self, reporter: RoundReporter) -> anyhow::Result<()> {
        loop {
            let group: Vec<PublishedStatus> = {
                let mut queue = self.lock();
                let next: Vec<TargetId> = queue.waiting.keys().take(MAX_BATCH).cloned().collect();
                next.iter().filter_map(|target| queue.waiting.remove(target)).filter_map(encoded).collect()
            };
            if group.is_empty() {
                self.notify.notified().await;
                continue;
            }
            while let Err(error) = self.coordination.publish(group.clone()).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "statuses wait for the store");
                reporter.failed(boottime(), error_chain(&error));
                tokio::time::sleep(RETRY).await;
            }
            reporter.succeeded(boottime());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encoded((lease, status, awaited_by): (Lease, TargetStatus, Vec<TargetId>)) -> Option<PublishedStatus> {
    let status = serde_json::to_string(&status);
    let status = status.inspect_err(|error| tracing::error!(%error, "a status cannot be encoded")).ok()?;
    Some(PublishedStatus { lease, status, awaited_by })
}
