//! The party to which a connection is counted, and the class in which it has its seat.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use postern_core::{CallerKind, PrincipalKey, Role, TargetId};

/// The class of a connection after its handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The peer showed no certificate.
    Anonymous,
    /// The peer showed the certificate of a principal that is no administrator.
    People,
    /// The peer showed an administrator's certificate.
    Administrators,
    /// The peer showed an agent's certificate.
    Agents,
}

impl Class {
    /// Every class.
    pub(super) const ALL: [Self; 4] = [Self::Anonymous, Self::People, Self::Administrators, Self::Agents];

    /// Returns the class of a peer that its certificate proves to be of this kind, or that has shown none.
    pub fn of(kind: Option<&CallerKind>) -> Self {
        match kind {
            None => Self::Anonymous,
            Some(CallerKind::Agent(_)) => Self::Agents,
            Some(CallerKind::Principal(principal)) if principal.role() == Role::Administrator => {
                Self::Administrators
            }
            Some(CallerKind::Principal(_) | CallerKind::Broker) => Self::People,
        }
    }

    /// Returns the metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::People => "people",
            Self::Administrators => "administrators",
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
    /// A principal, in whatever role: its certificates in several roles share its seats, but for those of an administrator.
    Principal(PrincipalKey),
    /// The agent of a target.
    Agent(TargetId),
    /// A broker.
    Broker,
}

/// The bits of the IPv6 network that counts beside the address: a site usually has one of these, and with it 65,536 of 64 bits.
const NETWORK_BITS: u32 = 48;

impl Owner {
    /// Returns the wider IPv6 network of an address; none for every other owner.
    pub(super) fn network(&self) -> Option<Ipv6Addr> {
        match self {
            Self::Address(IpAddr::V6(address)) => {
                Some((u128::from(*address) & (u128::MAX << (128 - NETWORK_BITS))).into())
            }
            Self::Address(IpAddr::V4(_))
            | Self::Balancer
            | Self::Principal(_)
            | Self::Agent(_)
            | Self::Broker => None,
        }
    }
}

/// A count by owner, and by the wider network of those that have one.
#[derive(Debug, Default)]
pub(super) struct Tally {
    by_owner: HashMap<Owner, usize>,
    by_network: HashMap<Ipv6Addr, usize>,
}

impl Tally {
    pub(super) fn add(&mut self, owner: &Owner) {
        *self.by_owner.entry(owner.clone()).or_default() += 1;
        if let Some(network) = owner.network() {
            *self.by_network.entry(network).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, owner: &Owner) {
        lower(&mut self.by_owner, owner);
        if let Some(network) = owner.network() {
            lower(&mut self.by_network, &network);
        }
    }

    pub(super) fn clear(&mut self) {
        self.by_owner.clear();
        self.by_network.clear();
    }

    /// Returns the count of an owner.
    pub(super) fn of(&self, owner: &Owner) -> usize {
        self.by_owner.get(owner).copied().unwrap_or_default()
    }

    /// Returns the count of an owner's wider network; 0 if it has none.
    pub(super) fn of_network(&self, owner: &Owner) -> usize {
        owner.network().and_then(|network| self.by_network.get(&network).copied()).unwrap_or_default()
    }

    /// Returns how much an owner has when one has to give way: what its network has, and 1 for a balancer, which is many peers.
    pub(super) fn weight(&self, owner: &Owner) -> usize {
        if *owner == Owner::Balancer { 1 } else { self.of(owner).max(self.of_network(owner)) }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_owner.is_empty() && self.by_network.is_empty()
    }
}

fn lower<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
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
