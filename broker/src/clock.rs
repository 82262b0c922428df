//! The only place of the broker that reads a clock.
//!
//! Ends of grants are wall times, so a stepped wall clock must not move them: the broker reads the wall once, when it
//! starts, and from then on counts `CLOCK_BOOTTIME`, which never steps and counts suspend. Across a restart the clock
//! never falls behind the last record that the store holds.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// The broker's clock. Cheap to copy; all copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    anchor: Timestamp,
    anchored_at: Duration,
}

impl Clock {
    /// Starts from the wall, or from `floor` (the newest time in the store) where the wall is behind it.
    pub fn start(floor: Timestamp) -> Self {
        Self { anchor: wall().max(floor), anchored_at: boottime() }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        let elapsed = boottime().saturating_sub(self.anchored_at);
        self.anchor.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    /// How far the wall clock is ahead of this one: it was stepped, or it was behind the store at the start.
    pub fn wall_ahead(&self) -> SignedDuration {
        wall().duration_since(self.now())
    }

    /// How long until `at`; zero where it has passed.
    pub fn until(&self, at: Timestamp) -> Duration {
        at.duration_since(self.now()).try_into().unwrap_or_default()
    }
}

/// A count of time that never steps, for measuring how long something took.
pub fn boottime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[allow(clippy::disallowed_methods)]
fn wall() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_never_falls_behind_the_store() {
        let floor = wall().checked_add(Duration::from_secs(3600)).unwrap();
        let clock = Clock::start(floor);
        assert!(clock.now() >= floor);
        assert!(clock.wall_ahead() < SignedDuration::from_secs(-3500));
    }
}
