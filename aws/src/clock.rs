//! The clock of waits: tokio's, which a test can pause.

use tokio::time::Instant;

/// Returns the time now.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate that reads this clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
