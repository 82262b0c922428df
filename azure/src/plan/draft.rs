//! A group, and the writes that are planned for it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use postern_core::{Port, ProtectedPort, Protocol};

use super::priority::MAX_PRIORITY;
use super::write::{PlanError, RuleWrite};
use crate::names::{self, Deny, Family, Moved, Name, PORTS_PER_RULE};
use crate::network::{Group, Rule};
use crate::rules::{NewRule, RuleMatch};
use crate::settings::Priorities;
use crate::snapshot::{MachineView, notes};

/// So many priorities are to be free before ours, for windows.
const MIN_WINDOW_ROOM: usize = 10;

/// A group, changed in thought.
pub(super) struct Draft<'a> {
    pub(super) view: &'a MachineView<'a>,
    pub(super) group: Group,
    pub(super) priorities: &'a Priorities,
    pub(super) writes: Vec<RuleWrite>,
}

impl Draft<'_> {
    pub(super) fn lock(
        mut self,
        ports: &BTreeSet<ProtectedPort>,
        first: bool,
    ) -> Result<Vec<RuleWrite>, PlanError> {
        let open = self.open_to(ports);
        // What an earlier lockdown began to move, and did not.
        let begun = self.view.unmoved().into_iter().filter(|(group, _)| group.id == self.group.id);
        let begun: Vec<Rule> = begun.map(|(_, rule)| rule.clone()).collect();
        if !first || open.is_empty() {
            self.shut(ports, |draft, ports, family| draft.behind(ports, family, &begun))?;
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
        let last = self.last_if(ports, &open)?;
        let moving: Vec<Rule> = open.iter().filter(|rule| rule.priority < last).cloned().collect();
        for rule in &moving {
            self.note(&rule.name, rule.priority)?;
        }
        self.shut(ports, |draft, ports, family| draft.behind(ports, family, &open))?;
        for rule in &moving {
            self.move_behind(rule)?;
        }
        Ok(self.writes)
    }

    /// The last priority of ours if the ports were shut with no regard to these rules.
    fn last_if(&self, ports: &BTreeSet<ProtectedPort>, open: &[Rule]) -> Result<u16, PlanError> {
        let (view, group, priorities) = (self.view, self.group.clone(), self.priorities);
        let mut trial = Draft { view, group, priorities, writes: Vec::new() };
        trial.shut(ports, |draft, ports, family| draft.behind(ports, family, open))?;
        Ok(view.denies(&trial.group).iter().map(|(rule, ..)| rule.priority).max().unwrap_or(0))
    }

    /// The rules of others that let somebody in to one of the ports, and stand before ours or would.
    pub(super) fn open_to(&self, ports: &BTreeSet<ProtectedPort>) -> Vec<Rule> {
        let mut open: Vec<Rule> = Vec::new();
        for door in self.view.machine.doors.iter().filter(|door| door.groups.contains(&self.group.id)) {
            for port in ports {
                for admission in self.group.admissions(door, *port) {
                    let rule = admission.rule;
                    if !rule.is_default && Name::read(&rule.name).is_none() && !open.contains(rule) {
                        open.push(rule.clone());
                    }
                }
            }
        }
        open.sort_by_key(|rule| rule.priority);
        open
    }

    /// Puts rules that shut ports, and are gone, back to where they stood.
    pub(super) fn put_back(&mut self) {
        let locked_rules = self.view.locked_rules;
        let families: BTreeSet<Family> = self.view.machine.families().collect();
        for (deny, priority) in locked_rules.of(&self.group.id) {
            let is_gone = self.group.rule(&Name::Deny(deny.clone()).to_string()).is_none();
            if is_gone && families.contains(&deny.family) && !self.group.is_taken(priority) {
                self.put_deny(&deny, priority);
            }
        }
    }

    fn put_deny(&mut self, deny: &Deny, priority: u16) {
        self.put(NewRule {
            name: Name::Deny(deny.clone()).to_string(),
            priority,
            allows: false,
            matches: RuleMatch::Ports {
                protocol: deny.protocol,
                sources: None,
                addresses: self.view.machine.addresses(deny.family),
                ports: deny.ports.clone(),
            },
            description: names::describe_deny(self.view.target),
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
                    let deny = Deny { key: self.view.key(), protocol, family, ports };
                    let protected = deny.protected().collect();
                    // One that somebody edited keeps its place.
                    let kept = self.group.rule(&Name::Deny(deny.clone()).to_string());
                    let kept = kept.map(|rule| rule.priority);
                    let priority = kept.map_or_else(|| place(self, &protected, family), Ok)?;
                    self.put_deny(&deny, priority);
                }
            }
        }
        Ok(())
    }

    /// The first free priority of ours behind every rule of others that lets somebody in, but those that are to move.
    pub(super) fn behind(
        &self,
        ports: &BTreeSet<ProtectedPort>,
        _: Family,
        moving: &[Rule],
    ) -> Result<u16, PlanError> {
        let open = self.open_to(ports);
        let last =
            open.iter().filter(|rule| !moving.contains(rule)).map(|rule| rule.priority).max().unwrap_or(0);
        let range = self.priorities.denies.clone();
        let from = last.saturating_add(1);
        self.free(from.max(*range.start())..=*range.end())
            .or_else(|| self.free(from.max(*range.start())..=MAX_PRIORITY))
            .ok_or_else(|| self.full("behind the rules that let somebody in"))
    }

    /// The first free priority of ours before this one, or else the last of all that are free before it.
    pub(super) fn free_below(&self, before: u16) -> Result<u16, PlanError> {
        let range = &self.priorities.denies;
        self.free(*range.start()..=before.saturating_sub(1).min(*range.end()))
            .or_else(|| (*self.priorities.windows.start()..before).rev().find(|it| !self.group.is_taken(*it)))
            .ok_or_else(|| self.full("before the rules that let somebody in"))
    }

    /// Whether ours can come before this priority, and windows before ours.
    fn room_before(&self, before: u16) -> bool {
        let free = (*self.priorities.windows.start()..before).filter(|it| !self.group.is_taken(*it));
        free.take(MIN_WINDOW_ROOM + 1).count() > MIN_WINDOW_ROOM
    }

    /// Takes away those of ours that stand behind this priority: they are written anew before it.
    fn forget_behind(&mut self, before: u16) {
        let behind: Vec<String> = self
            .view
            .denies(&self.group)
            .into_iter()
            .filter(|(rule, ..)| rule.priority > before)
            .map(|(rule, ..)| rule.name.clone())
            .collect();
        // A write of the same name moves the rule: it need not be deleted.
        self.group.rules.retain(|rule| !behind.contains(&rule.name));
    }

    pub(super) fn note(&mut self, rule: &str, was_at: u16) -> Result<(), PlanError> {
        let name = Name::Moved(Moved::new(self.view.deployment, was_at, rule)).to_string();
        // One that was moved before has its note: where it was at first.
        if notes(&self.group, self.view.deployment).any(|(_, moved)| moved.was(rule)) {
            return Ok(());
        }
        // From the very end: a note decides nothing, and takes no place of those that do.
        let mut places = (*self.priorities.windows.start()..=MAX_PRIORITY).rev();
        let priority = places.find(|it| !self.group.is_taken(*it)).ok_or_else(|| self.full("for a note"))?;
        let description = names::describe_moved(rule, was_at);
        self.put(NewRule { name, priority, allows: false, matches: RuleMatch::Nothing, description });
        Ok(())
    }

    /// Moves a rule of a customer's behind every one of ours for the machine.
    pub(super) fn move_behind(&mut self, rule: &Rule) -> Result<(), PlanError> {
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

    fn put(&mut self, rule: NewRule) {
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

/// The rule of somebody else's that a rule would pass on its way behind, and that says otherwise.
pub(super) fn passed<'a>(group: &'a Group, rule: &Rule, to: u16) -> Option<&'a Rule> {
    group.rules.iter().find(|other| {
        (rule.priority + 1..to).contains(&other.priority)
            && other.allows != rule.allows
            && Name::read(&other.name).is_none()
            && other.traffic.overlaps(&rule.traffic)
    })
}

/// The rules of ours that shut ports of any machine.
pub(super) fn denies<'a>(
    group: &'a Group,
    deployment: &'a str,
) -> impl Iterator<Item = (&'a Rule, Deny)> + 'a {
    let denies = group.rules.iter().filter_map(|rule| Some((rule, Name::read(&rule.name)?.deny()?)));
    denies.filter(|(_, deny)| deny.key.is_of(deployment))
}
