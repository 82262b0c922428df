//! The only module of the command that reads a clock.

use jiff::Timestamp;

/// Returns the time of the wall clock. The command uses it to show how far away a time is, and to explain a lost
/// connection by a certificate that has ended; no request to a broker depends on it.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
