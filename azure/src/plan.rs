//! What a lockdown and a release change in network security groups. Pure.
//!
//! Nothing of a customer's is ever rewritten unasked. A rule of theirs that lets somebody in to a port keeps its precedence:
//! ours shuts the port behind it, and the report says that the port is still open. Only where the administrator accepts
//! that ours come first, ours are put before theirs; and only where there is no room before theirs, theirs is moved behind
//! ours, with a note in the group of where it was.

mod release;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use postern_core::{Port, ProtectedPort, Protocol};
use postern_provider::{Action, CloudChange};

use crate::id::ArmId;
use crate::names::{self, Deny, Family, Moved, Name, PORTS_PER_RULE};
use crate::network::{Group, Rule, exposures};
use crate::rules::{NewRule, RuleMatch};
use crate::settings::Priorities;
use crate::snapshot::{MachineView, notes};

pub(crate) use release::{lost_notes, moved_away, notes_taken, release};

/// The greatest priority of a rule (Microsoft Learn, "Network security groups").
const MAX_PRIORITY: u16 = 4096;
/// So many priorities are to be free before ours, for windows.
const MIN_WINDOW_ROOM: usize = 10;

/// One change of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RuleWrite {
    /// A rule of ours is written.
    Put(ArmId, NewRule),
    /// A rule of ours is deleted.
    Delete(ArmId, String),
    /// A rule of a customer's is moved to another priority; nothing else of it changes.
    Move {
        /// Its group.
        group: ArmId,
        /// Its name.
        rule: String,
        /// Where it is.
        from: u16,
        /// Where it is to be.
        to: u16,
    },
}

/// Why something cannot be done, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlanError(pub(crate) String);

impl RuleWrite {
    /// The group that it changes.
    pub(crate) fn group(&self) -> &ArmId {
        match self {
            Self::Put(group, _) | Self::Delete(group, _) | Self::Move { group, .. } => group,
        }
    }

    /// For people.
    pub(crate) fn change(&self) -> CloudChange {
        let resource = self.group().name().to_owned();
        match self {
            Self::Put(_, rule) => {
                let detail = match (&rule.matches, Name::read(&rule.name)) {
                    (RuleMatch::Nothing, Some(Name::Release(_))) => {
                        format!("rule {}: a release is under way", rule.name)
                    }
                    (RuleMatch::Nothing, _) => format!("rule {}: a note of where a rule was", rule.name),
                    (RuleMatch::Ports { protocol, ports, .. }, _) => {
                        let ports: Vec<String> =
                            ports.iter().map(|port| format!("{protocol}/{port}")).collect();
                        format!("rule {} (priority {}): shut {}", rule.name, rule.priority, ports.join(", "))
                    }
                };
                CloudChange { action: Action::Create, resource, detail }
            }
            Self::Delete(_, name) => {
                CloudChange { action: Action::Delete, resource, detail: format!("rule {name}") }
            }
            Self::Move { rule, from, to, .. } => {
                let detail = format!("rule {rule} from priority {from} to {to}");
                CloudChange { action: Action::Move, resource, detail }
            }
        }
    }
}

/// What is to be done so that every group on the machine's way shuts these ports.
///
/// `first` says that ours are to come before what lets somebody in.
pub(crate) fn lock(
    view: &MachineView<'_>,
    ports: &BTreeSet<ProtectedPort>,
    priorities: &Priorities,
    first: bool,
) -> Result<Vec<RuleWrite>, PlanError> {
    // What has the name of a window and is none lets its sources in, whatever is shut.
    let is_allow = |name: &str| matches!(Name::read(name), Some(Name::Allow(_)));
    let strays = view.strays().into_iter().filter(|(_, name)| is_allow(name));
    let mut writes: Vec<RuleWrite> = strays.map(|(group, name)| RuleWrite::Delete(group, name)).collect();
    let locked = view.locked();
    let ports: BTreeSet<ProtectedPort> = ports.union(&locked).copied().collect();
    // Where another group on the way keeps everybody out, nothing has to be moved in this one.
    let stays_open =
        first && !exposures(view.groups, &view.machine.doors, &ports).iter().all(|it| it.by_default);
    for group in view.on_the_way() {
        let draft = Draft { view, group: group.clone(), priorities, writes: Vec::new() };
        writes.extend(draft.lock(&ports, stays_open)?);
    }
    Ok(writes)
}

/// What is left to be done of a lockdown that was interrupted, or in part undone.
pub(crate) fn resume(view: &MachineView<'_>, priorities: &Priorities) -> Result<Vec<RuleWrite>, PlanError> {
    let mut writes = Vec::new();
    let locked = view.locked();
    for group in view.on_the_way() {
        let mut draft = Draft { view, group: group.clone(), priorities, writes: Vec::new() };
        let unmoved = view.unmoved().into_iter().filter(|(of, _)| of.id == group.id);
        let moving: Vec<Rule> = unmoved.map(|(_, rule)| rule.clone()).collect();
        // Ours are to come first where something was to be moved.
        draft.put_back();
        let passed = if moving.is_empty() { Vec::new() } else { draft.open_to(&locked) };
        draft.shut(&locked, |draft, ports, family| {
            // Where there is no place behind them, ours were to come first: it was planned like that.
            let before = || draft.open_to(ports).first().map_or(MAX_PRIORITY, |rule| rule.priority);
            draft.behind(ports, family, &passed).or_else(|_| draft.free_below(before()))
        })?;
        for rule in moving {
            draft.move_behind(&rule)?;
        }
        writes.extend(draft.writes);
    }
    Ok(writes)
}

/// A group, changed in thought.
struct Draft<'a> {
    view: &'a MachineView<'a>,
    group: Group,
    priorities: &'a Priorities,
    writes: Vec<RuleWrite>,
}

impl Draft<'_> {
    fn lock(mut self, ports: &BTreeSet<ProtectedPort>, first: bool) -> Result<Vec<RuleWrite>, PlanError> {
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
    fn open_to(&self, ports: &BTreeSet<ProtectedPort>) -> Vec<Rule> {
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
    fn put_back(&mut self) {
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
    fn shut(
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
    fn behind(&self, ports: &BTreeSet<ProtectedPort>, _: Family, moving: &[Rule]) -> Result<u16, PlanError> {
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
    fn free_below(&self, before: u16) -> Result<u16, PlanError> {
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

    fn note(&mut self, rule: &str, was_at: u16) -> Result<(), PlanError> {
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
    fn move_behind(&mut self, rule: &Rule) -> Result<(), PlanError> {
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

/// The free priority for a window: before every one of ours that shuts something of the machine. The first of them; after
/// somebody else was faster one that the name of the rule decides, so that two who write one group do not meet again.
pub(crate) fn window_priority(
    view: &MachineView<'_>,
    group: &Group,
    priorities: &Priorities,
    name: &str,
    tries: usize,
) -> Option<u16> {
    let shut = view.denies(group).iter().map(|(rule, ..)| rule.priority).min().unwrap_or(MAX_PRIORITY);
    let range = *priorities.windows.start()..shut.min(priorities.windows.end().saturating_add(1));
    let free: Vec<u16> = range.filter(|priority| !group.is_taken(*priority)).collect();
    let place = if tries == 0 { 0 } else { names::name_hash(name, tries) };
    free.get(place.checked_rem(free.len())?).copied()
}

/// The rule of somebody else's that a rule would pass on its way behind, and that says otherwise.
fn passed<'a>(group: &'a Group, rule: &Rule, to: u16) -> Option<&'a Rule> {
    group.rules.iter().find(|other| {
        (rule.priority + 1..to).contains(&other.priority)
            && other.allows != rule.allows
            && Name::read(&other.name).is_none()
            && other.traffic.overlaps(&rule.traffic)
    })
}

/// The rules of ours that shut ports of any machine.
fn denies<'a>(group: &'a Group, deployment: &'a str) -> impl Iterator<Item = (&'a Rule, Deny)> + 'a {
    let denies = group.rules.iter().filter_map(|rule| Some((rule, Name::read(&rule.name)?.deny()?)));
    denies.filter(|(_, deny)| deny.key.is_of(deployment))
}

#[cfg(test)]
mod tests;
