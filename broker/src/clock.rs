//! The only place of the broker that reads a clock.
//!
//! Ends of grants are times of the wall clock, and a step of that clock must not move them. So the broker reads the wall clock
//! once, when it starts, and from then on counts `CLOCK_BOOTTIME`, which never steps and counts suspend. Across a restart the
//! broker's clock never falls behind the last record in the store.

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
    /// Starts from the wall clock, or from `floor` (the newest time in the store) if the wall clock is behind it.
    pub fn start(floor: Timestamp) -> Self {
        Self { anchor: wall().max(floor), anchored_at: boottime() }
    }

    /// Returns the time now.
    pub fn now(&self) -> Timestamp {
        let elapsed = boottime().saturating_sub(self.anchored_at);
        self.anchor.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    /// Returns how far the wall clock is ahead of this one: it was stepped, or it was behind the store at the start.
    pub fn wall_ahead(&self) -> SignedDuration {
        wall().duration_since(self.now())
    }

    /// Returns the time until `at`; zero if it has passed.
    pub fn until(&self, at: Timestamp) -> Duration {
        at.duration_since(self.now()).try_into().unwrap_or_default()
    }
}

/// Returns a count of time that never steps, for measuring how long something took.
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
