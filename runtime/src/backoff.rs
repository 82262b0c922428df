//! Growing pauses between attempts.
//!
//! Each pause doubles the one before, up to the longest, and gets up to as much again of jitter, so that callers that failed
//! together do not come back together.

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

    fn builder(self) -> ExponentialBuilder {
        ExponentialBuilder::default().with_min_delay(self.first).with_max_delay(self.longest).with_jitter()
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
}
