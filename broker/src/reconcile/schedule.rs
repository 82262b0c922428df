//! The expiry schedule: one ordered structure for every target, and one timer on its first entry.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use postern_core::TargetId;

/// The time at which each target must be looked at again without a wake-up.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    by_time: BTreeSet<(Timestamp, TargetId)>,
    by_target: HashMap<TargetId, Timestamp>,
}

impl Schedule {
    /// Replaces the target's time; `None` takes it off the schedule.
    pub(super) fn set(&mut self, target: &TargetId, at: Option<Timestamp>) {
        if let Some(old) = self.by_target.remove(target) {
            self.by_time.remove(&(old, target.clone()));
        }
        if let Some(at) = at {
            self.by_target.insert(target.clone(), at);
            self.by_time.insert((at, target.clone()));
        }
    }

    /// Has the target looked at no later than `at`.
    pub(super) fn bring_forward(&mut self, target: &TargetId, at: Timestamp) {
        let earliest = self.by_target.get(target).map_or(at, |set| at.min(*set));
        self.set(target, Some(earliest));
    }

    /// Returns the earliest time on the schedule.
    pub(super) fn first(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes every target whose time has come.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<TargetId> {
        let mut due = Vec::new();
        while self.first().is_some_and(|at| at <= now) {
            if let Some((_, target)) = self.by_time.pop_first() {
                self.by_target.remove(&target);
                due.push(target);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn target(number: u8) -> TargetId {
        format!("host:vm-{number}").parse().unwrap()
    }

    #[test]
    fn a_target_is_due_once_at_its_latest_setting() {
        let (a, b) = (target(1), target(2));
        let mut schedule = Schedule::default();
        schedule.set(&a, Some(at(10)));
        schedule.set(&b, Some(at(20)));
        schedule.set(&a, Some(at(30)));
        assert_eq!(schedule.first(), Some(at(20)));
        assert!(schedule.due(at(19)).is_empty());
        assert_eq!(schedule.due(at(30)), vec![b.clone(), a]);
        schedule.set(&b, Some(at(40)));
        schedule.set(&b, None);
        assert_eq!(schedule.first(), None);
    }

    #[test]
    fn bringing_a_target_forward_never_puts_it_off() {
        let mut schedule = Schedule::default();
        schedule.bring_forward(&target(1), at(20));
        assert_eq!(schedule.first(), Some(at(20)));
        schedule.bring_forward(&target(1), at(30));
        assert_eq!(schedule.first(), Some(at(20)));
        schedule.bring_forward(&target(1), at(10));
        assert_eq!((schedule.due(at(10)).len(), schedule.first()), (1, None));
    }

    #[test]
    fn i2_many_ends_at_one_moment_are_all_due_at_that_moment() {
        let mut schedule = Schedule::default();
        (0..200).for_each(|number| schedule.set(&target(number), Some(at(10))));
        assert!(schedule.due(at(9)).is_empty());
        assert_eq!(schedule.due(at(10)).len(), 200);
        assert!(schedule.due(at(1000)).is_empty());
    }

    proptest! {
        #[test]
        fn i2_no_target_is_lost_whatever_is_set_and_taken(
            acts in prop::collection::vec((0u8..4, prop::option::of(0i64..40), 0i64..40), 0..60),
        ) {
            let mut schedule = Schedule::default();
            let mut model = std::collections::BTreeMap::new();
            for (number, set, now) in acts {
                schedule.set(&target(number), set.map(at));
                match set {
                    Some(time) => model.insert(target(number), at(time)),
                    None => model.remove(&target(number)),
                };
                prop_assert_eq!(schedule.first(), model.values().min().copied());
                let mut expected: Vec<_> =
                    model.iter().filter(|(_, time)| **time <= at(now)).map(|(id, time)| (*time, id.clone())).collect();
                expected.sort();
                let expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
                prop_assert_eq!(schedule.due(at(now)), expected);
                model.retain(|_, time| *time > at(now));
            }
        }
    }
}
