//! The only place of the harness that reads a clock.

use std::time::{Duration, Instant};

use jiff::Timestamp;
pub use postern_runtime::clock::wall;

/// The time on a clock that does not step.
#[allow(clippy::disallowed_methods, reason = "the one place of the harness that reads this clock")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// The bounds of a pause between two looks, which is a tenth of the time that has passed. Most looks ask a program, and take the
/// processor from what is waited for.
const PAUSES: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// Calls `ready` again and again until it returns true, and returns how long that took.
///
/// # Panics
/// It has not said yes within `limit`; `what` says what was waited for.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Duration {
    let start = monotonic();
    while !ready() {
        assert!(start.elapsed() < limit, "waited {limit:?} for {what} without success");
        std::thread::sleep((start.elapsed() / 10).clamp(PAUSES.0, PAUSES.1));
    }
    start.elapsed()
}

/// Sleeps until the wall clock shows `at`; returns at once where it has passed.
pub fn sleep_until(at: Timestamp) {
    if let Ok(left) = Duration::try_from(at.duration_since(wall())) {
        std::thread::sleep(left);
    }
}
