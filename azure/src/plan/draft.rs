//! A copy of a group, and the writes that are planned for it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use postern_core::{Port, ProtectedPort, Protocol};

use super::priority::MAX_PRIORITY;
use super::write::{PlanError, RuleWrite};
use crate::names::{self, DenyName, Family, Moved, PORTS_PER_RULE, RuleName};
use crate::network::{Nsg, NsgRule};
use crate::rules::{NewNsgRule, RuleMatch};
use crate::settings::Priorities;
use crate::snapshot::{MachineView, notes};

/// The least number of priorities that stay free for windows before a rule that denies.
const MIN_WINDOW_ROOM: usize = 10;

/// A copy of a group that each planned write changes.
pub(super) struct GroupDraft<'a> {
    pub(super) view: &'a MachineView<'a>,
    pub(super) group: Nsg,
    pub(super) priorities: &'a Priorities,
    pub(super) writes: Vec<RuleWrite>,
    /// True if Postern's rules for the machine stay behind the customer's: the administrator gave no consent to move those.
    pub(super) is_behind: bool,
}

impl GroupDraft<'_> {
    /// Plans the writes that shut the ports. `posterns_first` puts Postern's rules before the customer's that allow a port.
    pub(super) fn lock(
        mut self,
        ports: &BTreeSet<ProtectedPort>,
        posterns_first: bool,
    ) -> Result<Vec<RuleWrite>, PlanError> {
        if !self.is_behind {
            // They are written again under the same names, and say that the administrator has consented by now.
            let former = self.view.denies(&self.group).into_iter().map(|(rule, ..)| rule);
            let former = former.filter(|rule| names::is_behind(&rule.description));
            let former: BTreeSet<String> = former.map(|rule| rule.name.clone()).collect();
            self.group.rules.retain(|rule| !former.contains(&rule.name));
        }
        let open = self.open_to(ports);
        // An earlier lockdown noted these rules, and stopped before it moved them.
        let begun = self.view.unmoved().into_iter().filter(|(group, _)| group.id == self.group.id);
        // The note may be another machine's: without consent, no rule is moved for this one.
        let is_begun = !self.is_behind || !self.view.shut().is_empty();
        let begun: Vec<NsgRule> = begun.filter(|_| is_begun).map(|(_, rule)| rule.clone()).collect();
        if !posterns_first || open.is_empty() {
            // Where rules were noted to be moved, Postern's rules come first.
            let passed = if begun.is_empty() { &[][..] } else { &open[..] };
            self.shut(ports, |draft, ports, family| draft.behind(ports, family, passed))?;
            for rule in &begun {
                self.move_behind(rule)?;
            }
            return Ok(self.writes);
        }
        let before = open.iter().map(|rule| rule.priority).min().unwrap_or(MAX_PRIORITY);
        if self.room_before(before) {
            self.forget_behind(before);
            self.shut(ports, |draft, _, _| draft.free_below(before))?;
            return Ok(self.writes);
        }
        if let Some(limit) = self.limit(&open) {
            return self.lock_before(ports, &open, limit);
        }
        let last = self.last_if(ports, &open)?;
        let moving: Vec<NsgRule> = open.iter().filter(|rule| rule.priority < last).cloned().collect();
        for rule in &moving {
            self.note(&rule.name, rule.priority)?;
        }
        self.shut(ports, |draft, ports, family| draft.behind(ports, family, &open))?;
        for rule in &moving {
            self.move_behind(rule)?;
        }
        Ok(self.writes)
    }

    /// The last priority of a rule of Postern's, if the ports were shut without regard to these rules.
    fn last_if(&self, ports: &BTreeSet<ProtectedPort>, open: &[NsgRule]) -> Result<u16, PlanError> {
        let trial = self.trial(ports, open)?;
        Ok(self.view.denies(&trial.group).iter().map(|(rule, ..)| rule.priority).max().unwrap_or(0))
    }

    /// The group, if the ports were shut without regard to these rules.
    fn trial(&self, ports: &BTreeSet<ProtectedPort>, open: &[NsgRule]) -> Result<Self, PlanError> {
        let Self { view, priorities, is_behind, .. } = *self;
        let mut trial =
            GroupDraft { view, group: self.group.clone(), priorities, writes: Vec::new(), is_behind };
        trial.shut(ports, |draft, ports, family| draft.behind(ports, family, open))?;
        Ok(trial)
    }

    /// The first rule that shuts ports of another machine without consent, among those that a move of these rules could pass: the
    /// move would shut what these rules keep open there.
    pub(super) fn limit(&self, moving: &[NsgRule]) -> Option<u16> {
        let others = self.neighbours().filter(|deny| {
            moving.iter().any(|rule| rule.priority < deny.priority && rule.traffic.overlaps(&deny.traffic))
        });
        others.map(|deny| deny.priority).min()
    }

    /// The rules that shut ports of other machines behind the customer's rules.
    fn neighbours(&self) -> impl Iterator<Item = &NsgRule> {
        let key = self.view.key();
        let others = denies(&self.group, self.view.deployment).filter(move |(_, deny)| deny.key != key);
        others.map(|(rule, _)| rule).filter(|rule| names::is_behind(&rule.description))
    }

    /// Plans a lockdown that moves these rules, all of it before a priority.
    fn lock_before(
        mut self,
        ports: &BTreeSet<ProtectedPort>,
        open: &[NsgRule],
        limit: u16,
    ) -> Result<Vec<RuleWrite>, PlanError> {
        let places = self.places_before(ports, open, limit)?;
        let last = places.last().copied().unwrap_or(0);
        let moving: Vec<&NsgRule> = open.iter().filter(|rule| rule.priority < last).collect();
        for rule in &moving {
            self.note(&rule.name, rule.priority)?;
        }
        self.shut(ports, |draft, _, _| draft.one_of(&places))?;
        for rule in moving {
            self.move_behind(rule)?;
        }
        Ok(self.writes)
    }

    /// The last free priorities before this one that leave room for these rules behind them: one for each rule that shuts ports.
    pub(super) fn places_before(
        &self,
        ports: &BTreeSet<ProtectedPort>,
        open: &[NsgRule],
        limit: u16,
    ) -> Result<Vec<u16>, PlanError> {
        let count = self.trial(ports, open)?.writes.len();
        let free = *self.priorities.windows.start()..limit;
        let free: Vec<u16> = free.filter(|priority| !self.group.is_taken(*priority)).collect();
        let first = free.len().checked_sub(count + open.len()).filter(|room| *room > MIN_WINDOW_ROOM);
        match first {
            Some(first) => Ok(free[first..first + count].to_vec()),
            None => Err(self.shuts_another(open, limit)),
        }
    }

    pub(super) fn one_of(&self, places: &[u16]) -> Result<u16, PlanError> {
        let free = places.iter().copied().find(|place| !self.group.is_taken(*place));
        free.ok_or_else(|| self.full("before the rules of another machine"))
    }

    fn shuts_another(&self, moving: &[NsgRule], limit: u16) -> PlanError {
        let other = self.neighbours().find(|deny| deny.priority == limit);
        let other = other.and_then(|deny| names::machine_in(&deny.description)).unwrap_or("another VM");
        let rule = moving.first().map_or("of a customer", |rule| rule.name.as_str());
        PlanError(format!(
            "rule {rule} of {} cannot be moved behind Postern's without shutting {other}, which was locked down without `--accept precedence`: lock that one down with it as well, or release it first",
            self.group.id.name()
        ))
    }

    /// The customer's rules that admit a source to one of the ports, and come before Postern's.
    pub(super) fn open_to(&self, ports: &BTreeSet<ProtectedPort>) -> Vec<NsgRule> {
        let mut open: Vec<NsgRule> = Vec::new();
        for door in self.view.machine.doors.iter().filter(|door| door.groups.contains(&self.group.id)) {
            for port in ports {
                for admission in self.group.admissions(door, *port) {
                    let rule = admission.rule;
                    if !rule.is_default && RuleName::read(&rule.name).is_none() && !open.contains(rule) {
                        open.push(rule.clone());
                    }
                }
            }
        }
        open.sort_by_key(|rule| rule.priority);
        open
    }

    /// Puts deleted rules that shut ports back to their priorities.
    pub(super) fn put_back(&mut self) {
        let locked_rules = self.view.locked_rules;
        let families: BTreeSet<Family> = self.view.machine.families().collect();
        for (deny, priority) in locked_rules.of(&self.group.id) {
            let is_gone = self.group.rule(&RuleName::Deny(deny.clone()).to_string()).is_none();
            if is_gone && families.contains(&deny.family) && !self.group.is_taken(priority) {
                self.put_deny(&deny, priority);
            }
        }
    }

    fn put_deny(&mut self, deny: &DenyName, priority: u16) {
        self.put(NewNsgRule {
            name: RuleName::Deny(deny.clone()).to_string(),
            priority,
            allows: false,
            matches: RuleMatch::Ports {
                protocol: deny.protocol,
                sources: None,
                addresses: self.view.machine.addresses(deny.family),
                ports: deny.ports.clone(),
            },
            description: names::describe_deny(self.view.target, self.is_behind),
        });
    }

    /// Shuts the ports that are not shut, by rules at the priorities that `place` finds.
    pub(super) fn shut(
        &mut self,
        ports: &BTreeSet<ProtectedPort>,
        place: impl Fn(&Self, &BTreeSet<ProtectedPort>, Family) -> Result<u16, PlanError>,
    ) -> Result<(), PlanError> {
        for family in self.view.machine.families() {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let shut = self.view.shut_in(&self.group, family);
                let of_protocol = ports.iter().filter(|port| port.protocol == protocol);
                let missing: Vec<Port> =
                    of_protocol.filter(|port| !shut.contains(port)).map(|port| port.port).collect();
                for ports in missing.chunks(PORTS_PER_RULE) {
                    let ports: BTreeSet<Port> = ports.iter().copied().collect();
                    let deny = DenyName { key: self.view.key(), protocol, family, ports };
                    let protected = deny.protected().collect();
                    // A rule that another principal edited keeps its priority.
                    let kept = self.group.rule(&RuleName::Deny(deny.clone()).to_string());
                    let kept = kept.map(|rule| rule.priority);
                    let priority = kept.map_or_else(|| place(self, &protected, family), Ok)?;
                    self.put_deny(&deny, priority);
                }
            }
        }
        Ok(())
    }

    /// The first free priority behind every customer's rule that admits a source, except those that will move.
    pub(super) fn behind(
        &self,
        ports: &BTreeSet<ProtectedPort>,
        _: Family,
        moving: &[NsgRule],
    ) -> Result<u16, PlanError> {
        let open = self.open_to(ports);
        let last =
            open.iter().filter(|rule| !moving.contains(rule)).map(|rule| rule.priority).max().unwrap_or(0);
        let range = self.priorities.denies.clone();
        let from = last.saturating_add(1);
        self.free(from.max(*range.start())..=*range.end())
            .or_else(|| self.free(from.max(*range.start())..=MAX_PRIORITY))
            .ok_or_else(|| self.full("behind the rules that allow the port"))
    }

    /// The first free priority before this one among those for rules that deny, or else the last free one before it.
    pub(super) fn free_below(&self, before: u16) -> Result<u16, PlanError> {
        let range = &self.priorities.denies;
        self.free(*range.start()..=before.saturating_sub(1).min(*range.end()))
            .or_else(|| (*self.priorities.windows.start()..before).rev().find(|it| !self.group.is_taken(*it)))
            .ok_or_else(|| self.full("before the rules that allow the port"))
    }

    /// Reports whether a rule that denies fits before this priority, and windows before that rule.
    fn room_before(&self, before: u16) -> bool {
        let free = (*self.priorities.windows.start()..before).filter(|it| !self.group.is_taken(*it));
        free.take(MIN_WINDOW_ROOM + 1).count() > MIN_WINDOW_ROOM
    }

    /// Drops Postern's rules behind this priority from the copy: they are written again before it.
    fn forget_behind(&mut self, before: u16) {
        let behind: Vec<String> = self
            .view
            .denies(&self.group)
            .into_iter()
            .filter(|(rule, ..)| rule.priority > before)
            .map(|(rule, ..)| rule.name.clone())
            .collect();
        // A write under the same name moves the rule: Azure needs no delete.
        self.group.rules.retain(|rule| !behind.contains(&rule.name));
    }

    /// Notes the priority of a customer's rule before it is moved.
    pub(super) fn note(&mut self, rule: &str, was_at: u16) -> Result<(), PlanError> {
        let name = RuleName::Moved(Moved::new(self.view.deployment, was_at, rule)).to_string();
        // A rule that was moved before has its note, with its first priority.
        if notes(&self.group, self.view.deployment).any(|(_, moved)| moved.was(rule)) {
            return Ok(());
        }
        // From the end of the list: a note decides nothing, and must not take a priority from rules that do.
        let mut places = (*self.priorities.windows.start()..=MAX_PRIORITY).rev();
        let priority = places.find(|it| !self.group.is_taken(*it)).ok_or_else(|| self.full("for a note"))?;
        let description = names::describe_moved(rule, was_at);
        self.put(NewNsgRule { name, priority, allows: false, matches: RuleMatch::Nothing, description });
        Ok(())
    }

    /// Moves a customer's rule behind all of Postern's rules for the machine.
    pub(super) fn move_behind(&mut self, rule: &NsgRule) -> Result<(), PlanError> {
        let last = self.view.denies(&self.group).iter().map(|(deny, ..)| deny.priority).max().unwrap_or(0);
        if rule.priority > last {
            return Ok(());
        }
        let to = self.free(last + 1..=MAX_PRIORITY).ok_or_else(|| self.full("behind Postern's"))?;
        let passed = passed(&self.group, rule, to);
        if let Some(passed) = passed {
            return Err(PlanError(format!(
                "rule {} of {} cannot be moved behind Postern's without passing rule {} (priority {}), which says otherwise: move or narrow it by hand",
                rule.name,
                self.group.id.name(),
                passed.name,
                passed.priority
            )));
        }
        if let Some(limit) = self.limit(std::slice::from_ref(rule)).filter(|limit| *limit < to) {
            return Err(self.shuts_another(std::slice::from_ref(rule), limit));
        }
        let moved = RuleWrite::Move {
            group: self.group.id.clone(),
            rule: rule.name.clone(),
            from: rule.priority,
            to,
        };
        self.writes.push(moved);
        self.reprioritize(&rule.name, to);
        Ok(())
    }

    fn put(&mut self, rule: NewNsgRule) {
        self.group.rules.retain(|other| !other.name.eq_ignore_ascii_case(&rule.name));
        self.group.rules.push(rule.read_back());
        self.group.rules.sort_by_key(|rule| (rule.is_default, rule.priority));
        self.writes.push(RuleWrite::Put(self.group.id.clone(), rule));
    }

    fn reprioritize(&mut self, name: &str, to: u16) {
        for rule in self.group.rules.iter_mut().filter(|rule| rule.name == name) {
            rule.priority = to;
        }
        self.group.rules.sort_by_key(|rule| (rule.is_default, rule.priority));
    }

    fn free(&self, mut range: RangeInclusive<u16>) -> Option<u16> {
        range.find(|priority| !self.group.is_taken(*priority))
    }

    fn full(&self, place: &str) -> PlanError {
        PlanError(format!(
            "there is no free priority in {} {place}; free some, or widen azure.priorities",
            self.group.id.name()
        ))
    }
}

/// The customer's rule that a move would pass and that decides otherwise for the same traffic, if there is one.
pub(super) fn passed<'a>(group: &'a Nsg, rule: &NsgRule, to: u16) -> Option<&'a NsgRule> {
    group.rules.iter().find(|other| {
        (rule.priority + 1..to).contains(&other.priority)
            && other.allows != rule.allows
            && RuleName::read(&other.name).is_none()
            && other.traffic.overlaps(&rule.traffic)
    })
}

/// Postern's rules that shut ports of any machine.
pub(super) fn denies<'a>(
    group: &'a Nsg,
    deployment: &'a str,
) -> impl Iterator<Item = (&'a NsgRule, DenyName)> + 'a {
    let denies = group.rules.iter().filter_map(|rule| Some((rule, RuleName::read(&rule.name)?.deny()?)));
    denies.filter(|(_, deny)| deny.key.is_of(deployment))
}
