//! The decision on connections, by the rules that are in force. It shares no code with the provider that it judges.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::rules::{application_groups, net, port_ranges, ports, prefixes};
use crate::state::{SimState, parent};

/// The decision on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// True if the connection gets in.
    pub admitted: bool,
    /// The rule that decided, after its group; empty where no group is on the way.
    pub by: String,
}

/// The groups on the way to an interface: the subnet's, then its own.
pub(crate) fn groups_of(state: &SimState, interface: &Value) -> Vec<String> {
    let end = &interface["properties"]["ipConfigurations"][0]["properties"];
    let subnet = end["subnet"]["id"].as_str().and_then(|id| state.read(id));
    let of = |value: &Value| value["properties"]["networkSecurityGroup"]["id"].as_str().map(str::to_owned);
    [subnet.and_then(|subnet| of(&subnet)), of(interface)].into_iter().flatten().collect()
}

pub(crate) fn admits(state: &SimState, from: IpAddr, interface: &str, protocol: &str, port: u16) -> Verdict {
    let interface = state.read(interface).unwrap_or_else(|| panic!("{interface} does not exist"));
    let ends = interface["properties"]["ipConfigurations"].as_array().cloned().unwrap_or_default();
    let end = ends.iter().find(|end| {
        let ip = end["properties"]["privateIPAddress"].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
        ip.is_some_and(|ip| ip.is_ipv4() == from.is_ipv4())
    });
    let Some(end) = end else { return Verdict { admitted: false, by: "no address".into() } };
    let to: IpAddr = end["properties"]["privateIPAddress"].as_str().unwrap().parse().unwrap();
    let member_of: Vec<String> = end["properties"]["applicationSecurityGroups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|role| role["id"].as_str().map(str::to_ascii_lowercase))
        .collect();
    let space = end["properties"]["subnet"]["id"].as_str().map(parent).and_then(|net| state.read(&net));
    let space: Vec<IpNet> = space
        .iter()
        .flat_map(|net| net["properties"]["addressSpace"]["addressPrefixes"].as_array().into_iter().flatten())
        .filter_map(|prefix| prefix.as_str()?.parse().ok())
        .collect();
    let inside = |ip: IpAddr| space.iter().any(|net| net.contains(&ip));
    let is_of = |prefix: &str, ip: IpAddr| match prefix.to_ascii_lowercase().as_str() {
        "*" | "any" => true,
        "virtualnetwork" => inside(ip),
        "internet" => !inside(ip),
        "azureloadbalancer" => ip == IpAddr::from([168, 63, 129, 16]),
        other => net(other).is_some_and(|net| net.contains(&ip)),
    };
    let mut by = String::new();
    for group in groups_of(state, &interface) {
        let mut rules = state.in_force(&group);
        rules.sort_by_key(|rule| rule["properties"]["priority"].as_i64());
        rules.extend(crate::rules::defaults(&group).as_array().cloned().unwrap_or_default());
        let decides = |rule: &&Value| {
            let rule = &rule["properties"];
            let word = |field: &str| rule[field].as_str().unwrap_or_default().to_ascii_lowercase();
            word("direction") == "inbound"
                && (word("protocol") == "*" || word("protocol") == protocol.to_ascii_lowercase())
                && prefixes(rule, "source").iter().any(|prefix| is_of(prefix, from))
                && (prefixes(rule, "destination").iter().any(|prefix| is_of(prefix, to))
                    || application_groups(rule, "destination").iter().any(|role| member_of.contains(role)))
                && port_ranges(rule, "destination")
                    .iter()
                    .filter_map(|range| ports(range))
                    .any(|(low, high)| (low..=high).contains(&port))
        };
        let rule = rules.iter().find(decides).cloned().unwrap_or_default();
        let name = group.rsplit('/').next().unwrap_or_default();
        by = format!("{name}/{}", rule["name"].as_str().unwrap_or_default());
        if !rule["properties"]["access"].as_str().is_some_and(|access| access.eq_ignore_ascii_case("allow")) {
            return Verdict { admitted: false, by };
        }
    }
    Verdict { admitted: true, by }
}

pub(crate) fn through_firewall(
    state: &SimState,
    from: IpAddr,
    firewall: &str,
    public: IpAddr,
    protocol: &str,
    port: u16,
) -> Option<(IpAddr, u16)> {
    let mut collections = state.in_force(firewall);
    collections.sort_by_key(|collection| collection["properties"]["priority"].as_i64());
    let rules = collections
        .iter()
        .flat_map(|collection| collection["properties"]["rules"].as_array().into_iter().flatten());
    let texts = |rule: &Value, field: &str| -> Vec<String> {
        rule[field]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|text| text.as_str().map(str::to_owned))
            .collect()
    };
    for rule in rules {
        let matches = texts(rule, "sourceAddresses")
            .iter()
            .any(|it| it == "*" || net(it).is_some_and(|net| net.contains(&from)))
            && texts(rule, "destinationAddresses").iter().any(|it| it.parse() == Ok(public))
            && texts(rule, "destinationPorts")
                .iter()
                .filter_map(|it| ports(it))
                .any(|(low, high)| (low..=high).contains(&port))
            && texts(rule, "protocols")
                .iter()
                .any(|it| it.eq_ignore_ascii_case("any") || it.eq_ignore_ascii_case(protocol));
        if matches {
            let text = |field: &str| rule[field].as_str();
            return Some((text("translatedAddress")?.parse().ok()?, text("translatedPort")?.parse().ok()?));
        }
    }
    None
}
