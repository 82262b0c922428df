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

/// The party to which a connection is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Address(IpAddr),
    Balancer,
    /// A principal, in whatever role: its certificates in several roles share its seats.
    Principal(PrincipalKey),
    Agent(TargetId),
    Broker,
}
