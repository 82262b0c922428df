//! The pauses between reads while EC2 does not show a change yet: it is eventually consistent, and its API
//! reference says to read again with growing pauses ("Eventual consistency").

use std::time::Duration;

use postern_runtime::backoff::Backoff;

/// Returns the pauses between reads, some eight seconds in all.
pub(crate) fn backoff() -> impl Iterator<Item = Duration> {
    Backoff { first: Duration::from_millis(250), longest: Duration::from_secs(4) }.times(6)
}
