//! Growing pauses between attempts.
//!
//! Each pause doubles the one before, up to the longest, and gets up to as much again of jitter, so that callers that failed
//! together do not come back together. Only the polls of an operation have no jitter.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

/// An iterator over pauses.
pub type Pauses = backon::ExponentialBackoff;

/// The bounds of the pauses, before jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Backoff {
    /// Returns pauses without end.
    pub fn endless(self) -> Pauses {
        self.builder().without_max_times().build()
    }

    /// Returns this many pauses.
    pub fn times(self, pauses: usize) -> Pauses {
        self.builder().with_max_times(pauses).build()
    }

    /// Returns pauses without end and without jitter, between the polls of an operation that no other caller waits for.
    pub fn polls(self) -> Pauses {
        self.bounds().without_max_times().build()
    }

    fn builder(self) -> ExponentialBuilder {
        self.bounds().with_jitter()
    }

    fn bounds(self) -> ExponentialBuilder {
        ExponentialBuilder::default().with_min_delay(self.first).with_max_delay(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pauses_grow_within_their_bounds() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let backoff = Backoff { first, longest };
        assert_eq!(backoff.times(3).count(), 3);
        let pauses: Vec<_> = backoff.endless().take(40).collect();
        assert_eq!(pauses.len(), 40);
        assert!(pauses.iter().all(|pause| (first..=2 * longest).contains(pause)), "{pauses:?}");
        assert!(pauses.last().unwrap() >= &longest, "{pauses:?}");
    }

    #[test]
    fn polls_double_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(20), longest: Duration::from_millis(100) };
        let polls: Vec<_> =
            backoff.polls().take(5).map(|pause| (pause.as_secs_f64() * 1e3).round()).collect();
        assert_eq!(polls, [20.0, 40.0, 80.0, 100.0, 100.0]);
    }
}
