//! The observations that a provider reads from its cloud.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use postern_core::plan::LayerWindow;
use postern_core::{ProtectedPort, SourcePrefix, TargetId};

use crate::CloudError;

/// The state of one target in its cloud.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// Every window of Postern's that is open whole, read from the rules' own names and tags, without the
    /// store (I2).
    pub windows: BTreeSet<LayerWindow>,
    /// The windows of which some rules are open, but not all that a connection passes: begun, half closed, or
    /// half removed.
    pub partial: BTreeSet<LayerWindow>,
    /// The way that connections reach the target.
    pub reach: Reach,
    /// The differences from the state that Postern left.
    pub drift: Vec<Drift>,
    /// The rules among Postern's own that are not exactly a window. [`crate::Provider::repair`] removes them.
    pub strays: BTreeSet<Stray>,
    /// The ports that the lockdown of the target shuts: no port if it is not under lockdown. None while a lockdown or a
    /// release is not complete, and from a cloud that does not tell.
    pub shut: Option<BTreeSet<ProtectedPort>>,
}

/// A rule among Postern's own that cannot be read as a window: another principal made or edited it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// The rule's id or name in its cloud.
    pub rule: String,
    /// The rule in words: protocol, ports and source.
    pub what: String,
}

/// The way that connections reach a target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// The address to connect to, for each port that a firewall or a load balancer on the way translates.
    pub endpoints: BTreeMap<ProtectedPort, SocketAddr>,
    /// The connections that the target sees under another address.
    pub translation: Option<Translation>,
}

impl Reach {
    /// Returns the address that a source connects to for a port. A source in a private network stays in it.
    pub fn endpoint(&self, port: ProtectedPort, source: SourcePrefix) -> Option<SocketAddr> {
        let endpoint = self.endpoints.get(&port).copied()?;
        let goes_out = is_private(source.net().addr()) && !is_private(endpoint.ip());
        (!goes_out).then_some(endpoint)
    }
}

/// Reports whether an address is in a network that is not routed on the internet (RFC 1918, RFC 6598, RFC
/// 4193).
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || matches!(ip.octets(), [100, 64..=127, ..]),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

/// A translation of sources: a device on the way to a target replaces a connection's source with its own
/// address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translation {
    /// The sources that keep their own address.
    pub keeps: Vec<SourcePrefix>,
    /// The addresses that the target sees in place of all other sources.
    pub seen_as: Vec<SourcePrefix>,
}

impl Translation {
    /// Returns the addresses under which the target sees connections from the source.
    pub fn of(&self, source: SourcePrefix) -> Vec<SourcePrefix> {
        if self.keeps.iter().any(|kept| kept.covers(&source)) { vec![source] } else { self.seen_as.clone() }
    }
}

/// A difference from the state that Postern left: another principal changed it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Drift {
    /// The difference, in words.
    pub what: String,
    /// [`crate::Provider::repair`] corrects it. A change of the customer's own rules is reported and left
    /// alone (I6).
    pub repairable: bool,
}

/// The observation of one target in a sweep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The target.
    pub target: TargetId,
    /// The state of the target; none if it is gone and resources of Postern's are left of it.
    pub held: Option<Observation>,
}

/// All of Postern's resources in a cloud, from the cloud's own state alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SweepReport {
    /// Every target with resources of Postern's.
    pub sightings: Vec<Sighting>,
    /// The accounts, Regions, subscriptions and targets that the sweep could not read; their last known state is kept.
    pub unread: Vec<Unread>,
    /// The rules of the customer's that no lockdown needed parked any more and that the sweep put back, in
    /// words.
    pub given_back: Vec<String>,
}

/// A part of a cloud that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The part, for instance `account 123456789012 in eu-central-1`.
    pub place: String,
    /// The reason.
    pub error: CloudError,
    /// The targets that the report may lack because of it.
    pub hides: Hidden,
}

impl Unread {
    /// Reports whether the report may lack this target because of it.
    pub fn may_hide(&self, target: &TargetId) -> bool {
        match &self.hides {
            Hidden::Nothing => false,
            Hidden::Everything => true,
            Hidden::Region { account: hidden, region: at } => {
                matches!(target, TargetId::Aws { account, region, .. } if account == hidden && region == at)
            }
            Hidden::Subscription(hidden) => {
                matches!(target, TargetId::Azure { subscription, .. } if subscription == hidden)
            }
            Hidden::Target(hidden) => target == hidden,
        }
    }
}

/// The targets that a report may lack because a part of a cloud could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hidden {
    /// None: every target is in the report, and perhaps not all of its state.
    Nothing,
    /// Any target of the cloud.
    Everything,
    /// The targets of an AWS account in one Region.
    Region {
        /// The id of the account.
        account: String,
        /// The code of the Region.
        region: String,
    },
    /// The targets of an Azure subscription.
    Subscription(String),
    /// The target that is there and whose windows could not be judged.
    Target(TargetId),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_that_cannot_be_read_hides_its_own_targets_alone() {
        let hides = Hidden::Region { account: "123456789012".into(), region: "eu-central-1".into() };
        let unread = Unread { place: "a Region".into(), error: CloudError::unavailable("a test"), hides };
        for (target, expected) in [
            ("aws:123456789012/eu-central-1/i-0123456789abcdef0", true),
            ("aws:123456789012/us-east-1/i-0123456789abcdef0", false),
            ("aws:210987654321/eu-central-1/i-0123456789abcdef0", false),
            ("host:web-1", false),
        ] {
            assert_eq!(unread.may_hide(&target.parse().unwrap()), expected, "{target}");
        }
    }

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
