//! The clocks. Only this module reads them; other code gets the time as an argument, or keeps the one module that asks here.
//!
//! - The *boot time* never steps and counts suspend. Deadlines are moments on it.
//! - The *monotonic clock* stands still while the machine is suspended. Its distance to the boot time is the time in suspend.
//! - The *wall clock* may step. Certificates live by it, and people read it.
//! - *Tokio's clock* is for waits within a task: a test can pause it.

use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Returns the time since boot on `CLOCK_BOOTTIME`, which never steps and counts suspend.
pub fn boottime() -> Duration {
    read(ClockId::Boottime)
}

/// Returns the time on `CLOCK_MONOTONIC`, which stands still while the machine is suspended.
pub fn monotonic() -> Duration {
    read(ClockId::Monotonic)
}

/// Returns the time on the wall clock, which may step.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// Returns the time on tokio's clock, for waits.
#[expect(clippy::disallowed_methods, reason = "the one place that reads tokio's clock")]
pub fn instant() -> Instant {
    Instant::now()
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_time_counts_at_least_what_the_monotonic_clock_counts() {
        let monotonic = monotonic();
        let boottime = boottime();
        assert!(boottime >= monotonic, "{boottime:?} {monotonic:?}");
    }
}
