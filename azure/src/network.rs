//! The parts of a subscription's networks that concern a virtual machine: interfaces, subnets, security groups, and the
//! firewalls and load balancers in front.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use postern_core::{ProtectedPort, Protocol, SourcePrefix};
use postern_provider::kit::CallError;

use crate::arm::Listed;
use crate::id::{ArmId, brief};

/// The result of a read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Network {
    pub(crate) interfaces: Vec<Nic>,
    pub(crate) groups: BTreeMap<ArmId, Nsg>,
    pub(crate) subnets: BTreeMap<ArmId, Subnet>,
    pub(crate) routes: BTreeMap<ArmId, RouteTable>,
    pub(crate) firewalls: Vec<Firewall>,
    pub(crate) public: BTreeMap<ArmId, IpAddr>,
    /// The translations of load balancers, by the id of the NAT rule: the public end, and the port of the machine.
    pub(crate) forwards: BTreeMap<ArmId, Forward>,
    /// The parts that could not be read, and without which the rest has its use.
    pub(crate) unread: Vec<UnreadPart>,
}

/// A part of a network that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnreadPart {
    pub(crate) kind: UnreadKind,
    /// The part, in words.
    pub(crate) place: String,
    pub(crate) error: CallError,
}

/// The kinds of resource without which a machine's groups can still be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnreadKind {
    /// Firewalls and the routes to them: a firewall in front may be unknown.
    Front,
    /// Public addresses and load balancers: the address to connect to may be unknown.
    Reach,
}

impl Network {
    /// Records a part that could not be read, once.
    pub(crate) fn lacks(&mut self, kind: UnreadKind, place: impl Into<String>, error: CallError) {
        let part = UnreadPart { kind, place: place.into(), error };
        if !self.unread.iter().any(|known| known.place == part.place) {
            self.unread.push(part);
        }
    }

    /// Returns the items of a list, and records those that cannot be parsed.
    pub(crate) fn items<T>(&mut self, kind: UnreadKind, listed: Listed<T>) -> Vec<T> {
        for (id, error) in listed.unparsed {
            self.lacks(kind, brief(&id), error);
        }
        listed.items
    }

    /// The public addresses that interfaces have of their own.
    pub(crate) fn public_of_interfaces(&self) -> BTreeSet<ArmId> {
        let addresses = self.interfaces.iter().flat_map(|interface| &interface.addresses);
        addresses.filter_map(|address| address.public.clone()).collect()
    }
}

/// A network interface.
#[derive(Debug, Clone)]
pub(crate) struct Nic {
    /// None if Azure does not show it.
    pub(crate) id: Option<ArmId>,
    pub(crate) vm: Option<ArmId>,
    pub(crate) group: Option<ArmId>,
    pub(crate) addresses: Vec<Address>,
    /// The parts that cannot be read, in words.
    pub(crate) unread: Vec<String>,
}

impl Nic {
    /// An interface of a machine that cannot be read, for a reason in words.
    pub(crate) fn unread(vm: &ArmId, reason: String) -> Self {
        Self { id: None, vm: Some(vm.clone()), group: None, addresses: Vec::new(), unread: vec![reason] }
    }
}

/// An IP configuration of an interface.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) ip: IpAddr,
    pub(crate) subnet: Option<ArmId>,
    /// The application security groups that it is in.
    pub(crate) application_groups: BTreeSet<ArmId>,
    pub(crate) forwards: Vec<ArmId>,
    /// The public address that is translated to it.
    pub(crate) public: Option<ArmId>,
}

/// A subnet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subnet {
    pub(crate) group: Option<ArmId>,
    pub(crate) routes: Option<ArmId>,
    pub(crate) prefixes: Vec<IpNet>,
}

/// A route table: the appliance that it sends outbound traffic for the internet to, if any.
#[derive(Debug, Clone, Default)]
pub(crate) struct RouteTable {
    pub(crate) appliance: Option<IpAddr>,
}

/// An inbound NAT rule of a load balancer.
#[derive(Debug, Clone)]
pub(crate) struct Forward {
    pub(crate) frontend: Option<SocketAddr>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) backend_port: u16,
}

/// An Azure Firewall.
#[derive(Debug, Clone)]
pub(crate) struct Firewall {
    pub(crate) id: ArmId,
    pub(crate) private: Vec<IpAddr>,
    pub(crate) public: Vec<ArmId>,
    pub(crate) subnet: Option<ArmId>,
    /// The policy that holds its rules, if the firewall does not hold them itself.
    pub(crate) policy: Option<String>,
    pub(crate) state: RuleState,
    pub(crate) nat: Vec<NatRule>,
}

/// A rule that translates the destination of connections to an Azure Firewall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NatRule {
    pub(crate) collection: String,
    pub(crate) name: String,
    pub(crate) sources: Vec<RulePeer>,
    pub(crate) protocols: Vec<Protocol>,
    pub(crate) destinations: Vec<RulePeer>,
    pub(crate) ports: Vec<RangeInclusive<u16>>,
    pub(crate) translated: Option<(IpAddr, u16)>,
    pub(crate) description: String,
}

/// A network security group, with its rules for inbound connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nsg {
    pub(crate) id: ArmId,
    /// True if a change of its rules re-evaluates established connections.
    pub(crate) flushes: bool,
    /// Sorted by priority; the defaults at the end.
    pub(crate) rules: Vec<NsgRule>,
}

/// The state of a rule, as Azure says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleState {
    /// Azure has finished its last write.
    InForce,
    /// A write of it, or of its group, is under way.
    Changing,
    /// Its last write failed: Azure leaves it as it was written, and does not say what is in force.
    Failed,
}

/// A rule for inbound connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NsgRule {
    pub(crate) name: String,
    pub(crate) priority: u16,
    pub(crate) allows: bool,
    pub(crate) traffic: NsgTraffic,
    pub(crate) description: String,
    /// True for the rules that every group ends with.
    pub(crate) is_default: bool,
    pub(crate) state: RuleState,
}

impl NsgRule {
    /// Reports whether Azure has finished its last write.
    pub(crate) fn is_in_force(&self) -> bool {
        self.state == RuleState::InForce
    }
}

/// The connections that a rule applies to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NsgTraffic {
    pub(crate) protocol: RuleProtocol,
    pub(crate) sources: Vec<RulePeer>,
    pub(crate) any_source_port: bool,
    pub(crate) destinations: Vec<RulePeer>,
    pub(crate) ports: Vec<RangeInclusive<u16>>,
}

/// A rule's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleProtocol {
    Any,
    One(Protocol),
    /// A protocol without ports.
    Other,
}

/// The source or the destination of connections.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RulePeer {
    Any,
    Net(IpNet),
    /// A service tag, in lower case.
    Tag(String),
    /// The members of an application security group.
    ApplicationGroup(ArmId),
    /// The addresses of an IP group, by its id in lower case.
    IpGroup(String),
}

impl RulePeer {
    /// Reads an address prefix as rules have it.
    pub(crate) fn read(text: &str) -> Self {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match net {
            Ok(net) if net.prefix_len() == 0 && net.addr().is_ipv4() => Self::Any,
            Ok(net) => Self::Net(net.trunc()),
            Err(_) if matches!(text, "*" | "Any" | "any") => Self::Any,
            Err(_) => Self::Tag(text.to_ascii_lowercase()),
        }
    }

    /// Reports whether this peer includes every address of the other.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Net(net), Self::Net(other)) => net.contains(other),
            (one, other) => one == other,
        }
    }

    /// Reports whether the two may share an address. An unknown answer counts as yes.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Net(one), Self::Net(other)) => one.contains(other) || other.contains(one),
            (Self::Tag(one), Self::Tag(other)) => one == other || !is_basic(one) || !is_basic(other),
            _ => true,
        }
    }

    /// The narrower of two that meet.
    fn narrower<'a>(&'a self, other: &'a Self) -> &'a Self {
        if self.covers(other) { other } else { self }
    }

    /// Reports whether it is every address on the internet.
    pub(crate) fn is_anyone(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Net(net) => net.prefix_len() == 0,
            Self::Tag(tag) => tag == "internet",
            Self::ApplicationGroup(_) | Self::IpGroup(_) => false,
        }
    }
}

impl From<SourcePrefix> for RulePeer {
    fn from(source: SourcePrefix) -> Self {
        if source.is_any() && source.is_ipv4() { Self::Any } else { Self::Net(source.net()) }
    }
}

/// Reports whether it is one of the three service tags that share no address with each other.
fn is_basic(tag: &str) -> bool {
    matches!(tag, "internet" | "virtualnetwork" | "azureloadbalancer")
}

impl fmt::Display for RulePeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            peer if peer.is_anyone() => f.write_str("anyone"),
            Self::Any => f.write_str("anyone"),
            Self::Net(net) => net.fmt(f),
            Self::Tag(tag) => write!(f, "the service tag {tag}"),
            Self::ApplicationGroup(role) => write!(f, "the application security group {}", role.name()),
            Self::IpGroup(id) => write!(f, "the IP group {}", id.rsplit('/').next().unwrap_or(id)),
        }
    }
}

/// A door of a machine: one of its addresses, behind the groups of the subnet and the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Door {
    pub(crate) ip: IpAddr,
    pub(crate) application_groups: BTreeSet<ArmId>,
    /// In the order in which connections pass them: the subnet's, then the interface's.
    pub(crate) groups: Vec<ArmId>,
}

impl NsgTraffic {
    /// Reports whether it applies to connections to the port of the machine, from some source.
    pub(crate) fn concerns(&self, door: &Door, port: ProtectedPort) -> bool {
        let protocol = match self.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::One(protocol) => protocol == port.protocol,
            RuleProtocol::Other => false,
        };
        let same_family = |net: &IpNet| net.addr().is_ipv4() == door.ip.is_ipv4();
        let from =
            self.sources.iter().any(|source| !matches!(source, RulePeer::Net(net) if !same_family(net)));
        let to = self.destinations.iter().any(|peer| match peer {
            RulePeer::Any => true,
            RulePeer::Net(net) => net.contains(&door.ip),
            RulePeer::Tag(tag) => tag == "virtualnetwork",
            RulePeer::ApplicationGroup(role) => door.application_groups.contains(role),
            RulePeer::IpGroup(_) => true,
        });
        protocol && from && to && self.ports.iter().any(|ports| ports.contains(&port.port.get()))
    }
}

/// A source that the rules of a group admit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdmittedSource<'a> {
    pub(crate) rule: &'a NsgRule,
    pub(crate) source: &'a RulePeer,
}

impl NsgTraffic {
    /// Reports whether both may apply to the same connection.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let protocols = match (self.protocol, other.protocol) {
            (RuleProtocol::Any, _) | (_, RuleProtocol::Any) => true,
            (one, other) => one == other,
        };
        let meet = |ones: &[RulePeer], others: &[RulePeer]| {
            ones.iter().any(|one| others.iter().any(|other| one.meets(other)))
        };
        let ports = |one: &RangeInclusive<u16>, other: &RangeInclusive<u16>| {
            one.start() <= other.end() && other.start() <= one.end()
        };
        protocols
            && meet(&self.sources, &other.sources)
            && meet(&self.destinations, &other.destinations)
            && self.ports.iter().any(|one| other.ports.iter().any(|other| ports(one, other)))
    }

    /// Reports whether both apply to the same connections, in whatever order they name them.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let peers = |peers: &[RulePeer]| peers.iter().cloned().collect::<BTreeSet<_>>();
        let ports = |ports: &[RangeInclusive<u16>]| {
            ports.iter().map(|range| (*range.start(), *range.end())).collect::<BTreeSet<_>>()
        };
        self.protocol == other.protocol
            && self.any_source_port == other.any_source_port
            && peers(&self.sources) == peers(&other.sources)
            && peers(&self.destinations) == peers(&other.destinations)
            && ports(&self.ports) == ports(&other.ports)
    }
}

impl Nsg {
    /// Reports whether a write of the whole group is under way, so that no rule of it says whether it is in force.
    pub(crate) fn is_changing(&self) -> bool {
        let mut managed = self.rules.iter().filter(|rule| !rule.is_default).peekable();
        managed.peek().is_some() && managed.all(|rule| rule.state == RuleState::Changing)
    }

    /// Returns the group as it is if the write of the whole group that is under way changes no rule.
    pub(crate) fn once_settled(&self) -> Self {
        let mut group = self.clone();
        if self.is_changing() {
            group.rules.iter_mut().for_each(|rule| rule.state = RuleState::InForce);
        }
        group
    }

    /// Returns the sources that the rules admit to the port of the machine: those of each rule that allows, without the ones
    /// that an earlier rule denies. A rule that denies counts once Azure has finished it.
    pub(crate) fn admissions(&self, door: &Door, port: ProtectedPort) -> Vec<AdmittedSource<'_>> {
        let mut denied: Vec<&RulePeer> = Vec::new();
        let mut admitted = Vec::new();
        for rule in self.rules.iter().filter(|rule| rule.traffic.concerns(door, port)) {
            if rule.allows {
                let open = |source: &&RulePeer| !denied.iter().any(|denied| denied.covers(source));
                admitted.extend(
                    rule.traffic.sources.iter().filter(open).map(|source| AdmittedSource { rule, source }),
                );
            } else if rule.traffic.any_source_port && rule.is_in_force() {
                denied.extend(&rule.traffic.sources);
            }
        }
        admitted
    }

    /// The rule of this name. Names are compared without case.
    pub(crate) fn rule(&self, name: &str) -> Option<&NsgRule> {
        self.rules.iter().find(|rule| rule.name.eq_ignore_ascii_case(name))
    }

    /// Reports whether a rule has this priority.
    pub(crate) fn is_taken(&self, priority: u16) -> bool {
        self.rules.iter().any(|rule| rule.priority == priority)
    }
}

/// A source that can reach a port of a machine, and the rules that admit it: one of each group on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathExposure {
    pub(crate) port: ProtectedPort,
    pub(crate) source: RulePeer,
    /// The rules, each with its group.
    pub(crate) rules: Vec<(ArmId, String, u16)>,
    /// True if all of them are rules that every group ends with.
    pub(crate) by_default: bool,
}

impl fmt::Display for PathExposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .rules
            .iter()
            .map(|(group, rule, priority)| format!("rule {rule} (priority {priority}) of {}", group.name()))
            .collect();
        let allow = if words.len() == 1 { "allows" } else { "allow" };
        write!(f, "{} {allow} {} from {}", words.join(" and "), self.port, self.source)
    }
}

/// Finds the sources that can reach the ports of a machine, those open to anyone first. Every group on the way must admit
/// them.
pub(crate) fn exposures<'a>(
    groups: &BTreeMap<ArmId, Nsg>,
    doors: &[Door],
    ports: impl IntoIterator<Item = &'a ProtectedPort>,
) -> Vec<PathExposure> {
    let mut exposures: Vec<PathExposure> = Vec::new();
    for port in ports {
        for door in doors {
            let mut ways: Option<Vec<PathExposure>> = None;
            for group in door.groups.iter().filter_map(|id| groups.get(id)) {
                let admitted: Vec<PathExposure> = group
                    .admissions(door, *port)
                    .into_iter()
                    .map(|AdmittedSource { rule, source }| PathExposure {
                        port: *port,
                        source: source.clone(),
                        rules: vec![(group.id.clone(), rule.name.clone(), rule.priority)],
                        by_default: rule.is_default,
                    })
                    .collect();
                ways = Some(match ways {
                    None => admitted,
                    Some(before) => before
                        .iter()
                        .flat_map(|way| admitted.iter().filter_map(|next| way.then(next)))
                        .collect(),
                });
            }
            for way in ways.unwrap_or_default() {
                if !exposures.contains(&way) {
                    exposures.push(way);
                }
            }
        }
    }
    exposures.sort_by_key(|exposure| (!exposure.source.is_anyone(), exposure.port));
    exposures
}

impl PathExposure {
    /// The sources that pass this group and the next.
    fn then(&self, next: &Self) -> Option<Self> {
        self.source.meets(&next.source).then(|| Self {
            port: self.port,
            source: self.source.narrower(&next.source).clone(),
            rules: self.rules.iter().chain(&next.rules).cloned().collect(),
            by_default: self.by_default && next.by_default,
        })
    }
}
