//! The writes of a release, and the care for the notes of moved rules. Pure.
//!
//! Several machines may need one customer's rule moved, and another broker may drive each of them. A broker that moves a rule back
//! therefore reads the group again, to see whether a machine needs the rule moved by now. A broker that moves a rule away reads
//! the group again, to see whether the note of its priority is still there.

use std::collections::BTreeSet;

use super::draft::{GroupDraft, denies, passed};
use super::priority::MAX_PRIORITY;
use super::write::{PlanError, RuleWrite};
use crate::id::ArmId;
use crate::names::{self, Moved, RuleName};
use crate::network::{Nsg, NsgRule};
use crate::rules::{NewNsgRule, RuleMatch};
use crate::settings::Priorities;
use crate::snapshot::{MachineView, notes};

/// A release, step by step. Where customer's rules were moved, each step is planned from a fresh read: another machine may need a
/// rule moved by now, or no longer.
#[derive(Debug, Default)]
pub(crate) struct ReleasePlan {
    /// The mark that the release is under way, and the deletes of Postern's rules for the machine.
    managed_rules: Vec<RuleWrite>,
    /// The moves of the customer's rules back.
    moves: Vec<RuleWrite>,
    /// The deletes of the notes.
    notes: Vec<RuleWrite>,
    /// The deletes of the mark.
    marks: Vec<RuleWrite>,
    /// True if a rule stays moved because other targets need that.
    has_kept: bool,
}

impl ReleasePlan {
    /// The writes of all steps, in order.
    pub(crate) fn writes(self) -> Vec<RuleWrite> {
        [self.managed_rules, self.moves, self.notes, self.marks].concat()
    }

    /// Returns the writes of the next step, and whether that is the last one.
    pub(crate) fn next(self) -> (Vec<RuleWrite>, bool) {
        if self.moves.is_empty() && self.notes.is_empty() && !self.has_kept {
            return (self.writes(), true);
        }
        let steps = [self.managed_rules, self.moves, self.notes];
        match steps.into_iter().find(|step| !step.is_empty()) {
            Some(step) => (step, false),
            None => (self.marks, true),
        }
    }

    /// Plans the moves of the customer's rules back. A rule that allows a port that other targets shut stays behind the rules
    /// of those targets, or moves there.
    fn move_back(&mut self, view: &MachineView<'_>, group: &Nsg) -> Result<(), PlanError> {
        let key = view.key();
        let others: Vec<&NsgRule> = denies(group, view.deployment)
            .filter(|(_, deny)| deny.key != key)
            .map(|(rule, _)| rule)
            // A machine that was locked down without consent needs no rule moved.
            .filter(|rule| !names::is_behind(&rule.description))
            .collect();
        let mut places = BTreeSet::new();
        let go = |rule: &NsgRule, to| RuleWrite::Move {
            group: group.id.clone(),
            rule: rule.name.clone(),
            from: rule.priority,
            to,
        };
        for (note, moved) in notes(group, view.deployment) {
            let rule = group.rules.iter().find(|rule| moved.was(&rule.name));
            let needed =
                others.iter().filter(|deny| rule.is_some_and(|it| deny.traffic.overlaps(&it.traffic)));
            if let (Some(rule), Some(last)) = (rule, needed.map(|deny| deny.priority).max()) {
                self.has_kept = true;
                let mut behind = last + 1..=MAX_PRIORITY;
                let to = behind.find(|to| !group.is_taken(*to) && !places.contains(to));
                if let Some(to) = to.filter(|to| passed(group, rule, *to).is_none())
                    && rule.priority == moved.priority
                    && rule.priority < last
                {
                    places.insert(to);
                    self.moves.push(go(rule, to));
                }
                continue;
            }
            if let Some(rule) = rule.filter(|rule| rule.priority != moved.priority) {
                let taken = group.rules.iter().find(|other| other.priority == moved.priority);
                if let Some(taken) = taken
                    .filter(|taken| !view.managed_rules(group).any(|(managed, _)| managed.name == taken.name))
                {
                    return Err(PlanError(format!(
                        "rule {} of {} cannot go back to priority {}: rule {} has it now; move that one first",
                        rule.name,
                        group.id.name(),
                        moved.priority,
                        taken.name
                    )));
                }
                self.moves.push(go(rule, moved.priority));
            }
            self.notes.push(RuleWrite::Delete(group.id.clone(), note.name.clone()));
        }
        Ok(())
    }
}

/// Plans the writes after which no rule of Postern's for the machine is left, and the customer's rules have their old priorities.
pub(crate) fn release(view: &MachineView<'_>, priorities: &Priorities) -> Result<ReleasePlan, PlanError> {
    let key = view.key();
    let mut release = ReleasePlan::default();
    for group in view.groups.values() {
        let managed: Vec<(&NsgRule, RuleName)> = view.managed_rules(group).collect();
        if !managed.is_empty() || view.machine.groups.contains(&group.id) {
            release.move_back(view, group)?;
        }
        for (rule, name) in managed {
            let is_mark = matches!(name, RuleName::Release(_));
            let list = if is_mark { &mut release.marks } else { &mut release.managed_rules };
            list.push(RuleWrite::Delete(group.id.clone(), rule.name.clone()));
        }
    }
    let ReleasePlan { managed_rules, moves, notes, marks, .. } = &mut release;
    if marks.is_empty()
        && managed_rules.len() + moves.len() + notes.len() > 1
        && let Some(first) = managed_rules.iter().chain(moves.iter()).chain(notes.iter()).next()
        && let Some(first) = view.groups.get(first.group())
    {
        let mut places = (*priorities.windows.start()..=MAX_PRIORITY).rev();
        let priority = places.find(|priority| !first.is_taken(*priority)).ok_or_else(|| {
            PlanError(format!(
                "there is no free priority in {} for the mark of a release; free one",
                first.id.name()
            ))
        })?;
        let (name, description) =
            (RuleName::Release(key).to_string(), "Postern: a release is under way".to_owned());
        let mark = NewNsgRule {
            name: name.clone(),
            priority,
            allows: false,
            matches: RuleMatch::Nothing,
            description,
        };
        managed_rules.insert(0, RuleWrite::Put(first.id.clone(), mark));
        marks.push(RuleWrite::Delete(first.id.clone(), name));
    }
    Ok(release)
}

/// The notes of the customer's rules that these writes move away.
pub(crate) fn moved_away(writes: &[RuleWrite], deployment: &str) -> BTreeSet<(ArmId, Moved)> {
    let moved = writes.iter().filter_map(|write| match write {
        RuleWrite::Move { group, rule, from, .. } => {
            Some((group.clone(), Moved::new(deployment, *from, rule)))
        }
        RuleWrite::Put(..) | RuleWrite::Delete(..) => None,
    });
    moved.collect()
}

/// The notes that these writes delete.
pub(crate) fn notes_taken(writes: &[RuleWrite]) -> BTreeSet<(ArmId, Moved)> {
    let taken = writes.iter().filter_map(|write| match write {
        RuleWrite::Delete(group, name) => Some((group.clone(), RuleName::read(name)?.moved()?)),
        RuleWrite::Put(..) | RuleWrite::Move { .. } => None,
    });
    taken.collect()
}

/// Plans to write the missing ones of these notes again: another broker, which did not see that a machine still needs the rule
/// moved, deleted them as done.
pub(crate) fn lost_notes(
    view: &MachineView<'_>,
    moved: &BTreeSet<(ArmId, Moved)>,
    priorities: &Priorities,
) -> Result<Vec<RuleWrite>, PlanError> {
    let mut writes = Vec::new();
    for (id, moved) in moved {
        let Some(group) = view.groups.get(id) else { continue };
        let is_needed = |rule: &&NsgRule| {
            let mut denies =
                denies(group, view.deployment).filter(|(deny, _)| !names::is_behind(&deny.description));
            rule.priority != moved.priority && denies.any(|(deny, _)| deny.traffic.overlaps(&rule.traffic))
        };
        if let Some(rule) = group.rules.iter().find(|rule| moved.was(&rule.name)).filter(is_needed) {
            let (group, writes_so_far) = (group.clone(), Vec::new());
            let mut draft = GroupDraft { view, group, priorities, writes: writes_so_far, is_behind: false };
            draft.note(&rule.name, moved.priority)?;
            writes.extend(draft.writes);
        }
    }
    Ok(writes)
}
