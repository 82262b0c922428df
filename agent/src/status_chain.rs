//! The status of a call with its causes on one line.

use postern_runtime::error_chain::with_causes;
use tonic::Status;

/// Returns a status with its causes on one line. Its own `Display` would print its metadata as well.
pub(crate) fn status_chain(status: &Status) -> String {
    let message = Some(status.message()).filter(|message| !message.is_empty());
    with_causes(message.unwrap_or(status.code().description()).to_owned(), status)
}
