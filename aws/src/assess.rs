//! Which management ports the rules of an instance expose, and to whom.
//!
//! The three words are those of Microsoft Defender for Cloud's recommendation on just-in-time access: unhealthy is a VM
//! that could use it and does not, healthy is one that needs nothing, and not applicable is one that cannot be judged.

use std::collections::BTreeSet;
use std::fmt;

use postern_core::ProtectedPort;

use crate::rule::Rule;

/// How an instance stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// No rule exposes a management port.
    Healthy,
    /// Rules expose management ports.
    Unhealthy {
        /// Each rule with the ports that it exposes, those open to anyone first.
        exposures: Vec<Exposure>,
    },
    /// It cannot be judged.
    NotApplicable {
        /// Why.
        reason: String,
    },
}

/// A rule that exposes management ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// The rule.
    pub rule: Rule,
    /// The management ports in it.
    pub ports: BTreeSet<ProtectedPort>,
}

/// Judges an instance by the rules of every group on every one of its interfaces. Rules of groups in `ours` are the
/// broker's own windows, and expose nothing.
pub fn assess(rules: &[Rule], management: &BTreeSet<ProtectedPort>, ours: &BTreeSet<String>) -> Health {
    let exposed = |rule: &Rule| -> BTreeSet<ProtectedPort> {
        management
            .iter()
            .filter(|port| rule.traffic.admits(port.protocol, port.port.get()))
            .copied()
            .collect()
    };
    let others = rules.iter().filter(|rule| !ours.contains(&rule.group));
    let mut exposures: Vec<Exposure> = others
        .map(|rule| Exposure { rule: rule.clone(), ports: exposed(rule) })
        .filter(|exposure| !exposure.ports.is_empty())
        .collect();
    exposures.sort_by_key(|exposure| (!exposure.rule.source.is_anyone(), exposure.rule.id.clone()));
    if exposures.is_empty() { Health::Healthy } else { Health::Unhealthy { exposures } }
}

impl Health {
    /// Its word.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy { .. } => "unhealthy",
            Self::NotApplicable { .. } => "not applicable",
        }
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<_> = self.ports.iter().map(ToString::to_string).collect();
        write!(f, "{} exposed: {}", ports.join(", "), self.rule)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Healthy => f.write_str("healthy: no rule exposes a management port"),
            Self::Unhealthy { exposures } => {
                let exposures: Vec<_> = exposures.iter().map(ToString::to_string).collect();
                write!(f, "unhealthy: {}", exposures.join("; "))
            }
            Self::NotApplicable { reason } => write!(f, "not applicable: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use postern_core::Protocol;

    use super::*;
    use crate::rule::{Source, Traffic};

    fn rule(id: &str, group: &str, from: u16, to: u16, source: &str) -> Rule {
        let source = if source.starts_with("pl-") {
            Source::PrefixList(source.into())
        } else {
            Source::Prefix(source.parse().unwrap())
        };
        let traffic = Traffic::Ports { protocol: Protocol::Tcp, from, to };
        Rule { id: id.into(), group: group.into(), traffic, source, description: String::new() }
    }

    fn management() -> BTreeSet<ProtectedPort> {
        ["tcp/22", "tcp/3389"].map(|port| port.parse().unwrap()).into()
    }

    #[test]
    fn an_instance_is_judged_by_its_rules_in_words() {
        let rules = [
            rule("sgr-1", "sg-a", 443, 443, "0.0.0.0/0"),
            rule("sgr-2", "sg-a", 20, 25, "10.0.0.0/8"),
            rule("sgr-3", "sg-b", 0, 65535, "::/0"),
        ];
        let health = assess(&rules, &management(), &BTreeSet::new());
        assert_eq!(
            health.to_string(),
            "unhealthy: tcp/22, tcp/3389 exposed: rule sgr-3 of sg-b lets all tcp ports in from anyone (::/0); \
             tcp/22 exposed: rule sgr-2 of sg-a lets tcp/20-25 in from 10.0.0.0/8"
        );
        assert_eq!(assess(&rules[..1], &management(), &BTreeSet::new()), Health::Healthy);
    }

    #[test]
    fn the_brokers_own_windows_expose_nothing() {
        let rules = [rule("sgr-1", "sg-ours", 22, 22, "192.0.2.7")];
        assert_eq!(assess(&rules, &management(), &["sg-ours".to_owned()].into()).word(), "healthy");
        assert_eq!(assess(&rules, &management(), &BTreeSet::new()).word(), "unhealthy");
    }
}
