//! The expiry schedule: one ordered structure for every target, and one timer on its first entry.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use postern_core::TargetId;

/// When each target must be looked at again though nothing was heard.
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

    /// The earliest time on the schedule.
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
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_target_is_due_once_at_its_latest_setting() {
        let (a, b): (TargetId, TargetId) = ("host:a".parse().unwrap(), "host:b".parse().unwrap());
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
}
