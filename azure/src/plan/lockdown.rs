//! The writes of a lockdown, and those that are left of one. Pure.

use std::collections::BTreeSet;

use postern_core::ProtectedPort;

use super::draft::Draft;
use super::priority::MAX_PRIORITY;
use super::write::{PlanError, RuleWrite};
use crate::names::Name;
use crate::network::{Rule, exposures};
use crate::settings::Priorities;
use crate::snapshot::MachineView;

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
