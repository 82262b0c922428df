//! Ingress rules of security groups, as EC2 has them.

use std::fmt;

use postern_core::{Protocol, SourcePrefix};
use serde::{Deserialize, Serialize};

/// One ingress rule of one security group: one kind of traffic from one source (EC2 `SecurityGroupRule`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its id, `sgr-…`.
    pub id: String,
    /// The id of its group, `sg-…`.
    pub group: String,
    /// What it lets in.
    pub traffic: Traffic,
    /// From where.
    pub source: Source,
    /// Its description; may be empty.
    pub description: String,
}

/// What a rule lets in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Traffic {
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
        /// As EC2 names it.
        protocol: String,
    },
}

/// Where a rule lets traffic come from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An address range.
    Prefix(SourcePrefix),
    /// A managed prefix list, `pl-…`.
    PrefixList(String),
    /// Everything that another security group, or the same one, is attached to.
    Group(String),
}

impl Source {
    /// Whether it is every address of its family.
    pub fn is_anyone(&self) -> bool {
        matches!(self, Self::Prefix(prefix) if prefix.is_any())
    }
}

impl Traffic {
    /// Whether it admits this port.
    pub fn admits(&self, on: Protocol, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Ports { protocol, from, to } => *protocol == on && (*from..=*to).contains(&port),
            Self::Other { .. } => false,
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all traffic"),
            Self::Ports { protocol, from: 0, to: u16::MAX } => write!(f, "all {protocol} ports"),
            Self::Ports { protocol, from, to } if from == to => write!(f, "{protocol}/{from}"),
            Self::Ports { protocol, from, to } => write!(f, "{protocol}/{from}-{to}"),
            Self::Other { protocol } => write!(f, "protocol {protocol}"),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) if prefix.is_any() => write!(f, "anyone ({prefix})"),
            Self::Prefix(prefix) => prefix.fmt(f),
            Self::PrefixList(list) => write!(f, "the prefix list {list}"),
            Self::Group(group) => write!(f, "members of {group}"),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} of {} lets {} in from {}", self.id, self.group, self.traffic, self.source)
    }
}
