//! The clocks: tokio's for waits, which a test can pause, and the wall clock for the ends that tokens carry.

use time::OffsetDateTime;
use tokio::time::Instant;

/// Returns the time now, for waits.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads this clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns the time of the wall clock.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads this clock")]
pub(crate) fn wall() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}
