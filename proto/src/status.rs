//! Errors on the wire: the right code, and google.rpc details that name the field and the remedy.

use std::collections::HashMap;
use std::fmt;

use postern_core::Invalid;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The `domain` of every `ErrorInfo` that Postern sends.
pub const DOMAIN: &str = "postern";

/// The most characters of a status' message. It travels in a header, percent-encoded.
pub const MAX_MESSAGE_CHARS: usize = 1_000;

/// Returns the status of malformed input: INVALID_ARGUMENT with a field violation.
pub fn invalid(invalid: &Invalid) -> Status {
    with_field(Code::InvalidArgument, "INVALID_ARGUMENT", invalid)
}

/// Returns the status of an error about one field: the code, a stable reason for machines, the field and the remedy.
pub fn with_field(code: Code, reason: &str, invalid: &Invalid) -> Status {
    let description = bounded(&format_args!("{}; {}", invalid.problem, invalid.remedy));
    let mut details = ErrorDetails::with_bad_request_violation(bounded(&invalid.field), description);
    details.set_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, bounded(invalid), details)
}

/// Returns the status of an error about the whole call: the code, a stable reason for machines, and a message.
pub fn plain(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, bounded(&message.into()), details)
}

/// Returns a text as a status carries it: within [`MAX_MESSAGE_CHARS`].
fn bounded(text: &(impl fmt::Display + ?Sized)) -> String {
    let mut text = text.to_string();
    if let Some((end, _)) = text.char_indices().nth(MAX_MESSAGE_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i10_a_status_is_bounded_in_every_part() {
        let long = "é".repeat(100_000);
        let status = invalid(&Invalid::new(long.clone(), long.clone(), long.clone()));
        assert!(status.message().chars().count() <= MAX_MESSAGE_CHARS + 1);
        assert!(status.details().len() < 4 * 4 * MAX_MESSAGE_CHARS, "{}", status.details().len());
        let status = plain(Code::NotFound, "NOT_FOUND", long);
        assert!(status.message().chars().count() <= MAX_MESSAGE_CHARS + 1);
    }
}
