//! The report on one layer of one target.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The report on a layer of a target, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The state.
    pub status: LayerStatus,
    /// The last error or the reason.
    pub detail: String,
    /// The time at which the layer last answered.
    pub last_seen: Option<Timestamp>,
    /// The version of the agent; empty where it is not known.
    pub version: String,
    /// Set if an agent is connected.
    pub online: bool,
    /// The boot id that the agent sent with its session; empty without one, and in the status of an earlier version.
    #[serde(default)]
    pub boot_id: String,
}

/// The state of one layer of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerStatus {
    /// The target has no such layer, or its policies do not ask for it.
    NotRequired,
    /// The layer holds what it should.
    InSync,
    /// The layer has the desired state and has not confirmed it yet.
    Pending,
    /// The layer cannot be reached.
    Unreachable,
    /// The layer answered with an error.
    Failed,
}

impl LayerReport {
    /// A layer that cannot be reached.
    pub fn unreachable(detail: &str) -> Self {
        Self::of(LayerStatus::Unreachable, detail)
    }

    /// A layer in a state, with the reason.
    pub fn of(status: LayerStatus, detail: &str) -> Self {
        Self {
            status,
            detail: detail.into(),
            last_seen: None,
            version: String::new(),
            online: false,
            boot_id: String::new(),
        }
    }
}
