//! What a provider reads from its cloud.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use postern_core::plan::CloudWindow;
use postern_core::{ProtectedPort, SourcePrefix, TargetId};

use crate::CloudError;

/// What the cloud holds for one target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// Every window of ours that is open whole, read from the rules' own names and tags: the store is not asked (I2).
    pub windows: BTreeSet<CloudWindow>,
    /// Windows of which something is open, and not all that a connection passes: begun, half closed, or half taken away.
    pub partial: BTreeSet<CloudWindow>,
    /// How the target is reached.
    pub reach: Reach,
    /// What is not as Postern left it.
    pub drift: Vec<Drift>,
    /// Rules in a place of Postern's own that are not exactly a window. [`crate::Provider::repair`] takes them away.
    pub strays: BTreeSet<Stray>,
}

/// A rule in a place of Postern's own that cannot be read as a window: another principal made or edited it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// The rule's id or name in its cloud.
    pub rule: String,
    /// The rule in words: protocol, ports and source.
    pub what: String,
}

/// How connections get to a target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Where to connect for a port that something on the way translates: a firewall or a load balancer.
    pub endpoints: BTreeMap<ProtectedPort, SocketAddr>,
    /// Whose connections the target sees under another address.
    pub translation: Option<Translation>,
}

impl Reach {
    /// Where a source connects to for a port. Who comes from a private network stays in it.
    pub fn endpoint(&self, port: ProtectedPort, source: SourcePrefix) -> Option<SocketAddr> {
        let endpoint = self.endpoints.get(&port).copied()?;
        let goes_out = is_private(source.net().addr()) && !is_private(endpoint.ip());
        (!goes_out).then_some(endpoint)
    }
}

/// Whether an address is one of networks that are nobody's on the internet (RFC 1918, RFC 6598, RFC 4193).
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || matches!(ip.octets(), [100, 64..=127, ..]),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// Something on the way to a target puts its own address in the place of a connection's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// The sources that keep their own address all the same.
    pub keeps: Vec<SourcePrefix>,
    /// The addresses that the target sees in the place of all others.
    pub seen_as: Vec<SourcePrefix>,
}

impl Translation {
    /// What the target sees of connections from the source.
    pub fn of(&self, source: SourcePrefix) -> Vec<SourcePrefix> {
        if self.keeps.iter().any(|kept| kept.covers(&source)) { vec![source] } else { self.seen_as.clone() }
    }
}

/// Something that is not as Postern left it, because someone else changed it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// What it is, in words.
    pub what: String,
    /// Whether [`crate::Provider::repair`] puts it right. What is not ours is reported and left alone (I6).
    pub repairable: bool,
}

/// What was seen of one target in a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The target.
    pub target: TargetId,
    /// What its cloud holds; none where the target is gone and something of ours is left of it.
    pub held: Option<Observation>,
}

/// Everything of ours in a cloud, from the cloud's own state alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SweepReport {
    /// Every target that holds something of ours.
    pub sightings: Vec<Sighting>,
    /// Where the sweep could not look: what is there stays as it was known.
    pub unread: Vec<Unread>,
}

/// A part of a cloud that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The part, for instance `account 123456789012 in eu-central-1`.
    pub place: String,
    /// Why.
    pub error: CloudError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_in_a_private_network_is_not_sent_out_of_it() {
        let port: ProtectedPort = "tcp/22".parse().unwrap();
        let reach = |endpoint: &str| {
            let endpoints = [(port, endpoint.parse().unwrap())].into();
            Reach { endpoints, translation: None }
        };
        for (endpoint, source, expected) in [
            ("198.51.100.3:2222", "203.0.113.7", true),
            ("198.51.100.3:2222", "0.0.0.0/0", true),
            ("198.51.100.3:2222", "10.1.2.0/24", false),
            ("198.51.100.3:2222", "100.64.0.9", false),
            ("198.51.100.3:2222", "100.128.0.9", true),
            ("10.0.0.9:2222", "10.1.2.3", true),
            ("[2001:db8::9]:22", "fd00::7", false),
            ("[2001:db8::9]:22", "2001:db8::7", true),
        ] {
            let endpoint = reach(endpoint).endpoint(port, source.parse().unwrap());
            assert_eq!(endpoint.is_some(), expected, "{source} {endpoint:?}");
        }
        assert_eq!(Reach::default().endpoint(port, "203.0.113.7".parse().unwrap()), None);
    }
}
