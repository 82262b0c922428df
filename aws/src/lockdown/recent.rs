//! A memory of the holders and parked groups that this broker wrote a moment ago. Pure.
//!
//! The problem: whether a customer's rules go back is decided by the holders that tags list, and a read of EC2
//! may be older than the last write. A release that still reads a holder who has just left would leave the
//! rules parked for good; one that does not read a holder who has just come would open that instance.
//!
//! The rule: for [`SHOWN_AFTER`] after EC2's answer a read that contradicts it is older than the answer, and
//! the caller reads again. After that time the read is believed: another principal made the change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postern_core::ProtectedPort;
use tokio::time::Instant;

use crate::parking::{CustomerGroup, GroupStep, ParkedGroup};

/// The time after which every read shows a write.
const SHOWN_AFTER: Duration = Duration::from_secs(10);

/// The ports of a holder.
type Ports = BTreeSet<ProtectedPort>;

/// The recent writes of one account and Region, by the customer's group.
#[derive(Debug, Default)]
pub(crate) struct RecentWrites {
    /// The ports of each holder; none for one that left.
    holders: BTreeMap<(String, String), (Option<Ports>, Instant)>,
    /// The id of each parked group, by its number; none for one that was deleted.
    parked: BTreeMap<(String, usize), (Option<String>, Instant)>,
}

impl RecentWrites {
    /// Records that EC2 answered a step on a customer's group. `parked` is the id of the step's parked group.
    pub(crate) fn wrote(&mut self, group: &CustomerGroup, step: &GroupStep, parked: &str, now: Instant) {
        self.forget(now);
        let mut holder = |instance: &String, ports: Option<BTreeSet<ProtectedPort>>| {
            self.holders.insert((group.id.clone(), instance.clone()), (ports, now));
        };
        match step {
            GroupStep::MakeParked(number, holders) => {
                holders.iter().for_each(|(instance, ports)| holder(instance, Some(ports.clone())));
                self.parked.insert((group.id.clone(), *number), (Some(parked.to_owned()), now));
            }
            GroupStep::Hold(_, instance, ports) => holder(instance, Some(ports.clone())),
            GroupStep::ReleaseHolder(number, instance) => {
                let lists =
                    |other: &ParkedGroup| other.number != *number && other.holders.contains_key(instance);
                if !group.parked.iter().any(lists) {
                    holder(instance, None);
                }
            }
            GroupStep::DeleteParked(number) => {
                let deleted = group.parked.iter().filter(|parked| parked.number == *number);
                deleted.flat_map(|parked| parked.holders.keys()).for_each(|instance| holder(instance, None));
                self.parked.insert((group.id.clone(), *number), (None, now));
            }
            GroupStep::Park(..) | GroupStep::Add(_) | GroupStep::Remove(_) | GroupStep::Unpark(_) => {}
        }
    }

    /// Returns a write that a read of this customer's group does not show.
    pub(crate) fn unshown(&mut self, group: &CustomerGroup, now: Instant) -> Option<String> {
        self.forget(now);
        let holders = group.holders();
        let of_group = |id: &String| *id == group.id;
        let holder = self.holders.iter().filter(|((id, _), _)| of_group(id)).find_map(
            |((_, instance), (ports, _))| {
                (holders.get(instance) != ports.as_ref()).then(|| format!("the tag of {instance}"))
            },
        );
        let shown = |number: usize| {
            group.parked.iter().find(|parked| parked.number == number).map(|parked| &parked.id)
        };
        let parked =
            self.parked.iter().filter(|((id, _), _)| of_group(id)).find_map(|((_, number), (id, _))| {
                (shown(*number) != id.as_ref()).then(|| format!("the parked group with the number {number}"))
            });
        holder.or(parked)
    }

    /// Reports whether the instance ceased to hold the group a moment ago.
    pub(crate) fn has_left(&mut self, group: &str, instance: &str, now: Instant) -> bool {
        self.forget(now);
        let key = (group.to_owned(), instance.to_owned());
        self.holders.get(&key).is_some_and(|(ports, _)| ports.is_none())
    }

    fn forget(&mut self, now: Instant) {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < SHOWN_AFTER;
        self.holders.retain(|_, (_, at)| is_recent(at));
        self.parked.retain(|_, (_, at)| is_recent(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(holders: &[&str]) -> CustomerGroup {
        let port: BTreeSet<ProtectedPort> = ["tcp/22".parse().unwrap()].into();
        let holders = holders.iter().map(|instance| ((*instance).to_owned(), port.clone())).collect();
        let parked = ParkedGroup { id: "sg-p".into(), number: 1, rules: Vec::new(), holders, other_tags: 3 };
        CustomerGroup {
            id: "sg-1".into(),
            exists: true,
            vpc: "vpc-1".into(),
            rules: Vec::new(),
            parked: vec![parked],
        }
    }

    #[test]
    fn a_read_that_contradicts_a_recent_write_is_older_and_a_later_one_is_believed() {
        let (mut recent, now) = (RecentWrites::default(), postern_runtime::clock::instant());
        let ports: BTreeSet<ProtectedPort> = ["tcp/22".parse().unwrap()].into();
        recent.wrote(&group(&["i-a"]), &GroupStep::Hold(1, "i-b".into(), ports), "sg-p", now);
        assert!(recent.unshown(&group(&["i-a"]), now).is_some());
        assert_eq!(recent.unshown(&group(&["i-a", "i-b"]), now), None);
        recent.wrote(&group(&["i-a", "i-b"]), &GroupStep::ReleaseHolder(1, "i-a".into()), "sg-p", now);
        assert!(recent.has_left("sg-1", "i-a", now) && !recent.has_left("sg-1", "i-b", now));
        assert!(recent.unshown(&group(&["i-a", "i-b"]), now).is_some());
        assert_eq!(recent.unshown(&group(&["i-a", "i-b"]), now + SHOWN_AFTER), None);
        recent.wrote(&group(&["i-b"]), &GroupStep::DeleteParked(1), "sg-p", now);
        assert!(recent.unshown(&group(&["i-b"]), now).is_some());
        assert_eq!(recent.unshown(&CustomerGroup { parked: Vec::new(), ..group(&[]) }, now), None);
    }
}
