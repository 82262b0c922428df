//! The writes of a lockdown, and those that are left of one. Pure.

use std::collections::BTreeSet;

use postern_core::ProtectedPort;

use super::draft::GroupDraft;
use super::priority::MAX_PRIORITY;
use super::write::{PlanError, RuleWrite};
use crate::names::RuleName;
use crate::network::{NsgRule, exposures};
use crate::settings::Priorities;
use crate::snapshot::MachineView;

/// Plans the writes after which every group on the machine's way shuts these ports.
///
/// `posterns_first` puts Postern's rules before the customer's rules that allow a port.
pub(crate) fn lock(
    view: &MachineView<'_>,
    ports: &BTreeSet<ProtectedPort>,
    priorities: &Priorities,
    posterns_first: bool,
) -> Result<Vec<RuleWrite>, PlanError> {
    // A rule with the name of a window and another content admits its sources whatever is shut: it goes.
    let is_allow = |name: &str| matches!(RuleName::read(name), Some(RuleName::Allow(_)));
    let strays = view.strays().into_iter().filter(|(_, name)| is_allow(name));
    let mut writes: Vec<RuleWrite> = strays.map(|(group, name)| RuleWrite::Delete(group, name)).collect();
    let locked = view.locked();
    let ports: BTreeSet<ProtectedPort> = ports.union(&locked).copied().collect();
    // If another group on the way keeps every source out, no rule has to move in this one.
    let stays_open =
        posterns_first && !exposures(view.groups, &view.machine.doors, &ports).iter().all(|it| it.by_default);
    let is_behind = !posterns_first && (view.shut().is_empty() || view.is_behind());
    let mut of_groups = Vec::new();
    for group in view.on_the_way() {
        let draft = GroupDraft { view, group: group.clone(), priorities, writes: Vec::new(), is_behind };
        of_groups.extend(draft.lock(&ports, stays_open)?);
    }
    // The notes of every group come before the first rule that shuts a port: a lockdown that stopped is known by them to be one
    // that may move rules, in whichever group it goes on.
    let is_note = |write: &RuleWrite| matches!(write, RuleWrite::Put(_, rule) if matches!(RuleName::read(&rule.name), Some(RuleName::Moved(_))));
    of_groups.sort_by_key(|write| !is_note(write));
    writes.extend(of_groups);
    Ok(writes)
}

/// Plans the rest of a lockdown that was interrupted, or undone in part.
pub(crate) fn resume(view: &MachineView<'_>, priorities: &Priorities) -> Result<Vec<RuleWrite>, PlanError> {
    let mut writes = Vec::new();
    let locked = view.locked();
    for group in view.on_the_way() {
        let is_behind = view.is_behind();
        let mut draft = GroupDraft { view, group: group.clone(), priorities, writes: Vec::new(), is_behind };
        let unmoved = view.unmoved().into_iter().filter(|(of, _)| of.id == group.id);
        let moving: Vec<NsgRule> = unmoved.map(|(_, rule)| rule.clone()).collect();
        // Where a rule was noted to be moved, Postern's rules come first.
        draft.put_back();
        let passed = if moving.is_empty() { Vec::new() } else { draft.open_to(&locked) };
        let places = match draft.limit(&moving) {
            Some(limit) => draft.places_before(&locked, &passed, limit)?,
            None => Vec::new(),
        };
        draft.shut(&locked, |draft, ports, family| {
            if !places.is_empty() {
                return draft.one_of(&places);
            }
            // If no priority is free behind them, the lockdown was planned with Postern's rules first.
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
