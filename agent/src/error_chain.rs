//! Errors on one line, with their causes: for the log, and for the broker.

use std::error::Error;

use tonic::Status;

/// An error with all its causes.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    with_causes(error.to_string(), error)
}

/// A status in words. Its own Display would print its metadata too.
pub(crate) fn status_chain(status: &Status) -> String {
    let words = Some(status.message()).filter(|message| !message.is_empty());
    with_causes(words.unwrap_or(status.code().description()).to_owned(), status)
}

fn with_causes(mut text: String, error: &dyn Error) -> String {
    let mut cause = error.source();
    while let Some(next) = cause {
        let words = next.to_string();
        // Many of them repeat their source.
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = next.source();
    }
    text
}
