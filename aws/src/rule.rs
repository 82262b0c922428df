//! Ingress rules of security groups, as EC2 has them.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use postern_core::Protocol;

/// Tags of a resource. A key is there once (EC2 User Guide, "Tag restrictions").
pub(crate) type Tags = BTreeMap<String, String>;

/// A rule of one security group: one kind of traffic from one source (EC2 `SecurityGroupRule`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupRule {
    /// Its id, `sgr-…`.
    pub(crate) id: String,
    /// The id of its group, `sg-…`.
    pub(crate) group: String,
    /// The traffic that it lets in.
    pub(crate) traffic: Ec2Traffic,
    /// The source of that traffic.
    pub(crate) source: RuleSource,
    /// Its description; may be empty.
    pub(crate) description: String,
    /// Its tags.
    pub(crate) tags: Tags,
}

impl GroupRule {
    /// The traffic and source, which identify a rule in its group: EC2 refuses a second one with the same.
    pub(crate) fn identity(&self) -> (&Ec2Traffic, &RuleSource) {
        (&self.traffic, &self.source)
    }
}

/// The traffic that a rule lets in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Ec2Traffic {
    /// Every protocol and every port (`IpProtocol` -1).
    All,
    /// A range of TCP or UDP ports, both ends in it. 0 to 65535 is all of them.
    Ports {
        /// The protocol.
        protocol: Protocol,
        /// The first port.
        from: u16,
        /// The last port.
        to: u16,
    },
    /// Another protocol, which has no ports: `icmp`, `icmpv6`, or a number such as `50` (ESP).
    Other {
        /// The protocol by EC2's name.
        protocol: String,
        /// The type and the code of ICMP; -1 is any.
        kind: (i32, i32),
    },
}

/// The source from which a rule lets traffic in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RuleSource {
    /// An address range, without host bits.
    Prefix(IpNet),
    /// A managed prefix list, `pl-…`.
    PrefixList(String),
    /// A managed prefix list of IPv6 ranges. Only where its family has been read.
    PrefixListV6(String),
    /// Everything that another security group of the account, or the same one, is attached to.
    Group(String),
    /// The same, for a group of another account, in a VPC that is peered with this one.
    Peer {
        /// The group.
        group: String,
        /// Its account.
        account: String,
    },
    /// A source that this version cannot read.
    Unreadable,
}

impl RuleSource {
    /// Reports whether it is every address of its family.
    pub(crate) fn is_anyone(&self) -> bool {
        matches!(self, Self::Prefix(prefix) if prefix.prefix_len() == 0)
    }
}

impl Ec2Traffic {
    /// Reports whether it admits this port.
    pub(crate) fn admits(&self, on: Protocol, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Ports { protocol, from, to } => *protocol == on && (*from..=*to).contains(&port),
            Self::Other { .. } => false,
        }
    }

    /// Reports whether it admits everything that the other admits.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Ports { protocol, from, to }, Self::Ports { protocol: on, from: first, to: last }) => {
                protocol == on && from <= first && last <= to
            }
            (Self::Ports { .. } | Self::Other { .. }, _) => self == other,
        }
    }
}

impl fmt::Display for Ec2Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all traffic"),
            Self::Ports { protocol, from: 0, to: u16::MAX } => write!(f, "all {protocol} ports"),
            Self::Ports { protocol, from, to } if from == to => write!(f, "{protocol}/{from}"),
            Self::Ports { protocol, from, to } => write!(f, "{protocol}/{from}-{to}"),
            Self::Other { protocol, kind: (-1, _) } => write!(f, "protocol {protocol}"),
            Self::Other { protocol, kind: (kind, -1) } => write!(f, "protocol {protocol} of type {kind}"),
            Self::Other { protocol, kind: (kind, code) } => {
                write!(f, "protocol {protocol} of type {kind} and code {code}")
            }
        }
    }
}

impl fmt::Display for RuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) if self.is_anyone() => write!(f, "anyone ({prefix})"),
            Self::Prefix(prefix) => prefix.fmt(f),
            Self::PrefixList(list) | Self::PrefixListV6(list) => write!(f, "the prefix list {list}"),
            Self::Group(group) => write!(f, "members of {group}"),
            Self::Peer { group, account } => write!(f, "members of {group} of the account {account}"),
            Self::Unreadable => f.write_str("a source that this version cannot read"),
        }
    }
}

impl fmt::Display for GroupRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} of {} lets {} in from {}", self.id, self.group, self.traffic, self.source)
    }
}
