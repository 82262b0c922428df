//! What lockdown makes of one rule: the part that covers a protected port goes, the rest is written anew.
//!
//! EC2 cannot change a rule's ports into several ranges, so the original is revoked and its pieces are authorized. Each
//! piece counts against the 60 rules of its group (EC2 User Guide, "Amazon VPC quotas").

use std::collections::BTreeSet;

use ipnet::IpNet;
use postern_core::{ProtectedPort, Protocol};

use crate::rule::{Rule, Source, Traffic};

/// What becomes of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It covers no protected port and stays as it is.
    Untouched,
    /// It is revoked, and these are authorized in its place, from the same source.
    Split {
        /// What stays open; may be empty.
        kept: Vec<Traffic>,
        /// What is lost, or needs a human's word, though no protected port is in it; none where nothing is.
        ask: Option<Loss>,
    },
}

/// Why an administrator is to be asked before a rule is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Loss {
    /// The pieces of a rule for all traffic let in TCP, UDP and ICMP, and no other protocol.
    #[error("protocols other than TCP, UDP and ICMP, such as ESP and GRE, would no longer be let in")]
    OtherProtocols,
    /// Members of a group that may send everything to each other.
    #[error("members of the group would no longer reach each other on the protected ports")]
    BetweenMembers,
}

/// What lockdown of these ports makes of a rule.
pub(crate) fn split(rule: &Rule, protected: &BTreeSet<ProtectedPort>) -> Outcome {
    if !protected.iter().any(|port| rule.traffic.admits(port.protocol, port.port.get())) {
        return Outcome::Untouched;
    }
    match &rule.traffic {
        Traffic::Ports { protocol, from, to } => {
            Outcome::Split { kept: without(*protocol, *from, *to, protected), ask: between_members(rule) }
        }
        Traffic::All => {
            let ports = |protocol| without(protocol, 0, u16::MAX, protected);
            let icmp = Traffic::Other { protocol: icmp(&rule.source).to_owned(), kind: (-1, -1) };
            let kept = ports(Protocol::Tcp).into_iter().chain(ports(Protocol::Udp)).chain([icmp]).collect();
            Outcome::Split { kept, ask: between_members(rule).or(Some(Loss::OtherProtocols)) }
        }
        // It admits no port, so it was untouched.
        Traffic::Other { .. } => Outcome::Untouched,
    }
}

/// The ranges that are left of a range without the protected ports in it.
fn without(protocol: Protocol, from: u16, to: u16, protected: &BTreeSet<ProtectedPort>) -> Vec<Traffic> {
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
            left.push(Traffic::Ports { protocol, from, to: port - 1 });
        }
        next = port.checked_add(1);
    }
    if let Some(from) = next.filter(|from| *from <= to) {
        left.push(Traffic::Ports { protocol, from, to });
    }
    left
}

/// EC2's name of the family's ICMP. Groups and prefix lists take the IPv4 name, which EC2 applies to both.
fn icmp(source: &Source) -> &'static str {
    match source {
        Source::Prefix(IpNet::V6(_)) => "icmpv6",
        Source::Prefix(IpNet::V4(_))
        | Source::PrefixList(_)
        | Source::Group(_)
        | Source::Peer { .. }
        | Source::Unreadable => "icmp",
    }
}

fn between_members(rule: &Rule) -> Option<Loss> {
    (rule.source == Source::Group(rule.group.clone())).then_some(Loss::BetweenMembers)
}

#[cfg(test)]
mod tests;
