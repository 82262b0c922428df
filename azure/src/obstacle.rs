//! The customer's rules in front of a window that shut it.
//!
//! A window is open if its rule is the first one in each group that decides on a connection. A rule of the customer's that denies
//! may come before it: for any port of the grant, for a part of the sources, by a service tag, or from a range of source ports. The
//! rule kept here: what cannot be known counts as shut for a grant, so that no grant is active whose port does not open.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use postern_core::{Port, ProtectedPort, Protocol, SourcePrefix};

use crate::names::{Content, Family, RuleName};
use crate::network::{Door, Nsg, NsgRule, RulePeer};
use crate::snapshot::{MachineView, content};

/// A customer's rule that may deny a part of a window's source before the window's rule allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Obstacle<'a> {
    pub(crate) rule: &'a NsgRule,
    port: ProtectedPort,
    source: RulePeer,
}

impl fmt::Display for Obstacle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, port, source } = self;
        write!(f, "rule {} (priority {}) may deny {port} to {source}", rule.name, rule.priority)
    }
}

impl MachineView<'_> {
    /// The first rule of a group that may deny a part of these sources a port of the machine, if one comes before Postern's rules.
    pub(crate) fn obstacle<'b>(
        &self,
        group: &'b Nsg,
        protocol: Protocol,
        ports: &BTreeSet<Port>,
        sources: &BTreeSet<SourcePrefix>,
    ) -> Option<Obstacle<'b>> {
        let mut found: Option<Obstacle<'b>> = None;
        for source in sources {
            let family = Family::of(*source);
            let of_family = |door: &&Door| door.ip.is_ipv4() == (family == Family::V4);
            for door in self.machine.doors.iter().filter(of_family) {
                for port in ports {
                    let (port, source) = (ProtectedPort { protocol, port: *port }, RulePeer::from(*source));
                    // Postern's own rules that shut the ports come behind every window.
                    let rule = group.obstacle(door, port, &source);
                    let rule = rule.filter(|it| !it.is_default && RuleName::read(&it.name).is_none());
                    if let Some(rule) = rule
                        && found.as_ref().is_none_or(|found| rule.priority < found.rule.priority)
                    {
                        found = Some(Obstacle { rule, port, source });
                    }
                }
            }
        }
        found
    }

    /// The rule that may deny a part of what a window's rule allows, and comes before it.
    pub(crate) fn obstacle_of<'b>(&self, group: &'b Nsg, rule: &NsgRule) -> Option<Obstacle<'b>> {
        let Content { protocol, ports, sources } = content(rule)?;
        let obstacle = self.obstacle(group, protocol, &ports, &sources);
        obstacle.filter(|obstacle| obstacle.rule.priority < rule.priority)
    }
}

impl Nsg {
    /// Returns the first rule that may deny a part of a source, unless an earlier rule of the customer's surely admits all of it.
    /// What cannot be known counts as shut: a service tag, a range of source ports, a rule whose write is not finished.
    fn obstacle(&self, door: &Door, port: ProtectedPort, source: &RulePeer) -> Option<&NsgRule> {
        for rule in self.rules.iter().filter(|rule| rule.traffic.concerns(door, port)) {
            if !rule.allows && rule.traffic.sources.iter().any(|denied| denied.may_hold(source)) {
                return Some(rule);
            }
            let admits_all = rule.allows
                && rule.is_in_force()
                && rule.traffic.any_source_port
                && RuleName::read(&rule.name).is_none()
                && rule.traffic.sources.iter().any(|admitted| admitted.covers(source));
            if admits_all {
                return None;
            }
        }
        None
    }
}

impl RulePeer {
    /// Reports whether this peer may include an address of a window's source.
    fn may_hold(&self, source: &Self) -> bool {
        let is_private = matches!(source, Self::Net(net) if is_private(net));
        match self {
            Self::Tag(tag) if tag == "internet" => !is_private,
            // The members of these are addresses of the virtual network, or of networks that it is connected to.
            Self::Tag(tag) if tag == "virtualnetwork" => is_private || source.is_anyone(),
            Self::ApplicationGroup(_) => is_private || source.is_anyone(),
            Self::Tag(tag) if tag == "azureloadbalancer" => source.meets(&Self::Net(LOAD_BALANCER.into())),
            Self::Any | Self::Net(_) | Self::Tag(_) | Self::IpGroup(_) => self.meets(source),
        }
    }
}

/// The address from which load balancers probe (Microsoft Learn, "What is IP address 168.63.129.16?").
const LOAD_BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16));

/// Reports whether all addresses of a prefix are in networks that are not routed on the internet (RFC 1918, RFC 6598, RFC 3927,
/// RFC 4193, RFC 4291).
fn is_private(net: &IpNet) -> bool {
    let is_in = |ip: IpAddr, length| IpNet::new(ip, length).is_ok_and(|private| private.contains(net));
    let v4 = |a, b| IpAddr::from([a, b, 0, 0]);
    let v6 = |first| IpAddr::from([first, 0, 0, 0, 0, 0, 0, 0_u16]);
    is_in(v4(10, 0), 8)
        || is_in(v4(172, 16), 12)
        || is_in(v4(192, 168), 16)
        || is_in(v4(100, 64), 10)
        || is_in(v4(169, 254), 16)
        || is_in(v6(0xfc00), 7)
        || is_in(v6(0xfe80), 10)
}
