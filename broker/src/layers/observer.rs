//! The observer: the one place that answers how a window stands, and how a layer is reported.
//!
//! A window is observed by the broker that holds the lease of its target, in its own sessions and its own cloud layer. For a
//! target of another broker the answer is the one that broker has published ([`PeerStatus`]); where it has published none,
//! the window is unconfirmed, on which no grant becomes active or closed.
//!
//! The layers meet here in one respect. Where the way to a target translates sources (a load balancer, a gateway), its agent
//! sees other addresses than its cloud does: the desired state of the host holds a window for each of them, and the host
//! layer has confirmed a window once it has confirmed them all.

use std::net::SocketAddr;
use std::sync::Arc;

use postern_core::plan::{DesiredHost, Layer, LayerWindow, Observed};
use postern_core::{Grant, TargetId, Window};
use postern_store::Versioned;

use crate::cluster::leases::Leases;
use crate::cluster::peer_status::{PeerStatus, TargetStatus, WindowStatus};
use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::layers::report::LayerReport;

/// Answers how windows stand. Cheap to clone.
#[derive(Clone)]
pub struct Observer {
    /// The host layer.
    pub sessions: Arc<AgentSessions>,
    /// The cloud layer.
    pub cloud: Arc<CloudLayer>,
    /// The leases of this broker: they say which targets it observes itself.
    pub leases: Arc<Leases>,
}

impl Observer {
    /// Returns what is known of a window of a grant in a layer, from the broker that works on its target.
    pub fn observe(&self, grant: &Grant, window: &Window, layer: Layer, peers: &PeerStatus) -> Observed {
        if self.leases.holds(&window.target) {
            self.observe_here(grant, window, layer)
        } else {
            peers.observe(grant, window, layer)
        }
    }

    /// Returns what this broker knows of a window of a grant in a layer.
    pub fn observe_here(&self, grant: &Grant, window: &Window, layer: Layer) -> Observed {
        match layer {
            Layer::Host => self.observe_host(grant, window),
            Layer::Cloud => self.cloud.observe(grant, window),
        }
    }

    /// Returns what is known of a window in the host layer: under the caller's own source, and under every one in its place.
    fn observe_host(&self, grant: &Grant, window: &Window) -> Observed {
        let mut known = self.sessions.observe(grant, window);
        let Some(translation) = self.cloud.translation(&window.target) else { return known };
        for source in translation.of(window.source) {
            let seen = self.sessions.observe(grant, &Window { source, ..window.clone() });
            known = match (known, seen) {
                (known, seen) if known == seen => known,
                (refused @ Observed::Refused { .. }, _) | (_, refused @ Observed::Refused { .. }) => refused,
                _ => Observed::Unconfirmed,
            };
        }
        known
    }

    /// Adds the windows for the addresses that a target sees in the place of callers' own: sources are per hop.
    pub fn translate(&self, desired: &mut DesiredHost, target: &TargetId) {
        let Some(translation) = self.cloud.translation(target) else { return };
        let seen = |window: &LayerWindow| {
            let window = window.clone();
            translation
                .of(window.source)
                .into_iter()
                .map(move |source| LayerWindow { source, ..window.clone() })
        };
        let seen: Vec<LayerWindow> = desired.windows.iter().flat_map(seen).collect();
        desired.windows.extend(seen);
    }

    /// Returns the address to connect to for a window, if something on the way translates it.
    pub fn endpoint(&self, grant: &Grant, window: &Window, peers: &PeerStatus) -> Option<SocketAddr> {
        if self.leases.holds(&window.target) {
            self.cloud.endpoint(window)
        } else {
            peers.endpoint(grant, window)
        }
    }

    /// Returns the report on a layer of a target: that of the broker that works on it, and else this broker's own.
    pub fn report(&self, target: &TargetId, layer: Layer, peers: &PeerStatus) -> LayerReport {
        match (layer, peers.of(target)) {
            (Layer::Host, Some(status)) => status.host.clone(),
            (Layer::Cloud, Some(status)) => status.cloud.clone(),
            (Layer::Host, None) => self.sessions.report(target),
            (Layer::Cloud, None) => self.cloud.report(target),
        }
    }

    /// Returns how a target and every window of these grants on it stand here, for the other brokers.
    pub fn status(&self, target: &TargetId, grants: &[Versioned<Grant>]) -> TargetStatus {
        let mut windows = Vec::new();
        for Versioned { record: grant, .. } in grants {
            for window in grant.windows.iter().filter(|window| window.target == *target) {
                let endpoint = self.cloud.endpoint(window);
                for layer in Layer::ALL.into_iter().filter(|layer| layer.required_by(window)) {
                    let observed = self.observe_here(grant, window, layer);
                    windows.push(WindowStatus::of(grant, window, layer, observed, endpoint));
                }
            }
        }
        let (host, cloud) = (self.sessions.report(target), self.cloud.report(target));
        TargetStatus::new(host, cloud, self.cloud.translation(target).is_some(), windows)
    }
}
