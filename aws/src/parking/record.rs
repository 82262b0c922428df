//! The places of copies and holders among the parked groups of one customer's group. Pure.

use std::collections::BTreeSet;

use super::{CustomerGroup, DoesNotFit, GroupStep, Holders, Quota, copy_of};
use crate::rule::{GroupRule, RuleSource};
use crate::tags;

/// The most holders of one parked group. Its tags are 50 at most (EC2 User Guide, "Tag restrictions"), and
/// Postern's others, those of the configuration, and those that an organisation adds need room.
const MAX_HOLDERS: usize = 40;
/// The most tags that a parked group gets from Postern.
const MAX_USED_TAGS: usize = tags::MAX_TAGS - 2;
/// The most characters of a tag's value (EC2 User Guide, "Tag restrictions").
const MAX_TAG_VALUE: usize = 256;

/// A parked group with what the steps add to it.
struct Slot<'a> {
    number: usize,
    is_new: bool,
    holders: Holders,
    other_tags: usize,
    sources: Vec<&'a RuleSource>,
}

impl Slot<'_> {
    fn new(number: usize) -> Self {
        Self { number, is_new: true, holders: Holders::new(), other_tags: 0, sources: Vec::new() }
    }

    fn has_room_for_holder(&self) -> bool {
        self.holders.len() < MAX_HOLDERS && self.other_tags + self.holders.len() < MAX_USED_TAGS
    }

    fn has_room_for(&self, source: &RuleSource, quota: &Quota) -> bool {
        quota.count(self.sources.iter().copied().chain([source])) <= quota.rules
    }
}

impl CustomerGroup {
    /// Returns the steps that record these holders and copy the new originals, in as few parked groups as the
    /// limits of tags and rules allow.
    pub(super) fn steps_of_record(
        &self,
        holders: &Holders,
        new: &[&GroupRule],
        deployment: &str,
        quota: &Quota,
    ) -> Result<Vec<GroupStep>, DoesNotFit> {
        steps(self, holders, new, deployment, quota)
    }
}

fn steps(
    customer_group: &CustomerGroup,
    holders: &Holders,
    new: &[&GroupRule],
    deployment: &str,
    quota: &Quota,
) -> Result<Vec<GroupStep>, DoesNotFit> {
    if customer_group.parked.is_empty() && new.is_empty() {
        return Ok(Vec::new());
    }
    let slot = |parked: &super::ParkedGroup| Slot {
        number: parked.number,
        is_new: false,
        holders: parked.holders.clone(),
        other_tags: parked.other_tags,
        sources: Vec::new(),
    };
    let mut slots: Vec<Slot<'_>> = customer_group.parked.iter().map(slot).collect();
    for (slot, parked) in slots.iter_mut().zip(&customer_group.parked) {
        slot.sources.extend(parked.rules.iter().map(|rule| &rule.source));
    }

    let mut held = Vec::new();
    for (instance, ports) in holders {
        let length = tags::of_holder(instance, ports).1.len();
        if length > MAX_TAG_VALUE {
            return Err(DoesNotFit::Ports { instance: instance.clone(), length });
        }
        let listed = slots.iter_mut().find(|slot| slot.holders.contains_key(instance));
        let slot = match listed {
            Some(slot) if slot.holders.get(instance) == Some(ports) => continue,
            Some(slot) => slot,
            None => slot_where(&mut slots, Slot::has_room_for_holder),
        };
        slot.holders.insert(instance.clone(), ports.clone());
        if !slot.is_new {
            held.push(GroupStep::Hold(slot.number, instance.clone(), ports.clone()));
        }
    }
    let mut parked = Vec::new();
    for rule in new {
        if !Slot::new(0).has_room_for(&rule.source, quota) {
            let needed = quota.count([&rule.source].into_iter());
            let group = customer_group.id.clone();
            return Err(DoesNotFit::Rules { group, needed, most: quota.rules });
        }
        let slot = slot_where(&mut slots, |slot| slot.has_room_for(&rule.source, quota));
        slot.sources.push(&rule.source);
        parked.push(GroupStep::Park(slot.number, copy_of(rule, deployment)));
    }
    let made = slots.into_iter().filter(|slot| slot.is_new);
    let made = made.map(|slot| GroupStep::MakeParked(slot.number, slot.holders));
    Ok(made.chain(held).chain(parked).collect())
}

/// Returns the first slot that has room, or a new one.
fn slot_where<'s, 'a>(
    slots: &'s mut Vec<Slot<'a>>,
    has_room: impl Fn(&Slot<'a>) -> bool,
) -> &'s mut Slot<'a> {
    let index = slots.iter().position(has_room).unwrap_or_else(|| {
        let used: BTreeSet<usize> = slots.iter().map(|slot| slot.number).collect();
        let free = (1..).find(|number| !used.contains(number)).unwrap_or(slots.len() + 1);
        slots.push(Slot::new(free));
        slots.len() - 1
    });
    &mut slots[index]
}
