//! How a layer of a target stands, for people.

use jiff::Timestamp;

/// How a layer of a target stands.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
