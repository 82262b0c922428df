//! The only place of the command that reads a clock.

use jiff::Timestamp;

/// Now by the wall. It says how far away a time is, and explains a lost connection by a certificate that has ended; what
/// is asked of a broker never depends on it.
#[allow(clippy::disallowed_methods)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
