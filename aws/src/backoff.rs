//! How long EC2 is given to show what was changed: it is eventually consistent, and says to look again with growing
//! pauses (EC2 API reference, "Eventual consistency").

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

/// The pauses between looks, some eight seconds in all.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(4))
        .with_max_times(6)
        .with_jitter()
        .build()
}
