//! The party to which a connection is counted, and the class in which it has its seat.

use std::net::IpAddr;

use postern_core::{Principal, TargetId};
use postern_pki::Identity;

/// The class of a connection whose handshake is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// No certificate was shown.
    Anonymous,
    /// A principal's certificate was shown.
    People,
    /// An agent's certificate was shown.
    Agents,
}

impl Class {
    /// Every class.
    pub(super) const ALL: [Self; 3] = [Self::Anonymous, Self::People, Self::Agents];

    /// The class of a peer with this identity, if it has one.
    pub fn of(identity: Option<&Identity>) -> Self {
        match identity {
            None => Self::Anonymous,
            Some(Identity::Agent(_)) => Self::Agents,
            Some(Identity::Principal(_) | Identity::Broker) => Self::People,
        }
    }

    /// The word in the metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::People => "people",
            Self::Agents => "agents",
        }
    }
}

/// The party to which a connection is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Address(IpAddr),
    Balancer,
    Principal(Principal),
    Agent(TargetId),
    Broker,
}
