//! Errors with their causes on one line, for the log and for the broker.

use std::error::Error;

use tonic::Status;

/// Returns an error with all its causes on one line.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    with_causes(error.to_string(), error)
}

/// Returns a status with its causes on one line. Its own `Display` would print its metadata as well.
pub(crate) fn status_chain(status: &Status) -> String {
    let message = Some(status.message()).filter(|message| !message.is_empty());
    with_causes(message.unwrap_or(status.code().description()).to_owned(), status)
}

fn with_causes(mut text: String, error: &dyn Error) -> String {
    let mut cause = error.source();
    while let Some(next) = cause {
        let message = next.to_string();
        // Many errors repeat their source.
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        cause = next.source();
    }
    text
}
