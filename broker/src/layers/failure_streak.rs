//! Failures in a row, for a layer that is tried again without end: the count, the pauses, and the alarm.

use jiff::Timestamp;
use postern_runtime::backoff::{Backoff, Pauses};

/// The number of failures in a row at which the broker raises an alarm.
pub(crate) const ALARM_AFTER: u32 = 3;

/// Failures in a row, of which the last is known.
#[derive(Debug)]
pub(crate) struct FailureStreak<E> {
    /// The last failure.
    pub(crate) error: E,
    /// The number of failures.
    pub(crate) times: u32,
    /// The time of the next attempt.
    pub(crate) retry_at: Timestamp,
    pauses: Pauses,
}

impl<E> FailureStreak<E> {
    /// Adds a failure to those before it. Without any, this one is the first, and the shortest pause follows.
    pub(crate) fn after(before: Option<Self>, error: E, backoff: Backoff, now: Timestamp) -> Self {
        let (times, mut pauses) =
            before.map_or_else(|| (0, backoff.endless()), |before| (before.times, before.pauses));
        let pause = pauses.next().unwrap_or(backoff.longest);
        Self { error, times: times + 1, retry_at: now.checked_add(pause).unwrap_or(now), pauses }
    }

    /// Reports whether this failure is the one that raises the alarm.
    pub(crate) fn is_alarm(&self) -> bool {
        self.times == ALARM_AFTER
    }

    /// Reports whether there were so many failures that an operator should look.
    pub(crate) fn is_stuck(&self) -> bool {
        self.times >= ALARM_AFTER
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_third_failure_in_a_row_is_the_alarm_and_the_pauses_grow() {
        let backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
        let now = Timestamp::UNIX_EPOCH;
        let mut streak = FailureStreak::after(None, "cut", backoff, now);
        assert!((1..=2).contains(&streak.retry_at.as_second()), "{streak:?}");
        let mut alarms = vec![];
        for _ in 0..4 {
            streak = FailureStreak::after(Some(streak), "cut", backoff, now);
            alarms.push((streak.is_alarm(), streak.is_stuck()));
        }
        assert_eq!(alarms, [(false, false), (true, true), (false, true), (false, true)]);
        assert!(streak.retry_at.as_second() >= 16, "{streak:?}");
    }
}
