//! Splits one rule around the protected ports: the part that covers a protected port goes, the rest becomes
//! new rules.
//!
//! EC2 cannot change a rule's ports into several ranges, so the original is revoked and its pieces are authorized. Each
//! piece counts against the 60 rules of its group (EC2 User Guide, "Amazon VPC quotas").

use std::collections::BTreeSet;

use ipnet::IpNet;
use postern_core::{ProtectedPort, Protocol};

use crate::rule::{Ec2Traffic, GroupRule, RuleSource};

/// The outcome of splitting one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SplitOutcome {
    /// The rule covers no protected port and stays as it is.
    Untouched,
    /// The rule is revoked, and these are authorized in its place, from the same source.
    Split {
        /// The traffic that stays open; may be empty.
        kept: Vec<Ec2Traffic>,
        /// The loss beyond the protected ports that an administrator must accept, if any.
        ask: Option<Loss>,
    },
}

/// A loss that an administrator must accept before a rule is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Loss {
    /// The pieces of a rule for all traffic let in TCP, UDP and ICMP, and no other protocol.
    #[error("protocols other than TCP, UDP and ICMP, such as ESP and GRE, would no longer be let in")]
    OtherProtocols,
    /// Members of a group may send everything to each other.
    #[error("members of the group would no longer reach each other on the protected ports")]
    BetweenMembers,
}

/// Splits a rule around these ports.
pub(crate) fn split(rule: &GroupRule, protected: &BTreeSet<ProtectedPort>) -> SplitOutcome {
    if !protected.iter().any(|port| rule.traffic.admits(port.protocol, port.port.get())) {
        return SplitOutcome::Untouched;
    }
    match &rule.traffic {
        Ec2Traffic::Ports { protocol, from, to } => SplitOutcome::Split {
            kept: without(*protocol, *from, *to, protected),
            ask: between_members(rule),
        },
        Ec2Traffic::All => {
            let ports = |protocol| without(protocol, 0, u16::MAX, protected);
            let icmp = icmp(&rule.source).iter();
            let icmp = icmp.map(|name| Ec2Traffic::Other { protocol: (*name).to_owned(), kind: (-1, -1) });
            let kept = ports(Protocol::Tcp).into_iter().chain(ports(Protocol::Udp)).chain(icmp).collect();
            SplitOutcome::Split { kept, ask: between_members(rule).or(Some(Loss::OtherProtocols)) }
        }
        // It admits no port, so it was untouched.
        Ec2Traffic::Other { .. } => SplitOutcome::Untouched,
    }
}

/// Returns the ranges that are left of a range without its protected ports.
fn without(protocol: Protocol, from: u16, to: u16, protected: &BTreeSet<ProtectedPort>) -> Vec<Ec2Traffic> {
    let shut: BTreeSet<u16> = protected
        .iter()
        .filter(|port| port.protocol == protocol)
        .map(|port| port.port.get())
        .filter(|port| (from..=to).contains(port))
        .collect();
    let mut left = Vec::new();
    let mut next = Some(from);
    for port in shut {
        if let Some(from) = next.filter(|from| *from < port) {
            left.push(Ec2Traffic::Ports { protocol, from, to: port - 1 });
        }
        next = port.checked_add(1);
    }
    if let Some(from) = next.filter(|from| *from <= to) {
        left.push(Ec2Traffic::Ports { protocol, from, to });
    }
    left
}

/// Returns EC2's names of ICMP in the address families of the source. Members of a group have addresses of
/// both, and EC2 applies each name to one (EC2 API reference, `IpPermission`).
fn icmp(source: &RuleSource) -> &'static [&'static str] {
    match source {
        RuleSource::Prefix(IpNet::V6(_)) | RuleSource::PrefixListV6(_) => &["icmpv6"],
        RuleSource::Prefix(IpNet::V4(_)) | RuleSource::PrefixList(_) => &["icmp"],
        RuleSource::Group(_) | RuleSource::Peer { .. } => &["icmp", "icmpv6"],
        RuleSource::Unreadable => &["icmp"],
    }
}

fn between_members(rule: &GroupRule) -> Option<Loss> {
    (rule.source == RuleSource::Group(rule.group.clone())).then_some(Loss::BetweenMembers)
}

#[cfg(test)]
mod tests;
