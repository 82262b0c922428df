//! The party to which a connection is counted, and the class in which it has its seat.

use std::net::IpAddr;

use postern_core::{CallerKind, PrincipalKey, TargetId};

/// The class of a connection after its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The peer showed no certificate.
    Anonymous,
    /// The peer showed a principal's certificate.
    People,
    /// The peer showed an agent's certificate.
    Agents,
}

impl Class {
    /// Every class.
    pub(super) const ALL: [Self; 3] = [Self::Anonymous, Self::People, Self::Agents];

    /// Returns the class of a peer that its certificate proves to be of this kind, or that has shown none.
    pub fn of(kind: Option<&CallerKind>) -> Self {
        match kind {
            None => Self::Anonymous,
            Some(CallerKind::Agent(_)) => Self::Agents,
            Some(CallerKind::Principal(_) | CallerKind::Broker) => Self::People,
        }
    }

    /// Returns the metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::People => "people",
            Self::Agents => "agents",
        }
    }
}

/// The party to which a connection, a refusal or a request is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Owner {
    /// The address of a peer that is not known, or its network.
    Address(IpAddr),
    /// A load balancer.
    Balancer,
    /// A principal, in whatever role: its certificates in several roles share its seats.
    Principal(PrincipalKey),
    /// The agent of a target.
    Agent(TargetId),
    /// A broker.
    Broker,
}

impl From<&CallerKind> for Owner {
    fn from(kind: &CallerKind) -> Self {
        match kind {
            CallerKind::Principal(principal) => Self::Principal(principal.key().clone()),
            CallerKind::Agent(target) => Self::Agent(target.clone()),
            CallerKind::Broker => Self::Broker,
        }
    }
}

impl From<&TargetId> for Owner {
    fn from(agent_of: &TargetId) -> Self {
        Self::Agent(agent_of.clone())
    }
}
