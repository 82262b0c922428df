//! Windows: what a layer enforces.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ProtectedPort, SourcePrefix, TargetId};

/// One opening of a grant: this port of this target, for this source. Its end is the grant's end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The VM.
    pub target: TargetId,
    /// The port that opens.
    pub port: ProtectedPort,
    /// Who may connect.
    pub source: SourcePrefix,
    /// The layers that must confirm before the grant is active, fixed when it was authorized.
    pub layers: Layers,
}

impl Window {
    /// Whether both open the same port of the same target for the same source.
    pub fn same_opening(&self, other: &Self) -> bool {
        self.target == other.target && self.port == other.port && self.source == other.source
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} from {}", self.target, self.port, self.source)
    }
}

/// The layers that must confirm before a grant is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layers {
    /// The host layer alone (the only choice for `host:` targets).
    Host,
    /// The cloud layer alone: the target runs no agent.
    Cloud,
    /// Both.
    Both,
}

impl Layers {
    /// Whether the host layer is among them.
    pub fn host(self) -> bool {
        matches!(self, Self::Host | Self::Both)
    }

    /// Whether the cloud layer is among them.
    pub fn cloud(self) -> bool {
        matches!(self, Self::Cloud | Self::Both)
    }
}
