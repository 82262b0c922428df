//! What a release changes in network security groups, and what keeps the notes of it. Pure.
//!
//! A rule of a customer's that was moved may be needed away from where it was by several machines, each perhaps driven by
//! another broker. So whoever moves one looks again: one who moves it back, whether somebody needs it by now; one who moves
//! it away, whether the note of where it was is still there.

use std::collections::BTreeSet;

use super::{Act, Draft, Impossible, LAST, denies, passed};
use crate::id::ArmId;
use crate::look::{Look, notes};
use crate::names::{Moved, Name};
use crate::network::{Group, Rule};
use crate::rules::{NewRule, What};
use crate::settings::Priorities;

/// A release, step by step. Each step is made on a look of its own where rules of others were moved: somebody may need them
/// behind by now, or need them no more.
#[derive(Debug, Default)]
pub(crate) struct Release {
    /// What says that it is under way, and the end of what is ours for the machine.
    ours: Vec<Act>,
    /// Rules of others that go back.
    moves: Vec<Act>,
    /// The end of what says where they were.
    notes: Vec<Act>,
    /// It is not under way any more.
    marks: Vec<Act>,
    /// Whether a rule stays away from where it was, because other targets need that.
    has_kept: bool,
}

impl Release {
    /// All of it, in order.
    pub(crate) fn acts(self) -> Vec<Act> {
        [self.ours, self.moves, self.notes, self.marks].concat()
    }

    /// What is to be done on this look, and whether that is all.
    pub(crate) fn next(self) -> (Vec<Act>, bool) {
        if self.moves.is_empty() && self.notes.is_empty() && !self.has_kept {
            return (self.acts(), true);
        }
        let steps = [self.ours, self.moves, self.notes];
        match steps.into_iter().find(|step| !step.is_empty()) {
            Some(step) => (step, false),
            None => (self.marks, true),
        }
    }

    /// Moves others' rules back to where they were. One that lets somebody in to what other targets have shut stays behind
    /// theirs, or goes there if it is not.
    fn move_back(&mut self, look: &Look<'_>, group: &Group) -> Result<(), Impossible> {
        let key = look.key();
        let others: Vec<&Rule> = denies(group, look.deployment)
            .filter(|(_, deny)| deny.key != key)
            .map(|(rule, _)| rule)
            .collect();
        let mut places = BTreeSet::new();
        let go = |rule: &Rule, to| Act::Move {
            group: group.id.clone(),
            rule: rule.name.clone(),
            from: rule.priority,
            to,
        };
        for (note, moved) in notes(group, look.deployment) {
            let rule = group.rules.iter().find(|rule| moved.was(&rule.name));
            let needed =
                others.iter().filter(|deny| rule.is_some_and(|it| deny.traffic.overlaps(&it.traffic)));
            if let (Some(rule), Some(last)) = (rule, needed.map(|deny| deny.priority).max()) {
                self.has_kept = true;
                let mut behind = last + 1..=LAST;
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
                if let Some(taken) =
                    taken.filter(|taken| !look.ours(group).any(|(ours, _)| ours.name == taken.name))
                {
                    return Err(Impossible(format!(
                        "rule {} of {} cannot go back to priority {}: rule {} has it now; move that one first",
                        rule.name,
                        group.id.name(),
                        moved.priority,
                        taken.name
                    )));
                }
                self.moves.push(go(rule, moved.priority));
            }
            self.notes.push(Act::Delete(group.id.clone(), note.name.clone()));
        }
        Ok(())
    }
}

/// What is to be done so that nothing of ours for the machine is left, and rules of others are where they were.
pub(crate) fn release(look: &Look<'_>, priorities: &Priorities) -> Result<Release, Impossible> {
    let key = look.key();
    let mut release = Release::default();
    for group in look.groups.values() {
        let ours: Vec<(&Rule, Name)> = look.ours(group).collect();
        if !ours.is_empty() || look.machine.groups.contains(&group.id) {
            release.move_back(look, group)?;
        }
        for (rule, name) in ours {
            let is_mark = matches!(name, Name::Release(_));
            let list = if is_mark { &mut release.marks } else { &mut release.ours };
            list.push(Act::Delete(group.id.clone(), rule.name.clone()));
        }
    }
    let Release { ours, moves, notes, marks, .. } = &mut release;
    if marks.is_empty()
        && ours.len() + moves.len() + notes.len() > 1
        && let Some(first) = ours.iter().chain(moves.iter()).chain(notes.iter()).next()
        && let Some(first) = look.groups.get(first.group())
    {
        let mut places = (*priorities.windows.start()..=LAST).rev();
        let priority = places.find(|priority| !first.is_taken(*priority)).ok_or_else(|| {
            Impossible(format!(
                "there is no free priority in {} for the mark of a release; free one",
                first.id.name()
            ))
        })?;
        let (name, description) =
            (Name::Release(key).to_string(), "Postern: a release is under way".to_owned());
        let mark = NewRule { name: name.clone(), priority, allows: false, what: What::Nothing, description };
        ours.insert(0, Act::Put(first.id.clone(), mark));
        marks.push(Act::Delete(first.id.clone(), name));
    }
    Ok(release)
}

/// Where rules of others were that these acts move away.
pub(crate) fn moved_away(acts: &[Act], deployment: &str) -> BTreeSet<(ArmId, Moved)> {
    let moved = acts.iter().filter_map(|act| match act {
        Act::Move { group, rule, from, .. } => Some((group.clone(), Moved::new(deployment, *from, rule))),
        Act::Put(..) | Act::Delete(..) => None,
    });
    moved.collect()
}

/// The notes that these acts take away.
pub(crate) fn notes_taken(acts: &[Act]) -> BTreeSet<(ArmId, Moved)> {
    let taken = acts.iter().filter_map(|act| match act {
        Act::Delete(group, name) => Some((group.clone(), Name::read(name)?.moved()?)),
        Act::Put(..) | Act::Move { .. } => None,
    });
    taken.collect()
}

/// Writes anew what is missing of these notes: somebody else, who did not see that a rule is needed away from where it was,
/// took it for done.
pub(crate) fn lost_notes(
    look: &Look<'_>,
    moved: &BTreeSet<(ArmId, Moved)>,
    priorities: &Priorities,
) -> Result<Vec<Act>, Impossible> {
    let mut acts = Vec::new();
    for (id, moved) in moved {
        let Some(group) = look.groups.get(id) else { continue };
        let is_needed = |rule: &&Rule| {
            let mut denies = denies(group, look.deployment);
            rule.priority != moved.priority && denies.any(|(deny, _)| deny.traffic.overlaps(&rule.traffic))
        };
        if let Some(rule) = group.rules.iter().find(|rule| moved.was(&rule.name)).filter(is_needed) {
            let mut draft = Draft { look, group: group.clone(), priorities, acts: Vec::new() };
            draft.note(&rule.name, moved.priority)?;
            acts.extend(draft.acts);
        }
    }
    Ok(acts)
}
