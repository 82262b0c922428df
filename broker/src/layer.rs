//! How a layer of a target stands, and what one layer makes of the other.

use jiff::Timestamp;
use postern_core::plan::{DesiredHost, HostWindow, Observed};
use postern_core::{Grant, TargetId, Window};
use serde::{Deserialize, Serialize};

use crate::cloud::Clouds;
use crate::hub::Hub;

/// How a layer of a target stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The state.
    pub status: LayerStatus,
    /// The last error or the reason, for people.
    pub detail: String,
    /// When the layer was last heard of.
    pub last_seen: Option<Timestamp>,
    /// The version of the agent; empty where it is not known.
    pub version: String,
    /// Whether an agent is connected.
    pub online: bool,
}

/// The state of one layer of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerStatus {
    /// The target has no such layer, or its policies do not ask for it.
    NotRequired,
    /// It holds what it should.
    InSync,
    /// It was told and has not confirmed yet.
    Pending,
    /// It cannot be reached.
    Unreachable,
    /// It answered with an error.
    Failed,
}

impl LayerReport {
    /// A layer that cannot be reached.
    pub fn unreachable(detail: &str) -> Self {
        Self::of(LayerStatus::Unreachable, detail)
    }

    /// A layer in a state, with a word on it.
    pub fn of(status: LayerStatus, detail: &str) -> Self {
        Self { status, detail: detail.into(), last_seen: None, version: String::new(), online: false }
    }
}

/// Adds the windows for the addresses that a target sees in the place of callers' own: sources are per hop.
pub fn translate(desired: &mut DesiredHost, target: &TargetId, clouds: &Clouds) {
    let Some(translation) = clouds.translation(target) else { return };
    let seen = |window: &HostWindow| {
        let window = window.clone();
        translation.of(window.source).into_iter().map(move |source| HostWindow { source, ..window.clone() })
    };
    let seen: Vec<HostWindow> = desired.windows.iter().flat_map(seen).collect();
    desired.windows.extend(seen);
}

/// What is known of a window in the host layer: under the caller's own source, and under every one in its place.
pub fn host_layer(hub: &Hub, clouds: &Clouds, grant: &Grant, window: &Window) -> Observed {
    let mut known = hub.observe(grant, window);
    let Some(translation) = clouds.translation(&window.target) else { return known };
    for source in translation.of(window.source) {
        let seen = hub.observe(grant, &Window { source, ..window.clone() });
        known = match (known, seen) {
            (known, seen) if known == seen => known,
            (refused @ Observed::Refused { .. }, _) | (_, refused @ Observed::Refused { .. }) => refused,
            _ => Observed::Unconfirmed,
        };
    }
    known
}
