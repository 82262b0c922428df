//! The encoding of windows as rules of an instance's own group, and the decoding. Pure.
//!
//! A rule of an own group is exactly a window, as the broker would write it, or it is a stray.
//! [`MarkedRule::read`] decides, whatever another principal edited: a rule that it reads,
//! [`crate::rule_plan::plan_close`] can close; a rule that it does not read, a repair removes by its id.
//!
//! "Every address" is never written as /0: with egress open to all, EC2 would not track connections over such
//! a rule, and removing the rule would cut them (EC2 User Guide, "Security group connection tracking"). It is
//! written as two halves, /1 each, which keeps I3 here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, ProtectedPort, SourcePrefix, TargetId};

use crate::rule::{Ec2Traffic, GroupRule, RuleSource};
use crate::tags::{self, Mark, Marks};

/// A rule that carries windows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MarkedRule {
    /// Its id.
    pub(crate) id: String,
    /// The port.
    pub(crate) port: ProtectedPort,
    /// The source.
    pub(crate) net: IpNet,
    /// The grants that share it.
    pub(crate) marks: Marks,
    /// The tags for people name the grant that ends last.
    pub(crate) named: bool,
}

impl MarkedRule {
    /// Reads a rule of an instance's own group; none if the broker would not have written it so.
    pub(crate) fn read(rule: &GroupRule, deployment: &str) -> Option<Self> {
        let (Ec2Traffic::Ports { protocol, from, to }, RuleSource::Prefix(net)) =
            (&rule.traffic, &rule.source)
        else {
            return None;
        };
        let port = postern_core::Port::new((*from).into()).ok().filter(|_| from == to)?;
        let is_managed = rule.tags.get(tags::MANAGED_BY).is_some_and(|owner| owner == deployment);
        let marks = tags::marks(&rule.tags)?;
        let port = ProtectedPort { protocol: *protocol, port };
        let fits = |mark: &Mark| (!mark.whole || net.prefix_len() > 0) && (!mark.half || is_half(*net));
        let is_window =
            is_managed && !marks.is_empty() && marks.values().all(fits) && is_description(&rule.description);
        let named = tags::of_latest(&marks).iter().all(|(key, value)| rule.tags.get(key) == Some(value));
        is_window.then(|| Self { id: rule.id.clone(), port, net: *net, marks, named })
    }
}

/// Returns the description of a rule that is created for these marks.
pub(crate) fn description(marks: &Marks) -> String {
    let words = |(grant, mark): (&GrantId, &Mark)| described(*grant, mark.not_after);
    tags::latest(marks).map(words).unwrap_or_default()
}

fn described(grant: GrantId, not_after: Timestamp) -> String {
    format!("Postern: grant {grant} until {not_after}")
}

/// Reports whether a rule's description is one that the broker writes. The grant that it names may have left
/// the rule to other grants since: changing a description takes a call of its own, which the broker does not
/// make.
fn is_description(text: &str) -> bool {
    let read = || {
        let (grant, end) = text.strip_prefix("Postern: grant ")?.split_once(" until ")?;
        Some(described(grant.parse().ok()?, end.parse().ok()?))
    };
    read().is_some_and(|written| written == text)
}

/// Returns the address ranges of a source as rules have them.
pub(crate) fn nets(source: SourcePrefix) -> Vec<IpNet> {
    match source.net() {
        IpNet::V4(net) if net.prefix_len() == 0 => halves_v4().map(IpNet::V4).into(),
        IpNet::V6(net) if net.prefix_len() == 0 => halves_v6().map(IpNet::V6).into(),
        net @ (IpNet::V4(_) | IpNet::V6(_)) => vec![net],
    }
}

/// Returns the windows that rules hold. A half without its other half is a window of its own, which no grant
/// wants, so that the broker closes it.
pub(crate) fn windows(target: &TargetId, rules: &[MarkedRule]) -> BTreeSet<LayerWindow> {
    let mut windows = BTreeSet::new();
    let mut halves: BTreeMap<(GrantId, ProtectedPort, Timestamp, bool), BTreeSet<IpNet>> = BTreeMap::new();
    let mut add = |grant, port, not_after, net: IpNet| {
        if let Ok(source) = net.to_string().parse() {
            windows.insert(LayerWindow { target: target.clone(), grant, port, source, not_after });
        }
    };
    for rule in rules {
        for (grant, mark) in &rule.marks {
            if mark.whole {
                add(*grant, rule.port, mark.not_after, rule.net);
            }
            if mark.half {
                let key = (*grant, rule.port, mark.not_after, rule.net.addr().is_ipv4());
                halves.entry(key).or_default().insert(rule.net);
            }
        }
    }
    for ((grant, port, not_after, is_ipv4), found) in halves {
        let whole = if is_ipv4 { halves_v4().map(IpNet::V4) } else { halves_v6().map(IpNet::V6) };
        if found == whole.into() {
            add(grant, port, not_after, whole[0].supernet().unwrap_or(whole[0]));
        } else {
            found.into_iter().for_each(|net| add(grant, port, not_after, net));
        }
    }
    windows
}

fn halves_v4() -> [Ipv4Net; 2] {
    [0, 128].map(|first| Ipv4Net::new_assert(Ipv4Addr::new(first, 0, 0, 0), 1))
}

fn halves_v6() -> [Ipv6Net; 2] {
    [0, 0x8000].map(|first| Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), 1))
}

/// Reports whether an address range is one of the halves.
pub(crate) fn is_half(net: IpNet) -> bool {
    net.prefix_len() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> TargetId {
        "aws:123456789012/eu-central-1/i-0123456789abcdef0".parse().unwrap()
    }

    fn window_rule(net: &str, marks: &[(u128, bool, bool)]) -> MarkedRule {
        let mark = |(grant, whole, half): &(u128, bool, bool)| {
            let not_after = Timestamp::from_second(60).unwrap();
            (
                GrantId::from_parts(Timestamp::UNIX_EPOCH, *grant),
                Mark { not_after, whole: *whole, half: *half },
            )
        };
        let marks = marks.iter().map(mark).collect();
        let (port, net) = ("tcp/22".parse().unwrap(), net.parse().unwrap());
        MarkedRule { id: format!("sgr-{net}"), port, net, marks, named: true }
    }

    fn sources(rules: &[MarkedRule]) -> Vec<String> {
        windows(&target(), rules).into_iter().map(|window| window.source.to_string()).collect()
    }

    #[test]
    fn i3_every_address_is_two_halves_and_comes_back_as_one_window() {
        for (any, first, second) in [("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"), ("::/0", "::/1", "8000::/1")]
        {
            let written: Vec<_> = nets(any.parse().unwrap()).iter().map(ToString::to_string).collect();
            assert_eq!(written, [first, second]);
            let half = [(1, false, true)];
            assert_eq!(sources(&[window_rule(first, &half), window_rule(second, &half)]), [any]);
            assert_eq!(sources(&[window_rule(second, &half)]), [second], "what is missing is not made up");
        }
        assert_eq!(nets("10.0.0.0/8".parse().unwrap()), ["10.0.0.0/8".parse::<IpNet>().unwrap()]);
    }

    #[test]
    fn one_rule_may_be_a_window_of_several_grants_and_half_of_another() {
        let rules = [
            window_rule("0.0.0.0/1", &[(1, true, false), (2, false, true), (3, true, true)]),
            window_rule("128.0.0.0/1", &[(2, false, true), (3, false, true)]),
        ];
        assert_eq!(sources(&rules), ["0.0.0.0/1", "0.0.0.0/0", "0.0.0.0/0", "0.0.0.0/1"]);
    }

    #[test]
    fn i6_a_rule_without_posterns_tags_or_of_another_shape_is_not_a_window() {
        let good = GroupRule {
            id: "sgr-1".into(),
            group: "sg-1".into(),
            traffic: Ec2Traffic::Ports { protocol: postern_core::Protocol::Tcp, from: 22, to: 22 },
            source: RuleSource::Prefix("192.0.2.1/32".parse().unwrap()),
            description: "Postern: grant 00000000000000000000000001 until 2026-03-01T12:00:00Z".into(),
            tags: [
                (tags::MANAGED_BY.to_owned(), "postern".to_owned()),
                (format!("{}00000000000000000000000001", tags::GRANT), "2026-03-01T12:00:00Z".into()),
            ]
            .into(),
        };
        assert!(MarkedRule::read(&good, "postern").is_some());
        assert!(MarkedRule::read(&good, "another").is_none());
        let wide = Ec2Traffic::Ports { protocol: postern_core::Protocol::Tcp, from: 22, to: 23 };
        assert!(MarkedRule::read(&GroupRule { traffic: wide, ..good.clone() }, "postern").is_none());
        assert!(
            MarkedRule::read(
                &GroupRule { source: RuleSource::Group("sg-1".into()), ..good.clone() },
                "postern"
            )
            .is_none()
        );
        let untagged = [(tags::MANAGED_BY.to_owned(), "postern".to_owned())].into();
        assert!(MarkedRule::read(&GroupRule { tags: untagged, ..good.clone() }, "postern").is_none());
        for description in
            ["", "for the contractor", "Postern: grant x until 2026-03-01T12:00:00Z", "Postern: grant"]
        {
            let edited = GroupRule { description: description.into(), ..good.clone() };
            assert!(MarkedRule::read(&edited, "postern").is_none(), "{description:?}");
        }
    }

    /// Every rule that is read as a window is one that a close removes, for every source and kind of mark.
    #[test]
    fn i2_a_rule_is_a_window_that_can_be_closed_or_no_window() {
        let grant = GrantId::from_parts(Timestamp::UNIX_EPOCH, 1);
        let not_after = Timestamp::from_second(60).unwrap();
        let nets = [
            "0.0.0.0/0",
            "::/0",
            "0.0.0.0/1",
            "128.0.0.0/1",
            "::/1",
            "8000::/1",
            "10.0.0.0/8",
            "192.0.2.7/32",
            "2001:db8::/64",
        ];
        let kinds = [(true, false), (false, true), (true, true)];
        let mut read = 0;
        for (net, (whole, half)) in nets.iter().flat_map(|net| kinds.map(|kind| (net, kind))) {
            let mark = Mark { not_after, whole, half };
            let marks = Marks::from([(grant, mark)]);
            let owner = (tags::MANAGED_BY.to_owned(), "postern".to_owned());
            let rule = GroupRule {
                id: "sgr-1".into(),
                group: "sg-1".into(),
                traffic: Ec2Traffic::Ports { protocol: postern_core::Protocol::Tcp, from: 22, to: 22 },
                source: RuleSource::Prefix(net.parse().unwrap()),
                description: description(&marks),
                tags: [tags::of_mark(grant, mark), owner]
                    .into_iter()
                    .chain(tags::of_latest(&marks))
                    .collect(),
            };
            let Some(held) = MarkedRule::read(&rule, "postern") else { continue };
            read += 1;
            assert!(held.named);
            let open = windows(&target(), std::slice::from_ref(&held));
            assert!(!open.is_empty(), "{net} {mark:?}");
            let closing = crate::rule_plan::plan_close(&[held], &open);
            assert_eq!(closing.unused, ["sgr-1"], "{net} {mark:?}");
        }
        assert_eq!(read, 4 * 3 + 3, "halves as either, and the others as whole windows");
    }
}
