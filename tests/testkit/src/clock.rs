//! The clocks of the tests, and the waiting for a condition.

use std::time::{Duration, Instant};

use jiff::Timestamp;
pub use postern_runtime::clock::wall;

/// The time within which a program must do what a test waits for.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// The bounds of a pause between two looks at a condition, which is a tenth of the time that has passed. Most looks ask a program, and
/// take the processor from what is waited for.
const POLL_INTERVALS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));
/// The pause within one process, where a look costs nothing.
const TASK_POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Returns the time on a clock that does not step.
#[allow(clippy::disallowed_methods, reason = "the one place of the tests that reads this clock")]
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Calls `ready` again and again until it returns true, and returns how long that took.
///
/// # Panics
/// `ready` has not returned true within `limit`; `what` names the condition.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Duration {
    let start = monotonic();
    while !ready() {
        assert!(start.elapsed() < limit, "waited {limit:?} for {what} without success");
        std::thread::sleep((start.elapsed() / 10).clamp(POLL_INTERVALS.0, POLL_INTERVALS.1));
    }
    start.elapsed()
}

/// Waits likewise in a task, for at most [`STEP_TIMEOUT`].
///
/// # Panics
/// `ready` has not returned true in time; `what` names the condition.
pub async fn until(what: &str, mut ready: impl FnMut() -> bool) {
    let wait = async {
        while !ready() {
            tokio::time::sleep(TASK_POLL_INTERVAL).await;
        }
    };
    let ended = tokio::time::timeout(STEP_TIMEOUT, wait).await;
    assert!(ended.is_ok(), "waited {STEP_TIMEOUT:?} for {what} without success");
}

/// Awaits a step of a test for at most [`STEP_TIMEOUT`].
///
/// # Panics
/// The step has not ended in time; `what` names it.
pub async fn within<T>(what: &str, step: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(STEP_TIMEOUT, step).await;
    ended.unwrap_or_else(|_| panic!("waited {STEP_TIMEOUT:?} for {what} without success"))
}

/// Sleeps until the wall clock shows `at`; returns at once where it has passed.
pub fn sleep_until(at: Timestamp) {
    if let Ok(left) = Duration::try_from(at.duration_since(wall())) {
        std::thread::sleep(left);
    }
}
