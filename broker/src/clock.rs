//! The broker's clock, and the only module of the broker that asks for the time.
//!
//! **The problem.** Ends of grants are times of the wall clock, and a step of that clock must not move them. The lives of
//! certificates are times of the wall clock, too, and peers judge them by it.
//!
//! **The words.**
//!
//! - The *broker's clock* ([`Clock`]) gives the time of grants, tokens and audit records. The broker reads the wall clock
//!   once, when it starts, and from then on counts `CLOCK_BOOTTIME`, which never steps and counts suspend.
//! - The *floor* of the broker's clock is the time of the newest audit record. Across a restart the broker's clock never falls
//!   behind it, so that the end of no grant moves because a clock went back (I2).
//! - The *wall clock* ([`wall`]) gives the time of certificates: the broker signs, renews and judges them by it, as TLS and
//!   every peer do.
//!
//! **On failure.** After a start with a clock that was ahead, the records of that start hold the broker's clock ahead. Grants
//! last as long as they were asked for, and their ends are written later by the difference. The broker logs it, and shows it
//! in its status. The authority is not concerned: it lives by the wall clock.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
pub use postern_runtime::clock::{boottime, wall};

/// The broker's clock. Cheap to copy; all copies agree.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    anchor: Timestamp,
    anchored_at: Duration,
    /// The milliseconds by which a test has moved it.
    #[cfg(test)]
    moved: &'static std::sync::atomic::AtomicU64,
}

impl Clock {
    /// Starts from the wall clock, or from `floor` (the newest time in the store) if the wall clock is behind it.
    pub fn start(floor: Timestamp) -> Self {
        Self {
            anchor: wall().max(floor),
            anchored_at: boottime(),
            #[cfg(test)]
            moved: Box::leak(Box::default()),
        }
    }

    /// Moves this clock and its copies forward.
    #[cfg(test)]
    pub(crate) fn advance(&self, span: Duration) {
        let millis = u64::try_from(span.as_millis()).unwrap();
        self.moved.fetch_add(millis, std::sync::atomic::Ordering::Relaxed);
    }

    /// Returns the time now.
    pub fn now(&self) -> Timestamp {
        let elapsed = boottime().saturating_sub(self.anchored_at);
        #[cfg(test)]
        let elapsed = elapsed + Duration::from_millis(self.moved.load(std::sync::atomic::Ordering::Relaxed));
        self.anchor.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    /// Returns the lead of the wall clock over this one. It is below zero if the wall clock was stepped back, or if it was
    /// behind the newest audit record at the start.
    pub fn wall_ahead(&self) -> SignedDuration {
        wall().duration_since(self.now())
    }

    /// Returns the time until `at`; zero if it has passed.
    pub fn until(&self, at: Timestamp) -> Duration {
        at.duration_since(self.now()).try_into().unwrap_or_default()
    }
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
