//! The conversion of the SDK's models. Azure's words are compared without case. A part of a rule that cannot be read makes the rule
//! allow more and deny less, so that no port counts as shut that may be open.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use azure_mgmt_network::package_2024_03::models as azure;
use ipnet::IpNet;
use postern_core::Protocol;
use serde::Serialize;

use crate::id::ArmId;
use crate::names::RuleName;
use crate::network::{
    Address, Firewall, Forward, NatRule, Nic, Nsg, NsgRule, NsgTraffic, RouteTable, RulePeer, RuleProtocol,
    RuleState, Subnet,
};

/// The word of one of Azure's enumerations, in lower case.
fn word(value: &impl Serialize) -> String {
    let word = serde_json::to_value(value).ok();
    word.as_ref().and_then(|word| word.as_str()).unwrap_or_default().to_ascii_lowercase()
}

fn id(id: Option<&String>) -> Option<ArmId> {
    id.and_then(|id| ArmId::new(id))
}

fn sub(resource: Option<&azure::SubResource>) -> Option<ArmId> {
    id(resource?.id.as_ref())
}

/// The id of a resource.
pub(crate) fn resource_id(resource: &azure::Resource) -> Option<ArmId> {
    id(resource.id.as_ref())
}

/// A network security group.
pub(crate) fn group(group: &azure::NetworkSecurityGroup) -> Option<Nsg> {
    let properties = group.properties.as_ref()?;
    let own = properties.security_rules.iter().filter_map(|it| rule(it, false));
    let defaults = properties.default_security_rules.iter().filter_map(|it| rule(it, true));
    let mut rules: Vec<NsgRule> = own.chain(defaults).collect();
    rules.sort_by_key(|rule| (rule.is_default, rule.priority));
    let flushes = properties.flush_connection == Some(true);
    Some(Nsg { id: resource_id(&group.resource)?, flushes, rules })
}

/// A rule for inbound connections. An outbound rule is read if its name is one of Postern's: another principal turned it round, and
/// it counts as a rule that matches nothing.
fn rule(rule: &azure::SecurityRule, is_default: bool) -> Option<NsgRule> {
    let properties = rule.properties.as_ref()?;
    let is_turned = word(&properties.direction) == "outbound";
    if is_turned && RuleName::read(rule.name.as_deref()?).is_none() {
        return None;
    }
    let allows = word(&properties.access) != "deny";
    let protocol = match word(&properties.protocol).as_str() {
        "tcp" => RuleProtocol::One(Protocol::Tcp),
        "udp" => RuleProtocol::One(Protocol::Udp),
        "icmp" | "esp" | "ah" => RuleProtocol::Other,
        _ => RuleProtocol::Any,
    };
    let peers = |one: Option<&String>,
                 many: &[String],
                 application_groups: &[azure::ApplicationSecurityGroup]|
     -> Vec<RulePeer> {
        let nets =
            one.into_iter().chain(many).filter(|text| !text.is_empty()).map(|text| RulePeer::read(text));
        // A group whose id cannot be read may have any machine in it.
        let role = |role: &azure::ApplicationSecurityGroup| {
            resource_id(&role.resource)
                .map_or_else(|| RulePeer::Tag("unreadable".to_owned()), RulePeer::ApplicationGroup)
        };
        nets.chain(application_groups.iter().map(role)).collect()
    };
    let ranges = |one: Option<&String>, many: &[String]| -> Vec<RangeInclusive<u16>> {
        let texts = one.into_iter().chain(many).filter(|text| !text.is_empty());
        texts.filter_map(|text| ports(text).or_else(|| allows.then_some(0..=u16::MAX))).collect()
    };
    let source_ports = ranges(properties.source_port_range.as_ref(), &properties.source_port_ranges);
    let nothing = NsgTraffic {
        protocol: RuleProtocol::Other,
        sources: Vec::new(),
        any_source_port: false,
        destinations: Vec::new(),
        ports: Vec::new(),
    };
    let traffic = || NsgTraffic {
        protocol,
        sources: peers(
            properties.source_address_prefix.as_ref(),
            &properties.source_address_prefixes,
            &properties.source_application_security_groups,
        ),
        any_source_port: source_ports.contains(&(0..=u16::MAX)),
        destinations: peers(
            properties.destination_address_prefix.as_ref(),
            &properties.destination_address_prefixes,
            &properties.destination_application_security_groups,
        ),
        ports: ranges(properties.destination_port_range.as_ref(), &properties.destination_port_ranges),
    };
    Some(NsgRule {
        name: rule.name.clone()?,
        priority: u16::try_from(properties.priority).ok()?,
        allows,
        traffic: if is_turned { nothing } else { traffic() },
        description: properties.description.clone().unwrap_or_default(),
        is_default,
        state: state(properties.provisioning_state.as_ref()),
    })
}

/// The state of a rule or a firewall; an answer without one says that nothing is under way.
fn state(state: Option<&impl Serialize>) -> RuleState {
    match state.map(word).as_deref() {
        None | Some("succeeded") => RuleState::InForce,
        Some("failed" | "canceled") => RuleState::Failed,
        Some(_) => RuleState::Changing,
    }
}

/// Reads `*`, a port, or a range of ports.
pub(crate) fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    if text == "*" {
        return Some(0..=u16::MAX);
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
}

/// A network interface.
pub(crate) fn interface(interface: &azure::NetworkInterface) -> Option<Nic> {
    let properties = interface.properties.as_ref()?;
    let name = interface.resource.name.as_deref().unwrap_or_default();
    let (mut addresses, mut unread) = (Vec::new(), Vec::new());
    for properties in properties.ip_configurations.iter().filter_map(|it| it.properties.as_ref()) {
        // An address that Azure has not assigned yet lets nothing in.
        let Some(text) = properties.private_ip_address.as_ref().filter(|text| !text.is_empty()) else {
            continue;
        };
        let subnet_id = properties.subnet.as_ref().and_then(|subnet| subnet.sub_resource.id.as_ref());
        let subnet = id(subnet_id);
        let Ok(ip) = text.parse() else {
            unread.push(format!(
                "its interface {name} has {text:?} as its address: Postern handles single addresses, and no blocks"
            ));
            continue;
        };
        if let Some(text) = subnet_id.filter(|_| subnet.is_none()) {
            unread.push(format!("the id of the subnet of its interface {name} cannot be read: {text:?}"));
        }
        addresses.push(Address {
            ip,
            subnet,
            application_groups: properties
                .application_security_groups
                .iter()
                .filter_map(|role| resource_id(&role.resource))
                .collect(),
            forwards: properties
                .load_balancer_inbound_nat_rules
                .iter()
                .filter_map(|rule| id(rule.sub_resource.id.as_ref()))
                .collect(),
            public: properties.public_ip_address.as_ref().and_then(|public| resource_id(&public.resource)),
        });
    }
    let group = properties.network_security_group.as_ref();
    let group_id = group.and_then(|group| resource_id(&group.resource));
    if group.is_some() && group_id.is_none() {
        unread.push(format!("the id of the network security group of its interface {name} cannot be read"));
    }
    let (id, vm) = (resource_id(&interface.resource), sub(properties.virtual_machine.as_ref()));
    Some(Nic { id, vm, group: group_id, addresses, unread })
}

/// A subnet.
pub(crate) fn subnet(subnet: &azure::Subnet) -> Option<(ArmId, Subnet)> {
    let properties = subnet.properties.as_ref()?;
    let prefixes = properties.address_prefix.iter().chain(&properties.address_prefixes);
    Some((
        id(subnet.sub_resource.id.as_ref())?,
        Subnet {
            group: properties.network_security_group.as_ref().and_then(|group| resource_id(&group.resource)),
            routes: properties.route_table.as_ref().and_then(|table| resource_id(&table.resource)),
            prefixes: prefixes.filter_map(|prefix| prefix.parse().ok()).collect(),
        },
    ))
}

/// A route table.
pub(crate) fn route_table(table: &azure::RouteTable) -> Option<(ArmId, RouteTable)> {
    let routes = table.properties.iter().flat_map(|properties| &properties.routes);
    let mut default = routes.filter_map(|route| {
        let properties = route.properties.as_ref()?;
        let prefix: IpNet = properties.address_prefix.as_ref()?.parse().ok()?;
        let is_default = prefix.prefix_len() == 0 && word(&properties.next_hop_type) == "virtualappliance";
        is_default.then(|| properties.next_hop_ip_address.as_ref()?.parse().ok()).flatten()
    });
    Some((resource_id(&table.resource)?, RouteTable { appliance: default.next() }))
}

/// A public address.
pub(crate) fn public(address: &azure::PublicIpAddress) -> Option<(ArmId, IpAddr)> {
    let ip = address.properties.as_ref()?.ip_address.as_ref()?.parse().ok()?;
    Some((resource_id(&address.resource)?, ip))
}

/// The inbound NAT rules of a load balancer, each with the id of the public address it is reached at.
pub(crate) fn forwards(balancer: &azure::LoadBalancer) -> Vec<(ArmId, Forward, Option<ArmId>)> {
    let Some(properties) = &balancer.properties else { return Vec::new() };
    let forward = |rule: &azure::InboundNatRule| {
        let nat = rule.properties.as_ref()?;
        let frontend = nat.frontend_ip_configuration.as_ref().and_then(|frontend| sub(Some(frontend)));
        let frontend = properties.frontend_ip_configurations.iter().find(|configuration| {
            frontend.is_some() && id(configuration.sub_resource.id.as_ref()) == frontend
        });
        let frontend = frontend.and_then(|frontend| frontend.properties.as_ref());
        let public =
            frontend.and_then(|frontend| resource_id(&frontend.public_ip_address.as_ref()?.resource));
        let private =
            frontend.and_then(|frontend| frontend.private_ip_address.as_ref()?.parse::<IpAddr>().ok());
        let port = u16::try_from(nat.frontend_port?).ok()?;
        // Only the port is known if the address belongs to another resource.
        let address = private.unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let forward = Forward {
            frontend: Some(SocketAddr::new(address, port)),
            protocol: match nat.protocol.as_ref().map(word).as_deref() {
                Some("tcp") => Some(Protocol::Tcp),
                Some("udp") => Some(Protocol::Udp),
                Some(_) | None => None,
            },
            backend_port: u16::try_from(nat.backend_port?).ok()?,
        };
        Some((id(rule.sub_resource.id.as_ref())?, forward, public))
    };
    properties.inbound_nat_rules.iter().filter_map(forward).collect()
}

/// An Azure Firewall.
pub(crate) fn firewall(firewall: &azure::AzureFirewall) -> Option<Firewall> {
    let properties = firewall.properties.as_ref()?;
    let ends: Vec<_> = properties.ip_configurations.iter().filter_map(|it| it.properties.as_ref()).collect();
    let nat = properties.nat_rule_collections.iter().flat_map(|collection| {
        let rules = collection.properties.iter().flat_map(|properties| &properties.rules);
        rules.filter_map(|rule| nat_rule(collection.name.as_deref().unwrap_or_default(), rule))
    });
    Some(Firewall {
        id: resource_id(&firewall.resource)?,
        private: ends.iter().filter_map(|end| end.private_ip_address.as_ref()?.parse().ok()).collect(),
        public: ends.iter().filter_map(|end| sub(end.public_ip_address.as_ref())).collect(),
        subnet: ends.iter().find_map(|end| sub(end.subnet.as_ref())),
        policy: properties.firewall_policy.as_ref().map(|policy| policy.id.clone().unwrap_or_default()),
        state: state(properties.provisioning_state.as_ref()),
        nat: nat.collect(),
    })
}

fn nat_rule(collection: &str, rule: &azure::AzureFirewallNatRule) -> Option<NatRule> {
    let address = rule.translated_address.as_ref().and_then(|text| text.parse().ok());
    let port = rule.translated_port.as_ref().and_then(|text| text.parse().ok());
    let ip_groups = rule.source_ip_groups.iter().map(|id| RulePeer::IpGroup(id.to_ascii_lowercase()));
    Some(NatRule {
        collection: collection.to_owned(),
        name: rule.name.clone()?,
        sources: rule.source_addresses.iter().map(|text| RulePeer::read(text)).chain(ip_groups).collect(),
        protocols: rule
            .protocols
            .iter()
            .flat_map(|protocol| match word(protocol).as_str() {
                "tcp" => vec![Protocol::Tcp],
                "udp" => vec![Protocol::Udp],
                "any" => vec![Protocol::Tcp, Protocol::Udp],
                _ => Vec::new(),
            })
            .collect(),
        destinations: rule.destination_addresses.iter().map(|text| RulePeer::read(text)).collect(),
        ports: rule.destination_ports.iter().filter_map(|text| ports(text)).collect(),
        translated: address.zip(port),
        description: rule.description.clone().unwrap_or_default(),
    })
}
