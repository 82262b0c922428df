//! The ports that the rules of an instance expose, and the sources that reach them.

use std::collections::BTreeSet;
use std::fmt;

use postern_core::ProtectedPort;

use crate::rule::GroupRule;

/// A rule that exposes ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleExposure {
    /// The rule.
    pub(crate) rule: GroupRule,
    /// The ports, of those asked about, that it lets in.
    pub(crate) ports: BTreeSet<ProtectedPort>,
}

/// Returns the rules that let one of the ports in, those open to anyone first.
pub(crate) fn exposures<'a>(
    rules: impl IntoIterator<Item = &'a GroupRule>,
    ports: &BTreeSet<ProtectedPort>,
) -> Vec<RuleExposure> {
    let exposed = |rule: &GroupRule| -> BTreeSet<ProtectedPort> {
        ports.iter().filter(|port| rule.traffic.admits(port.protocol, port.port.get())).copied().collect()
    };
    let mut exposures: Vec<RuleExposure> = rules
        .into_iter()
        .map(|rule| RuleExposure { rule: rule.clone(), ports: exposed(rule) })
        .filter(|exposure| !exposure.ports.is_empty())
        .collect();
    exposures.sort_by_key(|exposure| (!exposure.rule.source.is_anyone(), exposure.rule.id.clone()));
    exposures
}

impl fmt::Display for RuleExposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports: Vec<_> = self.ports.iter().map(ToString::to_string).collect();
        write!(f, "{} exposed: {}", ports.join(", "), self.rule)
    }
}

#[cfg(test)]
mod tests {
    use postern_core::Protocol;

    use super::*;
    use crate::rule::{Ec2Traffic, RuleSource, Tags};

    fn rule(id: &str, group: &str, from: u16, to: u16, source: &str) -> GroupRule {
        let source = if source.starts_with("pl-") {
            RuleSource::PrefixList(source.into())
        } else {
            RuleSource::Prefix(source.parse().unwrap())
        };
        let traffic = Ec2Traffic::Ports { protocol: Protocol::Tcp, from, to };
        let (id, group) = (id.into(), group.into());
        GroupRule { id, group, traffic, source, description: String::new(), tags: Tags::new() }
    }

    #[test]
    fn exposures_are_described_and_those_open_to_anyone_come_first() {
        let management = ["tcp/22", "tcp/3389"].map(|port| port.parse().unwrap()).into();
        let rules = [
            rule("sgr-1", "sg-a", 443, 443, "0.0.0.0/0"),
            rule("sgr-2", "sg-a", 20, 25, "10.0.0.0/8"),
            rule("sgr-3", "sg-b", 0, 65535, "::/0"),
            rule("sgr-4", "sg-b", 22, 22, "pl-1"),
        ];
        let words: Vec<_> = exposures(&rules, &management).iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            [
                "tcp/22, tcp/3389 exposed: rule sgr-3 of sg-b lets all tcp ports in from anyone (::/0)",
                "tcp/22 exposed: rule sgr-2 of sg-a lets tcp/20-25 in from 10.0.0.0/8",
                "tcp/22 exposed: rule sgr-4 of sg-b lets tcp/22 in from the prefix list pl-1",
            ]
        );
        assert_eq!(exposures(&rules[..1], &management), []);
    }
}
