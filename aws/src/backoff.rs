//! The pauses between reads while EC2 does not show a change yet: it is eventually consistent, and its API
//! reference says to read again with growing pauses ("Eventual consistency").

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

/// Returns the pauses between reads, some eight seconds in all.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(4))
        .with_max_times(6)
        .with_jitter()
        .build()
}
