//! The plan of the rules and tags that open or close windows. Pure.
//!
//! All windows of a grant are one change wherever EC2 lets them: one call creates the rules with the same
//! tags, and one call removes the rules that no other grant shares.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, ProtectedPort};

use crate::rule_codec::{self, MarkedRule};
use crate::tags::{self, Mark, Marks};

/// The identity of a rule in an own group: EC2 refuses a second one with the same port and source.
pub(crate) type RuleKey = (ProtectedPort, IpNet);

/// The changes that open windows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct OpenPlan {
    /// The rules that exist already, which get marks.
    pub(crate) retagged: Vec<TagChange>,
    /// The rules to create: those with the same marks together.
    pub(crate) created: Vec<(Marks, Vec<RuleKey>)>,
}

/// The changes that close windows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ClosePlan {
    /// The rules that other grants share, or that are still part of another window.
    pub(crate) retagged: Vec<TagChange>,
    /// The ids of the rules that no grant needs any more.
    pub(crate) unused: Vec<String>,
}

/// The new marks of one rule, and the tags that write them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TagChange {
    /// The rule's id.
    pub(crate) id: String,
    /// The identity of the rule.
    pub(crate) key: RuleKey,
    /// The keys of the tags to remove.
    pub(crate) untag: Vec<String>,
    /// The tags to write.
    pub(crate) tag: Vec<(String, String)>,
    /// The marks that the rule then has.
    pub(crate) marks: Marks,
}

impl TagChange {
    /// Returns the change from a rule's marks to others; none if they are the same.
    fn of(rule: &MarkedRule, marks: Marks) -> Option<Self> {
        if rule.marks == marks {
            return None;
        }
        let gone = rule.marks.keys().filter(|grant| !marks.contains_key(grant));
        let untag = gone.map(|grant| format!("{}{grant}", tags::GRANT)).collect();
        let changed = marks.iter().filter(|(grant, mark)| rule.marks.get(grant) != Some(mark));
        let mut tag: Vec<_> = changed.map(|(grant, mark)| tags::of_mark(*grant, *mark)).collect();
        let latest = tags::of_latest(&marks);
        if latest != tags::of_latest(&rule.marks) {
            tag.extend(latest);
        }
        Some(Self { id: rule.id.clone(), key: (rule.port, rule.net), untag, tag, marks })
    }
}

/// Plans the opening of these windows.
pub(crate) fn plan_open(rules: &[MarkedRule], windows: &BTreeSet<LayerWindow>) -> OpenPlan {
    let mut wanted: BTreeMap<RuleKey, Marks> = BTreeMap::new();
    for window in windows {
        let half = window.source.is_any();
        for net in rule_codec::nets(window.source) {
            let mark = Mark { not_after: window.not_after, whole: !half, half };
            merge_mark(wanted.entry((window.port, net)).or_default(), window.grant, mark);
        }
    }
    let mut opening = OpenPlan::default();
    for (key, marks) in wanted {
        if let Some(rule) = rules.iter().find(|rule| (rule.port, rule.net) == key) {
            let mut all = rule.marks.clone();
            marks.into_iter().for_each(|(grant, mark)| merge_mark(&mut all, grant, mark));
            opening.retagged.extend(TagChange::of(rule, all));
            continue;
        }
        match opening.created.iter_mut().find(|(same, _)| *same == marks) {
            Some((_, keys)) => keys.push(key),
            None => opening.created.push((marks, vec![key])),
        }
    }
    opening
}

/// Merges a mark into those of a rule: a mark of the same grant and end gains its kind, one with another end
/// is replaced.
fn merge_mark(marks: &mut Marks, grant: GrantId, mark: Mark) {
    let before = marks.get(&grant).filter(|before| before.not_after == mark.not_after);
    let whole = mark.whole || before.is_some_and(|before| before.whole);
    let half = mark.half || before.is_some_and(|before| before.half);
    marks.insert(grant, Mark { whole, half, ..mark });
}

/// Plans the closing of these windows.
pub(crate) fn plan_close(rules: &[MarkedRule], windows: &BTreeSet<LayerWindow>) -> ClosePlan {
    let mut closing = ClosePlan::default();
    for rule in rules {
        let mut left = rule.marks.clone();
        let key = (rule.port, rule.net);
        for window in windows.iter().filter(|window| is_rule_of(window, &key)) {
            let Some(mark) = left.remove(&window.grant) else { continue };
            // A window of one half alone is left over from a window that was not opened whole.
            if mark.whole && window.source.is_any() {
                left.insert(window.grant, Mark { half: false, ..mark });
            }
        }
        if left.is_empty() {
            closing.unused.push(rule.id.clone());
        } else {
            closing.retagged.extend(TagChange::of(rule, left));
        }
    }
    closing
}

/// Reports whether a rule is a window, or half of it.
pub(crate) fn is_rule_of(window: &LayerWindow, (port, net): &RuleKey) -> bool {
    window.port == *port && rule_codec::nets(window.source).contains(net)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use postern_core::TargetId;

    use super::*;

    fn window(grant: u128, port: &str, source: &str) -> LayerWindow {
        let target: TargetId = "aws:123456789012/eu-central-1/i-0123456789abcdef0".parse().unwrap();
        LayerWindow {
            target,
            grant: GrantId::from_parts(Timestamp::UNIX_EPOCH, grant),
            port: port.parse().unwrap(),
            source: source.parse().unwrap(),
            not_after: Timestamp::from_second(60 + i64::try_from(grant).unwrap()).unwrap(),
        }
    }

    /// Returns the rules after an opening, as EC2 would have them.
    fn opened(mut rules: Vec<MarkedRule>, windows: &BTreeSet<LayerWindow>) -> Vec<MarkedRule> {
        let OpenPlan { retagged, created } = plan_open(&rules, windows);
        for change in retagged {
            rules.iter_mut().find(|rule| rule.id == change.id).unwrap().marks = change.marks;
        }
        for (marks, keys) in created {
            for (port, net) in keys {
                let id = format!("sgr-{port}-{net}");
                rules.push(MarkedRule { id, port, net, marks: marks.clone(), named: true });
            }
        }
        rules
    }

    fn closed(mut rules: Vec<MarkedRule>, windows: &BTreeSet<LayerWindow>) -> Vec<MarkedRule> {
        let ClosePlan { retagged, unused } = plan_close(&rules, windows);
        for change in retagged {
            rules.iter_mut().find(|rule| rule.id == change.id).unwrap().marks = change.marks;
        }
        rules.retain(|rule| !unused.contains(&rule.id));
        rules
    }

    #[test]
    fn all_windows_of_a_grant_are_made_together_and_go_together() {
        let windows: BTreeSet<_> = [
            window(1, "tcp/22", "192.0.2.7"),
            window(1, "tcp/3389", "192.0.2.0/24"),
            window(1, "udp/22", "2001:db8::/64"),
        ]
        .into();
        let OpenPlan { retagged, created } = plan_open(&[], &windows);
        assert_eq!((retagged.len(), created.len(), created[0].1.len()), (0, 1, 3));
        let rules = opened(Vec::new(), &windows);
        assert_eq!(plan_open(&rules, &windows), OpenPlan::default(), "once is enough");
        let ClosePlan { retagged, unused } = plan_close(&rules, &windows);
        assert_eq!((retagged.len(), unused.len()), (0, 3));
    }

    #[test]
    fn a_rule_that_is_shared_gets_one_tag_more_and_loses_that_one_again() {
        let (one, later) = (window(1, "tcp/22", "192.0.2.7"), window(2, "tcp/22", "192.0.2.7"));
        let rules = opened(Vec::new(), &[one.clone()].into());
        let OpenPlan { retagged, created } = plan_open(&rules, &[later.clone()].into());
        assert!(created.is_empty());
        let keys: Vec<_> = retagged[0].tag.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, [&format!("{}{}", tags::GRANT, later.grant), tags::LATEST_GRANT, tags::NOT_AFTER]);

        let rules = opened(rules, &[later.clone()].into());
        let first = &plan_close(&rules, &[one.clone()].into()).retagged[0];
        assert_eq!((first.untag.len(), first.tag.len()), (1, 0), "the other ends later all the same");
        let last = &plan_close(&rules, &[later].into()).retagged[0];
        assert_eq!((last.untag.len(), last.tag.len()), (1, 2), "what is left ends earlier");
    }

    #[test]
    fn windows_that_overlap_in_a_half_of_every_address_are_kept_apart() {
        let (all, half) = (window(1, "tcp/22", "0.0.0.0/0"), window(1, "tcp/22", "0.0.0.0/1"));
        let both: BTreeSet<_> = [all.clone(), half.clone()].into();
        let rules = opened(Vec::new(), &both);
        assert_eq!(rule_codec::windows(&all.target, &rules), both);
        let left = closed(rules.clone(), &[all.clone()].into());
        assert_eq!(rule_codec::windows(&all.target, &left), [half.clone()].into());
        assert_eq!(closed(rules, &both), []);
        // Opening one after the other has the same result as opening both at once.
        let rules = opened(opened(Vec::new(), &[half].into()), &[all.clone()].into());
        assert_eq!(rule_codec::windows(&all.target, &rules), both);
    }

    #[test]
    fn i6_closing_a_window_that_is_not_there_changes_no_other_grant() {
        let rules = opened(Vec::new(), &[window(1, "tcp/22", "192.0.2.7")].into());
        for other in [
            window(2, "tcp/22", "192.0.2.7"),
            window(1, "tcp/23", "192.0.2.7"),
            window(1, "tcp/22", "192.0.2.8"),
        ] {
            assert_eq!(plan_close(&rules, &[other].into()), ClosePlan::default());
        }
    }
}
