//! Errors on the wire: the right code, and google.rpc details that name the field and the remedy.

use std::collections::HashMap;

use postern_core::Invalid;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The `domain` of every `ErrorInfo` that Postern sends.
pub const DOMAIN: &str = "postern";

/// Returns the status of malformed input: INVALID_ARGUMENT with a field violation.
pub fn invalid(invalid: &Invalid) -> Status {
    with_field(Code::InvalidArgument, "INVALID_ARGUMENT", invalid)
}

/// Returns the status of an error about one field: the code, a stable reason for machines, the field and the remedy.
pub fn with_field(code: Code, reason: &str, invalid: &Invalid) -> Status {
    let description = format!("{}; {}", invalid.problem, invalid.remedy);
    let mut details = ErrorDetails::with_bad_request_violation(invalid.field.clone(), description);
    details.set_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, invalid.to_string(), details)
}

/// Returns the status of an error about the whole call: the code, a stable reason for machines, and a message.
pub fn plain(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    Status::with_error_details(code, message, details)
}
