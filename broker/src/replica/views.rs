//! Views: how a target stands, told by the broker that works on it to those that do not. They decide on a grant's state only
//! together with the lease under which they were told; the store hands out no others.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_core::plan::{Layer, Observed};
use postern_core::{Grant, GrantId, GrantState, ProtectedPort, SourcePrefix, TargetId, Window};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::cloud::Clouds;
use crate::hub::Hub;
use crate::layer::{LayerReport, host_layer};
use crate::store::members::{Lease, Members, Posted};
use crate::store::{StoreError, Versioned};

/// How long a failing store is left alone.
const RETRY: Duration = Duration::from_millis(500);
/// How many views are told at once.
const GROUP: usize = 100;

/// How one target stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its host layer.
    pub host: LayerReport,
    /// Its cloud layer.
    pub cloud: LayerReport,
    /// Whether something on the way to it puts its own address in the place of a connection's source.
    pub translated: bool,
    /// What its layers hold of each grant that is not over.
    windows: Vec<Seen>,
}

/// One window in one layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    grant: GrantId,
    port: ProtectedPort,
    source: SourcePrefix,
    layer: Layer,
    /// Whether the grant was closing already: what was seen of one that opens says nothing of one that closes.
    closing: bool,
    observed: Observed,
    endpoint: Option<SocketAddr>,
}

impl View {
    /// How the target stands here and now.
    pub fn of(target: &TargetId, hub: &Hub, clouds: &Clouds, grants: &[Versioned<Grant>]) -> Self {
        let mut windows = Vec::new();
        for Versioned { record: grant, .. } in grants {
            let here = grant.windows.iter().filter(|window| window.target == *target);
            for window in here {
                let endpoint = clouds.endpoint(window);
                for layer in Layer::ALL.into_iter().filter(|layer| layer.required_by(window)) {
                    let observed = match layer {
                        Layer::Host => host_layer(hub, clouds, grant, window),
                        Layer::Cloud => clouds.observe(grant, window),
                    };
                    let (port, source, closing) = (window.port, window.source, is_closing(grant));
                    windows.push(Seen { grant: grant.id, port, source, layer, closing, observed, endpoint });
                }
            }
        }
        let translated = clouds.translation(target).is_some();
        Self { host: hub.report(target), cloud: clouds.report(target), translated, windows }
    }

    fn seen(&self, grant: &Grant, window: &Window, layer: Layer) -> Option<&Seen> {
        self.windows.iter().find(|seen| {
            seen.grant == grant.id
                && seen.port == window.port
                && seen.source == window.source
                && seen.layer == layer
                && seen.closing == is_closing(grant)
        })
    }

    /// Whether it says the same, but for when it was heard last.
    fn says_the_same(&self, other: &Self) -> bool {
        let still = |report: &LayerReport| LayerReport { last_seen: None, ..report.clone() };
        self.translated == other.translated
            && self.windows == other.windows
            && still(&self.host) == still(&other.host)
            && still(&self.cloud) == still(&other.cloud)
    }
}

fn is_closing(grant: &Grant) -> bool {
    matches!(grant.state, GrantState::Closing(_))
}

/// What the others tell of the targets that were asked about.
#[derive(Debug, Default)]
pub struct Sights {
    views: HashMap<TargetId, View>,
}

impl Sights {
    /// What is told of a target.
    pub fn of(&self, target: &TargetId) -> Option<&View> {
        self.views.get(target)
    }

    /// What is known of a window in a layer, from whoever works on its target.
    pub fn observe(&self, grant: &Grant, window: &Window, layer: Layer) -> Observed {
        let seen = self.of(&window.target).and_then(|view| view.seen(grant, window, layer));
        seen.map_or(Observed::Unconfirmed, |seen| seen.observed.clone())
    }

    /// Where to connect for a window, if something on the way translates that.
    pub fn endpoint(&self, grant: &Grant, window: &Window) -> Option<SocketAddr> {
        let view = self.of(&window.target)?;
        Layer::ALL.into_iter().find_map(|layer| view.seen(grant, window, layer)?.endpoint)
    }
}

/// Views on their way to the others, and from them.
pub struct Views {
    members: Arc<dyn Members>,
    state: Mutex<State>,
    notify: Notify,
}

#[derive(Default)]
struct State {
    /// The last that was told of each target, under which token.
    told: HashMap<TargetId, (u64, View)>,
    waiting: HashMap<TargetId, (Lease, View, Vec<TargetId>)>,
}

impl Views {
    pub(super) fn new(members: Arc<dyn Members>) -> Self {
        Self { members, state: Mutex::default(), notify: Notify::new() }
    }

    /// Whether anybody could want to see.
    pub fn are_read(&self) -> bool {
        !self.members.is_alone()
    }

    /// Tells how a target stands, if that is news; `awaited_by` are the other targets of its grants.
    pub fn tell(&self, lease: &Lease, view: View, awaited_by: Vec<TargetId>) {
        let mut state = self.lock();
        let is_old = state
            .told
            .get(&lease.target)
            .is_some_and(|(token, told)| *token == lease.token && told.says_the_same(&view));
        if is_old {
            return;
        }
        state.told.insert(lease.target.clone(), (lease.token, view.clone()));
        state.waiting.insert(lease.target.clone(), (lease.clone(), view, awaited_by));
        self.notify.notify_one();
    }

    /// What the others tell of these targets.
    ///
    /// # Errors
    /// The store failed.
    pub async fn read(&self, targets: &[TargetId]) -> Result<Sights, StoreError> {
        if targets.is_empty() || !self.are_read() {
            return Ok(Sights::default());
        }
        let mut views = HashMap::new();
        for (target, text) in self.members.views(targets).await? {
            // One that a newer broker tells in another form is as good as none.
            if let Ok(view) = serde_json::from_str(&text) {
                views.insert(target, view);
            }
        }
        Ok(Sights { views })
    }

    /// Tells what waits, until the process ends.
    ///
    /// # Errors
    /// Never: a failing store is tried again.
    pub async fn keep_telling(&self) -> anyhow::Result<()> {
        loop {
            let group: Vec<Posted> = {
                let mut state = self.lock();
                let next: Vec<TargetId> = state.waiting.keys().take(GROUP).cloned().collect();
                next.iter().filter_map(|target| state.waiting.remove(target)).filter_map(posted).collect()
            };
            if group.is_empty() {
                self.notify.notified().await;
                continue;
            }
            while let Err(error) = self.members.post(group.clone()).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "views have to wait for the store");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn posted((lease, view, awaited_by): (Lease, View, Vec<TargetId>)) -> Option<Posted> {
    let view = serde_json::to_string(&view);
    let view = view.inspect_err(|error| tracing::error!(%error, "a view cannot be written")).ok()?;
    Some(Posted { lease, view, awaited_by })
}
