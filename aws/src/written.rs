//! A memory of the openings that EC2 answered a moment ago. Pure.
//!
//! The problem: EC2 is eventually consistent. A read right after an opening may lack the rule that EC2 has
//! just said it created. If the broker believed that read, it would count an open window as closed and never
//! close it (I2).
//!
//! The rule: a read that lacks what EC2 answered is older than the answer. For [`SHOWN_AFTER`] after its
//! answer an opening completes every read of the own group: [`Written::complete`] adds the rule, or the marks
//! of the opened grants on a rule that the read shows with fewer. The window is then closed by the id from
//! the answer. After that time a rule that is missing from a read was removed by another principal, and the
//! read is believed.
//!
//! Only what the opening itself wrote is added: the marks of its own grants, not those that other openings or
//! other brokers put on the same rule. A later answer wins over an earlier one: [`Written::closed`] takes
//! back what a close removed.
//!
//! A read can also contradict an opening instead of lacking it. A rule with the same id but another port,
//! source or shape was edited by another principal since: the read wins, and the memory of that rule goes. A
//! mark with another end was edited too: the read's mark stays. The openings in another own group go, because
//! that group was deleted.
//!
//! The memory is kept across a lockdown, a repair and any error (`InstanceCache::forget` leaves it alone),
//! because EC2's answers stay true when the broker's cached reads do not. It is lost with the process; a
//! restarted broker reads again, and the sweeps that follow see what a first read lacked.

use std::collections::BTreeSet;
use std::time::Duration;

use postern_core::plan::LayerWindow;
use tokio::time::Instant;

use crate::rule_codec::MarkedRule;
use crate::rule_plan;

/// The time after its answer in which an opening may be missing from a read. A rule that is missing later was
/// removed by another principal.
pub(crate) const SHOWN_AFTER: Duration = Duration::from_secs(10);

/// The rules that openings wrote into an instance's own group, each with the marks of those openings alone.
#[derive(Debug, Default)]
pub(crate) struct Written {
    group: String,
    rules: Vec<(MarkedRule, Instant)>,
}

impl Written {
    /// Records that EC2 answered the opening of these windows, after which the rules of the group are these.
    pub(crate) fn opened(
        &mut self,
        group: &str,
        rules: &[MarkedRule],
        windows: &BTreeSet<LayerWindow>,
        now: Instant,
    ) {
        self.forget(group, now);
        for rule in rules {
            let is_on = |window: &&LayerWindow| rule_plan::is_rule_of(window, &(rule.port, rule.net));
            let opened: BTreeSet<_> = windows.iter().filter(is_on).map(|window| window.grant).collect();
            let mut marks = rule.marks.clone();
            marks.retain(|grant, _| opened.contains(grant));
            if !marks.is_empty() {
                self.rules.push((MarkedRule { marks, ..rule.clone() }, now));
            }
        }
    }

    /// Records that EC2 answered a closing, after which the rules are these.
    pub(crate) fn closed(&mut self, rules: &[MarkedRule]) {
        self.rules.retain_mut(|(written, _)| {
            let left = rules.iter().find(|rule| rule.id == written.id);
            written.marks.retain(|grant, mark| left.is_some_and(|left| left.marks.get(grant) == Some(mark)));
            !written.marks.is_empty()
        });
    }

    /// Adds to the windows' rules of a read the openings that it does not show yet. A rule that the read
    /// shows as something else, with one of the other ids or with another port or source, was changed by
    /// another principal since.
    pub(crate) fn complete(
        &mut self,
        group: &str,
        rules: &mut Vec<MarkedRule>,
        others: &[&str],
        now: Instant,
    ) {
        self.forget(group, now);
        let is_elsewhere = |written: &MarkedRule| {
            let shown = rules.iter().find(|rule| rule.id == written.id);
            shown.is_some_and(|shown| (shown.port, shown.net) != (written.port, written.net))
        };
        self.rules.retain(|(written, _)| !others.contains(&written.id.as_str()) && !is_elsewhere(written));
        for (written, _) in &self.rules {
            match rules.iter_mut().find(|rule| rule.id == written.id) {
                Some(rule) => written.marks.iter().for_each(|(grant, mark)| {
                    let shown = rule.marks.entry(*grant).or_insert(*mark);
                    // A mark with another end was changed by another principal.
                    if shown.not_after == mark.not_after {
                        shown.whole |= mark.whole;
                        shown.half |= mark.half;
                    }
                }),
                None => rules.push(written.clone()),
            }
        }
    }

    /// Drops the openings that every read shows by now, and those in another group: that group is gone.
    fn forget(&mut self, group: &str, now: Instant) {
        if self.group != group {
            self.rules.clear();
            group.clone_into(&mut self.group);
        }
        self.rules.retain(|(_, at)| now.saturating_duration_since(*at) < SHOWN_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use postern_core::GrantId;

    use super::*;
    use crate::tags::Mark;

    fn grant(number: u128) -> GrantId {
        GrantId::from_parts(Timestamp::UNIX_EPOCH, number)
    }

    fn window(number: u128) -> LayerWindow {
        LayerWindow {
            target: "aws:123456789012/eu-central-1/i-0123456789abcdef0".parse().unwrap(),
            grant: grant(number),
            port: "tcp/22".parse().unwrap(),
            source: "192.0.2.7".parse().unwrap(),
            not_after: Timestamp::from_second(60).unwrap(),
        }
    }

    /// Returns the rule of the windows of these grants.
    fn rule(grants: &[u128]) -> MarkedRule {
        let mark = Mark { not_after: Timestamp::from_second(60).unwrap(), whole: true, half: false };
        let marks = grants.iter().map(|number| (grant(*number), mark)).collect();
        let (port, net) = ("tcp/22".parse().unwrap(), "192.0.2.7/32".parse().unwrap());
        MarkedRule { id: "sgr-1".into(), port, net, marks, named: true }
    }

    /// Returns the rules of a read, completed.
    fn completed(
        written: &mut Written,
        mut rules: Vec<MarkedRule>,
        others: &[&str],
        now: Instant,
    ) -> Vec<MarkedRule> {
        written.complete("sg-1", &mut rules, others, now);
        rules
    }

    #[test]
    fn i2_a_read_is_completed_for_a_while_by_what_openings_wrote_and_by_nothing_else() {
        let (mut written, start) = (Written::default(), postern_runtime::clock::instant());
        written.opened("sg-1", &[rule(&[1, 2])], &[window(2)].into(), start);
        let soon = start + Duration::from_secs(9);
        assert_eq!(completed(&mut written, vec![rule(&[1])], &[], soon), [rule(&[1, 2])]);
        let whole = completed(&mut written, vec![], &[], soon);
        assert_eq!(whole, [rule(&[2])], "what others opened is not made up");
        let later = completed(&mut written, vec![], &[], start + SHOWN_AFTER);
        assert_eq!(later, [], "by then every read shows it, or it is gone");
    }

    #[test]
    fn a_closed_window_is_no_longer_added_to_a_read() {
        let (mut written, now) = (Written::default(), postern_runtime::clock::instant());
        written.opened("sg-1", &[rule(&[1, 2])], &[window(1), window(2)].into(), now);
        written.closed(&[rule(&[2])]);
        assert_eq!(completed(&mut written, vec![], &[], now), [rule(&[2])]);
        written.closed(&[]);
        assert_eq!(completed(&mut written, vec![], &[], now), []);
    }

    #[test]
    fn i6_a_rule_that_another_principal_changed_and_one_of_another_group_are_not_added() {
        let (mut written, now) = (Written::default(), postern_runtime::clock::instant());
        written.opened("sg-1", &[rule(&[1])], &[window(1)].into(), now);
        let mut put_off = rule(&[1]);
        put_off.marks.values_mut().for_each(|mark| mark.not_after = Timestamp::from_second(600).unwrap());
        assert_eq!(completed(&mut written, vec![put_off.clone()], &[], now), [put_off]);
        assert_eq!(completed(&mut written, vec![], &["sgr-1"], now), []);
        written.opened("sg-1", &[rule(&[1])], &[window(1)].into(), now);
        let moved = MarkedRule { net: "198.51.100.0/24".parse().unwrap(), ..rule(&[2]) };
        assert_eq!(completed(&mut written, vec![moved.clone()], &[], now), [moved], "a source edited since");
        assert_eq!(completed(&mut written, vec![], &[], now), [], "and it stays edited");
        written.opened("sg-2", &[rule(&[1])], &[window(1)].into(), now);
        assert_eq!(completed(&mut written, vec![], &[], now), []);
    }
}
