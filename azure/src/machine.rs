//! A virtual machine, and everything that connections to it pass on their way.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use postern_core::{Port, ProtectedPort, Protocol, SourcePrefix};
use postern_provider::{Reach, Translation};

use crate::id::ArmId;
use crate::names::Family;
use crate::network::{Door, Network, UnreadKind};

/// A virtual machine in its network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Machine {
    /// A door for each address of the machine.
    pub(crate) doors: Vec<Door>,
    /// Every network security group on the way to one of its addresses.
    pub(crate) groups: BTreeSet<ArmId>,
    /// The Azure Firewall in front.
    pub(crate) front: Option<FrontFirewall>,
    /// The parts of its network that cannot be read, in words.
    pub(crate) unread: Vec<String>,
    /// True if a firewall may be in front that could not be read.
    pub(crate) may_have_front: bool,
    /// The machine's own public address; of several, the first.
    pub(crate) public: Option<IpAddr>,
    /// The addresses that load balancers translate to its ports.
    pub(crate) forwards: BTreeMap<ProtectedPort, SocketAddr>,
}

/// An Azure Firewall in front of a machine: the machine's default route leads there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrontFirewall {
    pub(crate) firewall: ArmId,
    /// The policy that holds the firewall's rules, if the firewall does not hold them itself.
    pub(crate) policy: Option<String>,
    /// The public address of the firewall.
    pub(crate) public: Option<IpAddr>,
    /// The source addresses that the machine sees for connections through the firewall.
    pub(crate) seen_as: Vec<SourcePrefix>,
}

impl Machine {
    /// Finds the machine in its network.
    pub(crate) fn of(network: &Network, vm: &ArmId) -> Self {
        let mut machine = Self::default();
        for interface in network.interfaces.iter().filter(|interface| interface.vm.as_ref() == Some(vm)) {
            machine.unread.extend(interface.unread.iter().cloned());
            for address in &interface.addresses {
                let subnet = address.subnet.as_ref().and_then(|subnet| network.subnets.get(subnet));
                let groups: Vec<ArmId> =
                    [subnet.and_then(|subnet| subnet.group.clone()), interface.group.clone()]
                        .into_iter()
                        .flatten()
                        .collect();
                if let Some(subnet) = address.subnet.as_ref().filter(|_| subnet.is_none()) {
                    machine.unread.push(format!("Azure does not show its subnet {}", subnet.name()));
                }
                for group in groups.iter().filter(|group| !network.groups.contains_key(group)) {
                    let reason = format!("Azure does not show its network security group {}", group.name());
                    if !machine.unread.contains(&reason) {
                        machine.unread.push(reason);
                    }
                }
                machine.groups.extend(groups.iter().cloned());
                machine.doors.push(Door {
                    ip: address.ip,
                    application_groups: address.application_groups.clone(),
                    groups,
                });
                let public = address.public.as_ref().and_then(|public| network.public.get(public));
                machine.public = machine.public.or(public.copied());
                let routes = subnet.and_then(|subnet| network.routes.get(subnet.routes.as_ref()?));
                let is_front_unread = || network.unread.iter().any(|part| part.kind == UnreadKind::Front);
                let appliance = routes.and_then(|routes| routes.appliance);
                let found = appliance.and_then(|appliance| front(network, appliance));
                let has_routes = subnet.is_some_and(|subnet| subnet.routes.is_some());
                machine.may_have_front |= has_routes
                    && found.is_none()
                    && (appliance.is_some() || routes.is_none())
                    && is_front_unread();
                machine.front = machine.front.take().or(found);
                for forward in address.forwards.iter().filter_map(|id| network.forwards.get(id)) {
                    let protocols =
                        forward.protocol.map_or(vec![Protocol::Tcp, Protocol::Udp], |one| vec![one]);
                    for protocol in protocols {
                        if let (Ok(port), Some(frontend)) =
                            (Port::new(forward.backend_port.into()), forward.frontend)
                        {
                            machine.forwards.insert(ProtectedPort { protocol, port }, frontend);
                        }
                    }
                }
            }
        }
        machine
    }

    /// The reason that the machine cannot be judged or shut as a whole, if there is one.
    pub(crate) fn gap(&self) -> Option<String> {
        let unguarded = || {
            let door = self.doors.iter().find(|door| door.groups.is_empty())?;
            Some(format!("its address {} is behind no network security group", door.ip))
        };
        self.unread.first().cloned().or_else(unguarded)
    }

    /// The machine's addresses of a family.
    pub(crate) fn addresses(&self, family: Family) -> BTreeSet<IpAddr> {
        let is_of = |ip: &IpAddr| ip.is_ipv4() == (family == Family::V4);
        self.doors.iter().map(|door| door.ip).filter(is_of).collect()
    }

    /// The families of the machine's addresses.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(|family| !self.addresses(*family).is_empty())
    }

    /// The firewall that connections from the source pass; none where they come straight.
    pub(crate) fn front_of(&self, source: SourcePrefix) -> Option<&FrontFirewall> {
        self.front.as_ref().filter(|_| !is_private(source))
    }

    /// Returns the endpoints at which these ports are reached, with those of the firewall.
    pub(crate) fn reach(
        &self,
        ports: &BTreeSet<ProtectedPort>,
        mapped: BTreeMap<ProtectedPort, SocketAddr>,
    ) -> Reach {
        let at =
            |public: IpAddr| ports.iter().map(move |port| (*port, SocketAddr::new(public, port.port.get())));
        let mut endpoints: BTreeMap<_, _> = self.public.into_iter().flat_map(at).collect();
        endpoints.extend(self.forwards.clone());
        endpoints.extend(mapped);
        let translation = self.front.as_ref().map(|front| Translation {
            keeps: private().into_iter().filter_map(|net| net.to_string().parse().ok()).collect(),
            seen_as: front.seen_as.clone(),
        });
        Reach { endpoints, translation }
    }
}

fn front(network: &Network, appliance: IpAddr) -> Option<FrontFirewall> {
    let firewall = network.firewalls.iter().find(|firewall| firewall.private.contains(&appliance))?;
    let subnet = firewall.subnet.as_ref().and_then(|subnet| network.subnets.get(subnet));
    Some(FrontFirewall {
        firewall: firewall.id.clone(),
        policy: firewall.policy.clone(),
        public: firewall.public.iter().find_map(|public| network.public.get(public).copied()),
        seen_as: subnet
            .iter()
            .flat_map(|subnet| &subnet.prefixes)
            .filter_map(|prefix| prefix.to_string().parse().ok())
            .collect(),
    })
}

/// The addresses that an Azure Firewall does not translate: those of private networks, and shared ones (Microsoft Learn,
/// "Azure Firewall SNAT private IP address ranges").
fn private() -> [IpNet; 4] {
    let net = |a: u8, b: u8, length: u8| IpNet::new_assert(IpAddr::from([a, b, 0, 0]), length);
    [net(10, 0, 8), net(172, 16, 12), net(192, 168, 16), net(100, 64, 10)]
}

fn is_private(source: SourcePrefix) -> bool {
    private().iter().any(|net| net.contains(&source.net()))
}
