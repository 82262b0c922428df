//! Windows: the openings that the layers enforce.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{ProtectedPort, SourcePrefix, TargetId};

/// An opening of a grant: this port of this target, for this source. Its end is the grant's end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Window {
    /// The VM.
    pub target: TargetId,
    /// The port that opens.
    pub port: ProtectedPort,
    /// The source that may connect.
    pub source: SourcePrefix,
    /// The layers that must confirm before the grant is active, fixed when the broker authorized it.
    pub layers: Layers,
}

impl Window {
    /// Reports whether both open the same port of the same target for the same source.
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
    /// Both layers.
    Both,
}

impl Layers {
    /// Reports whether the host layer must confirm.
    pub fn host(self) -> bool {
        matches!(self, Self::Host | Self::Both)
    }

    /// Reports whether the cloud layer must confirm.
    pub fn cloud(self) -> bool {
        matches!(self, Self::Cloud | Self::Both)
    }
}
