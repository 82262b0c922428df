//! The clocks: tokio's for waits, which a test can pause, and the wall clock for the ends that tokens carry.

use std::time::SystemTime;

pub(crate) use postern_runtime::clock::instant;
use time::OffsetDateTime;

/// Returns the time of the wall clock.
pub(crate) fn wall() -> OffsetDateTime {
    SystemTime::from(postern_runtime::clock::wall()).into()
}
