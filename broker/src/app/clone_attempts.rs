//! The attempts of agents' clones, counted by target, with the waits before their answers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_core::TargetId;

/// The waits before the answers to refused attempts, one after the other; the last for all further ones. Less than the time that
/// an agent waits for its session.
const PAUSES: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];
/// The quiet time after which the waits begin again with the shortest.
const QUIET: Duration = Duration::from_secs(600);

/// The attempts of clones that this broker has refused, by target. Only targets with a record are in it.
#[derive(Debug, Default)]
pub struct CloneAttempts(Mutex<HashMap<TargetId, Attempts>>);

#[derive(Debug, Default)]
struct Attempts {
    /// The number of attempts that no audit record counts yet.
    uncounted: u64,
    /// The number of attempts in a row.
    in_a_row: usize,
    last: Duration,
}

impl CloneAttempts {
    /// Counts an attempt. Returns the time that its answer waits.
    pub(super) fn count(&self, target: &TargetId, now: Duration) -> Duration {
        let mut all = self.lock();
        let attempts = all.entry(target.clone()).or_default();
        if now.saturating_sub(attempts.last) > QUIET {
            attempts.in_a_row = 0;
        }
        attempts.last = now;
        attempts.uncounted += 1;
        attempts.in_a_row += 1;
        PAUSES[attempts.in_a_row.min(PAUSES.len()) - 1]
    }

    /// Takes the attempts that no audit record counts yet.
    pub(super) fn take(&self, target: &TargetId) -> u64 {
        self.lock().get_mut(target).map_or(0, |attempts| std::mem::take(&mut attempts.uncounted))
    }

    /// Gives attempts back that could not be recorded.
    pub(super) fn give_back(&self, target: &TargetId, count: u64) {
        if let Some(attempts) = self.lock().get_mut(target) {
            attempts.uncounted += count;
        }
    }

    /// Forgets the attempts of a target.
    pub(super) fn forget(&self, target: &TargetId) {
        self.lock().remove(target);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, Attempts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i10_each_refusal_waits_longer_up_to_a_bound_and_is_counted_once() {
        let (attempts, target) = (CloneAttempts::default(), "host:vm-1".parse().unwrap());
        let at = Duration::from_secs;
        let waits: Vec<_> =
            (1000..1006).map(|second| attempts.count(&target, at(second)).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 5000, 5000, 5000]);
        assert_eq!((attempts.take(&target), attempts.take(&target)), (6, 0));
        attempts.give_back(&target, 2);
        assert_eq!(attempts.count(&target, at(1006) + QUIET + at(1)), PAUSES[0], "after a quiet time");
        assert_eq!(attempts.take(&target), 3);
        attempts.forget(&target);
        assert_eq!((attempts.take(&target), attempts.lock().len()), (0, 0));
    }
}
