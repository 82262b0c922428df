//! The reads of the way to one machine, and of a whole subscription.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use azure_mgmt_network::package_2024_03::models as azure;
use futures_util::future::{join_all, try_join_all};
use futures_util::join;
use postern_provider::kit::CallError;
use serde::Deserialize;

use crate::arm::{Arm, COMPUTE, Listed, NETWORK};
use crate::id::{ArmId, brief};
use crate::network::{Firewall, Network, Nic, Nsg, UnreadKind, UnreadPart};
use crate::wire;

/// The fields that are read of a virtual machine: the SDK's crate for networks has no models of Microsoft.Compute.
#[derive(Debug, Deserialize)]
pub(crate) struct VirtualMachine {
    pub(crate) id: String,
    #[serde(default)]
    properties: MachineProperties,
}

#[derive(Debug, Default, Deserialize)]
struct MachineProperties {
    #[serde(default, rename = "networkProfile")]
    network_profile: Option<NetworkProfile>,
}

#[derive(Debug, Default, Deserialize)]
struct NetworkProfile {
    #[serde(default, rename = "networkInterfaces")]
    interfaces: Vec<Reference>,
}

#[derive(Debug, Deserialize)]
struct Reference {
    #[serde(default)]
    id: String,
}

/// The reads, for the broker's identity.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) arm: &'a Arm,
    /// The subscriptions that may hold a firewall.
    pub(crate) subscriptions: &'a BTreeSet<String>,
}

impl Reader<'_> {
    /// Reads everything on the way to one machine.
    ///
    /// # Errors
    /// The error of the first call that fails; "not found" is of the machine alone.
    pub(crate) async fn machine(&self, vm: &ArmId) -> Result<Network, CallError> {
        let machine: VirtualMachine = self.arm.get(vm.as_str(), COMPUTE).await?;
        let profile = machine.properties.network_profile.unwrap_or_default();
        let ids: Vec<ArmId> = profile.interfaces.iter().filter_map(|it| ArmId::new(&it.id)).collect();
        let interfaces = join_all(ids.iter().map(|id| self.interface(id))).await;
        let mut network = Network::default();
        for Reference { id } in profile.interfaces.iter().filter(|it| ArmId::new(&it.id).is_none()) {
            network.interfaces.push(Nic::unread(vm, unreadable_id(id)));
        }
        for (id, interface) in ids.iter().zip(interfaces) {
            let hidden = || Nic::unread(vm, not_shown(id));
            let mut interface = interface?.unwrap_or_else(hidden);
            interface.vm = Some(vm.clone());
            network.interfaces.push(interface);
        }
        let addresses = || network.interfaces.iter().flat_map(|interface| &interface.addresses);
        let subnets: BTreeSet<ArmId> = addresses().filter_map(|address| address.subnet.clone()).collect();
        let balancers: BTreeSet<String> =
            addresses().flat_map(|it| &it.forwards).filter_map(balancer).collect();
        network.subnets = self.subnets(&subnets).await?;
        let of_subnets = network.subnets.values().filter_map(|subnet| subnet.group.clone());
        let of_interfaces = network.interfaces.iter().filter_map(|interface| interface.group.clone());
        let groups: BTreeSet<ArmId> = of_subnets.chain(of_interfaces).collect();
        let tables: BTreeSet<ArmId> = network.subnets.values().filter_map(|it| it.routes.clone()).collect();
        let routes = tables.iter().map(|table| self.arm.get::<azure::RouteTable>(table.as_str(), NETWORK));
        let (groups, routes) = join!(self.groups(&groups), join_all(routes));
        network.groups = groups?;
        for (id, table) in tables.iter().zip(routes) {
            match table {
                Ok(table) => network.routes.extend(wire::route_table(&table)),
                Err(error) => {
                    network.lacks(UnreadKind::Front, format!("the route table {}", id.in_words()), error)
                }
            }
        }
        if network.routes.values().any(|table| table.appliance.is_some()) {
            self.add_firewalls(&mut network).await;
        }
        for public in network.public_of_interfaces() {
            self.add_public(&mut network, &public).await;
        }
        for path in balancers {
            match self.arm.get::<azure::LoadBalancer>(&path, NETWORK).await {
                Ok(balancer) => self.add_balancer(&mut network, &balancer).await,
                Err(error) => {
                    network.lacks(UnreadKind::Reach, format!("the load balancer {}", brief(&path)), error)
                }
            }
        }
        Ok(network)
    }

    /// Reads every interface, group, subnet and firewall of a subscription. Without firewalls, routes, public addresses or load
    /// balancers the groups can still be judged: the network names those that could not be read.
    ///
    /// # Errors
    /// The interfaces, the groups or the virtual networks could not be read.
    pub(crate) async fn subscription(&self, subscription: &str) -> Result<Network, CallError> {
        let path = |kind: &str| format!("/subscriptions/{subscription}/providers/Microsoft.Network/{kind}");
        let of = |kind: &str| format!("the {kind} of subscription {subscription}");
        let (groups, interfaces, nets) =
            (path("networkSecurityGroups"), path("networkInterfaces"), path("virtualNetworks"));
        let (groups, interfaces, nets, firewalls) = join!(
            self.arm.list::<azure::NetworkSecurityGroup>(&groups, NETWORK),
            self.arm.list::<azure::NetworkInterface>(&interfaces, NETWORK),
            self.arm.list::<azure::VirtualNetwork>(&nets, NETWORK),
            self.firewalls(subscription),
        );
        let mut network = Network::default();
        let groups = network.items(UnreadKind::Reach, groups?);
        let interfaces = network.items(UnreadKind::Reach, interfaces?);
        let nets = network.items(UnreadKind::Reach, nets?);
        network.groups = by_id(&groups);
        network.interfaces = interfaces.iter().filter_map(wire::interface).collect();
        let subnets = nets.iter().filter_map(|net| net.properties.as_ref()).flat_map(|it| &it.subnets);
        network.subnets = subnets.filter_map(wire::subnet).collect();
        match firewalls {
            Ok(firewalls) => {
                let firewalls = network.items(UnreadKind::Front, firewalls);
                network.firewalls = firewalls.iter().filter_map(wire::firewall).collect();
            }
            Err(error) => network.lacks(UnreadKind::Front, firewalls_of(subscription), error),
        }
        let has_routes = network.subnets.values().any(|subnet| subnet.routes.is_some());
        if has_routes {
            match self.arm.list::<azure::RouteTable>(&path("routeTables"), NETWORK).await {
                Ok(tables) => {
                    let tables = network.items(UnreadKind::Front, tables);
                    network.routes = tables.iter().filter_map(wire::route_table).collect();
                }
                Err(error) => network.lacks(UnreadKind::Front, of("route tables"), error),
            }
        }
        if network.routes.values().any(|table| table.appliance.is_some()) {
            self.add_firewalls(&mut network).await;
        }
        if !network.public_of_interfaces().is_empty() {
            match self.arm.list::<azure::PublicIpAddress>(&path("publicIPAddresses"), NETWORK).await {
                Ok(all) => {
                    let all = network.items(UnreadKind::Reach, all);
                    network.public.extend(all.iter().filter_map(wire::public));
                }
                Err(error) => network.lacks(UnreadKind::Reach, of("public addresses"), error),
            }
        }
        if network.interfaces.iter().flat_map(|it| &it.addresses).any(|address| !address.forwards.is_empty())
        {
            match self.arm.list::<azure::LoadBalancer>(&path("loadBalancers"), NETWORK).await {
                Ok(balancers) => {
                    for balancer in network.items(UnreadKind::Reach, balancers) {
                        self.add_balancer(&mut network, &balancer).await;
                    }
                }
                Err(error) => network.lacks(UnreadKind::Reach, of("load balancers"), error),
            }
        }
        Ok(network)
    }

    /// Adds to the network of a subscription the interfaces that its machines have and that no list shows.
    pub(crate) fn add_hidden_interfaces(network: &mut Network, machines: &[VirtualMachine]) {
        let shown: BTreeSet<ArmId> = network.interfaces.iter().filter_map(|nic| nic.id.clone()).collect();
        for machine in machines {
            let Some(vm) = ArmId::new(&machine.id) else { continue };
            let profile = machine.properties.network_profile.iter();
            for Reference { id } in profile.flat_map(|profile| &profile.interfaces) {
                match ArmId::new(id) {
                    Some(id) if shown.contains(&id) => {}
                    Some(id) => network.interfaces.push(Nic::unread(&vm, not_shown(&id))),
                    None => network.interfaces.push(Nic::unread(&vm, unreadable_id(id))),
                }
            }
        }
    }

    /// Lists every group of a subscription.
    pub(crate) async fn all_groups(&self, subscription: &str) -> Result<BTreeMap<ArmId, Nsg>, CallError> {
        let path = format!("/subscriptions/{subscription}/providers/Microsoft.Network/networkSecurityGroups");
        let groups = self.arm.list::<azure::NetworkSecurityGroup>(&path, NETWORK).await?;
        for (id, error) in &groups.unparsed {
            tracing::warn!(%id, %error, "left out a network security group that cannot be parsed");
        }
        Ok(by_id(&groups.items))
    }

    /// Lists every firewall of every subscription, and returns those that could not be read besides.
    pub(crate) async fn all_firewalls(&self) -> (Vec<Firewall>, Vec<UnreadPart>) {
        let lists =
            join_all(self.subscriptions.iter().map(|subscription| self.firewalls(subscription))).await;
        let (mut firewalls, mut unread) = (Vec::new(), Vec::new());
        for (subscription, list) in self.subscriptions.iter().zip(lists) {
            match list {
                Ok(list) => {
                    firewalls.extend(list.items.iter().filter_map(wire::firewall));
                    let parts = list.unparsed.into_iter();
                    unread.extend(parts.map(|(id, error)| UnreadPart {
                        kind: UnreadKind::Front,
                        place: brief(&id),
                        error,
                    }));
                }
                Err(error) => {
                    let place = firewalls_of(subscription);
                    unread.push(UnreadPart { kind: UnreadKind::Front, place, error });
                }
            }
        }
        (firewalls, unread)
    }

    /// Lists every virtual machine of a subscription.
    pub(crate) async fn machines(&self, subscription: &str) -> Result<Listed<VirtualMachine>, CallError> {
        let path = format!("/subscriptions/{subscription}/providers/Microsoft.Compute/virtualMachines");
        self.arm.list(&path, COMPUTE).await
    }

    /// Reads a group; none where it does not exist.
    pub(crate) async fn group(&self, id: &ArmId) -> Result<Option<Nsg>, CallError> {
        let read = self.arm.get::<azure::NetworkSecurityGroup>(id.as_str(), NETWORK).await;
        Ok(found(read)?.as_ref().and_then(wire::group))
    }

    async fn groups(&self, ids: &BTreeSet<ArmId>) -> Result<BTreeMap<ArmId, Nsg>, CallError> {
        let groups = try_join_all(ids.iter().map(|id| self.group(id))).await?;
        Ok(groups.into_iter().flatten().map(|group| (group.id.clone(), group)).collect())
    }

    async fn interface(&self, id: &ArmId) -> Result<Option<Nic>, CallError> {
        let read = self.arm.get::<azure::NetworkInterface>(id.as_str(), NETWORK).await;
        Ok(found(read)?.as_ref().and_then(wire::interface))
    }

    async fn subnets(
        &self,
        ids: &BTreeSet<ArmId>,
    ) -> Result<BTreeMap<ArmId, crate::network::Subnet>, CallError> {
        let read = join_all(ids.iter().map(|id| self.arm.get::<azure::Subnet>(id.as_str(), NETWORK))).await;
        let subnets: Result<Vec<_>, _> = read.into_iter().collect();
        Ok(subnets?.iter().filter_map(wire::subnet).collect())
    }

    async fn firewalls(&self, subscription: &str) -> Result<Listed<azure::AzureFirewall>, CallError> {
        let path = format!("/subscriptions/{subscription}/providers/Microsoft.Network/azureFirewalls");
        self.arm.list(&path, NETWORK).await
    }

    /// Adds the firewalls that routes lead to, with their subnets and addresses. A hub's firewall is often in another
    /// subscription, so that all are searched.
    async fn add_firewalls(&self, network: &mut Network) {
        let appliances: BTreeSet<_> = network.routes.values().filter_map(|table| table.appliance).collect();
        let (firewalls, unread) = self.all_firewalls().await;
        network.firewalls = firewalls;
        for UnreadPart { kind, place, error } in unread {
            network.lacks(kind, place, error);
        }
        network.firewalls.retain(|firewall| firewall.private.iter().any(|ip| appliances.contains(ip)));
        let subnets: BTreeSet<ArmId> = network.firewalls.iter().filter_map(|it| it.subnet.clone()).collect();
        let missing: BTreeSet<ArmId> =
            subnets.into_iter().filter(|subnet| !network.subnets.contains_key(subnet)).collect();
        for subnet in missing {
            match self.subnets(&[subnet.clone()].into()).await {
                Ok(read) => network.subnets.extend(read),
                Err(error) => {
                    // Without its subnet, the addresses are unknown under which machines see connections through it.
                    network.firewalls.retain(|firewall| firewall.subnet.as_ref() != Some(&subnet));
                    network.lacks(
                        UnreadKind::Front,
                        format!("the firewall's subnet {}", subnet.in_words()),
                        error,
                    );
                }
            }
        }
        for public in
            network.firewalls.iter().flat_map(|firewall| firewall.public.clone()).collect::<Vec<_>>()
        {
            self.add_public(network, &public).await;
        }
    }

    async fn add_balancer(&self, network: &mut Network, balancer: &azure::LoadBalancer) {
        for (id, mut forward, public) in wire::forwards(balancer) {
            if let Some(public) = public {
                self.add_public(network, &public).await;
                let ip = network.public.get(&public);
                forward.frontend = forward.frontend.zip(ip).map(|(end, ip)| SocketAddr::new(*ip, end.port()));
            }
            network.forwards.insert(id, forward);
        }
    }

    async fn add_public(&self, network: &mut Network, id: &ArmId) {
        if !network.public.contains_key(id) {
            match found(self.arm.get::<azure::PublicIpAddress>(id.as_str(), NETWORK).await) {
                Ok(read) => network.public.extend(read.as_ref().and_then(wire::public)),
                Err(error) => {
                    network.lacks(UnreadKind::Reach, format!("the public address {}", id.in_words()), error)
                }
            }
        }
    }
}

fn unreadable_id(id: &str) -> String {
    format!("the id of one of its interfaces cannot be read: {id:?}")
}

fn not_shown(id: &ArmId) -> String {
    format!("Azure does not show its interface {}", id.in_words())
}

fn by_id(groups: &[azure::NetworkSecurityGroup]) -> BTreeMap<ArmId, Nsg> {
    groups.iter().filter_map(wire::group).map(|group| (group.id.clone(), group)).collect()
}

/// The firewalls of a subscription, in words.
fn firewalls_of(subscription: &str) -> String {
    format!("the Azure Firewalls of subscription {subscription}")
}

/// Returns the resource that was read; none where it does not exist.
fn found<T>(read: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The path of an inbound NAT rule's load balancer.
fn balancer(rule: &ArmId) -> Option<String> {
    Some(rule.as_str().split_once("/inboundnatrules/")?.0.to_owned())
}
