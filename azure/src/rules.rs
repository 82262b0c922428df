//! The rules of network security groups that Postern writes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use azure_mgmt_network::package_2024_03::models as azure;
use ipnet::IpNet;
use postern_core::{Port, Protocol, SourcePrefix};

use crate::network::{NsgRule, NsgTraffic, RulePeer, RuleProtocol, RuleState};

/// A rule that Postern writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewNsgRule {
    pub(crate) name: String,
    pub(crate) priority: u16,
    pub(crate) allows: bool,
    pub(crate) matches: RuleMatch,
    pub(crate) description: String,
}

/// The traffic that a rule of Postern's matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RuleMatch {
    /// Connections to ports of a machine.
    Ports {
        protocol: Protocol,
        /// None for everyone.
        sources: Option<BTreeSet<SourcePrefix>>,
        addresses: BTreeSet<IpAddr>,
        ports: BTreeSet<Port>,
    },
    /// No traffic: the rule is there for its name. It denies addresses for documentation, which no machine has (RFC 5737).
    Nothing,
}

impl RuleMatch {
    /// Returns it as Azure reads it back.
    pub(crate) fn traffic(&self) -> NsgTraffic {
        let none = || vec![RulePeer::Net(IpNet::new_assert(IpAddr::from([192, 0, 2, 0]), 32))];
        match self {
            Self::Ports { protocol, sources, addresses, ports } => NsgTraffic {
                protocol: RuleProtocol::One(*protocol),
                sources: match sources {
                    Some(sources) => sources.iter().map(|source| RulePeer::from(*source)).collect(),
                    None => vec![RulePeer::Any],
                },
                any_source_port: true,
                destinations: addresses.iter().map(|ip| RulePeer::Net(IpNet::from(*ip))).collect(),
                ports: ports.iter().map(|port| port.get()..=port.get()).collect(),
            },
            Self::Nothing => NsgTraffic {
                protocol: RuleProtocol::Any,
                sources: none(),
                any_source_port: true,
                destinations: none(),
                ports: vec![0..=u16::MAX],
            },
        }
    }
}

impl NewNsgRule {
    /// Returns it as Azure reads it back.
    pub(crate) fn read_back(&self) -> NsgRule {
        NsgRule {
            name: self.name.clone(),
            priority: self.priority,
            allows: self.allows,
            traffic: self.matches.traffic(),
            description: self.description.clone(),
            is_default: false,
            state: RuleState::InForce,
        }
    }

    /// Converts it to the SDK's model. Prefixes and ports are always lists, as augmented rules have them.
    pub(crate) fn to_azure(&self) -> azure::SecurityRule {
        let protocol = match &self.matches {
            RuleMatch::Ports { protocol: Protocol::Tcp, .. } => {
                azure::security_rule_properties_format::Protocol::Tcp
            }
            RuleMatch::Ports { protocol: Protocol::Udp, .. } => {
                azure::security_rule_properties_format::Protocol::Udp
            }
            RuleMatch::Nothing => azure::security_rule_properties_format::Protocol::U2a,
        };
        let access =
            if self.allows { azure::SecurityRuleAccess::Allow } else { azure::SecurityRuleAccess::Deny };
        let direction = azure::SecurityRuleDirection::Inbound;
        let mut properties =
            azure::SecurityRulePropertiesFormat::new(protocol, access, self.priority.into(), direction);
        properties.description = Some(self.description.clone());
        properties.source_port_range = Some("*".into());
        match &self.matches {
            RuleMatch::Ports { sources, addresses, ports, .. } => {
                match sources {
                    Some(sources) => {
                        properties.source_address_prefixes =
                            sources.iter().map(ToString::to_string).collect();
                    }
                    None => properties.source_address_prefix = Some("*".into()),
                }
                properties.destination_address_prefixes =
                    addresses.iter().map(|ip| IpNet::from(*ip).to_string()).collect();
                properties.destination_port_ranges = ports.iter().map(ToString::to_string).collect();
            }
            RuleMatch::Nothing => {
                properties.source_address_prefix = Some("192.0.2.0/32".into());
                properties.destination_address_prefix = Some("192.0.2.0/32".into());
                properties.destination_port_range = Some("*".into());
            }
        }
        azure::SecurityRule { properties: Some(properties), ..azure::SecurityRule::new() }
    }
}
