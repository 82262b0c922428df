//! The priorities of rules in a network security group.

use crate::names;
use crate::network::{Nsg, NsgRule};
use crate::settings::Priorities;
use crate::snapshot::MachineView;

/// The greatest priority of a rule (Microsoft Learn, "Network security groups").
pub(super) const MAX_PRIORITY: u16 = 4096;

/// Chooses a free priority for a window, before every rule that shuts a port of the machine and before an obstacle: the first one, or after a conflict
/// one that the name of the rule decides, so that two brokers that write one group do not choose the same one again.
pub(crate) fn window_priority(
    view: &MachineView<'_>,
    group: &Nsg,
    priorities: &Priorities,
    (name, tries): (&str, usize),
    obstacle: Option<&NsgRule>,
) -> Option<u16> {
    let shut = view.denies(group).iter().map(|(rule, ..)| rule.priority).min().unwrap_or(MAX_PRIORITY);
    let shut = obstacle.map_or(shut, |obstacle| shut.min(obstacle.priority));
    let range = *priorities.windows.start()..shut.min(priorities.windows.end().saturating_add(1));
    let free: Vec<u16> = range.filter(|priority| !group.is_taken(*priority)).collect();
    let place = if tries == 0 { 0 } else { names::name_hash(name, tries) };
    free.get(place.checked_rem(free.len())?).copied()
}
