//! The errors of Azure Resource Manager, classified.

use azure_core::error::ErrorKind;
use postern_provider::CloudError;
use postern_provider::kit::{CallError, ErrorClass};
use postern_runtime::error_chain::error_chain;

/// Classifies the SDK's error. Its own words hold whole answers, and are not used.
pub(crate) fn call_error(call: &str, error: &azure_core::Error) -> CallError {
    if let Some(answer) = error.as_http_error() {
        let status = u16::from(answer.status());
        let code = answer.error_code().map_or_else(|| format!("status {status}"), str::to_owned);
        let message = answer.error_message().unwrap_or_default().to_owned();
        return answered(call, status, code, message);
    }
    let reason = error_chain(error);
    match error.kind() {
        ErrorKind::Credential => {
            CallError::NotSent { reason: format!("no token from Microsoft Entra: {reason}") }
        }
        ErrorKind::Io => CallError::no_answer(call, format!("Azure cannot be reached: {reason}")),
        ErrorKind::HttpResponse { .. }
        | ErrorKind::DataConversion
        | ErrorKind::MockFramework
        | ErrorKind::Other => CallError::no_answer(call, reason),
    }
}

/// Creates the error of an answer. The status is 200 where an operation ended with an error.
pub(crate) fn answered(call: &str, status: u16, code: String, message: String) -> CallError {
    let (class, remedy) = (class(status, &code), remedy(&code));
    CallError::Answered { call: call.to_owned(), status, code, message, class, remedy }
}

/// Returns the class of an answer.
///
/// Only the typed not-found means that a resource does not exist. A resource group that is gone took it along; a subscription that
/// is not found is one that the broker may not see. A conflict is another rule that has the priority now, another etag of the
/// resource, or another operation that came first.
fn class(status: u16, code: &str) -> ErrorClass {
    match (status, code) {
        (404, "ResourceNotFound" | "NotFound" | "ResourceGroupNotFound" | "ParentResourceNotFound") => {
            ErrorClass::NotFound
        }
        (
            _,
            "SecurityRuleConflict"
            | "PreconditionFailed"
            | "AnotherOperationInProgress"
            | "RetryableError"
            | "RetryableErrorDueToAnotherOperation"
            | "CanceledAndSupersededDueToAnotherOperation",
        ) => ErrorClass::Conflict,
        (401, _) => ErrorClass::Unauthenticated,
        (429, _) => ErrorClass::Throttled,
        (408 | 409 | 412 | 500.., _) => ErrorClass::Unavailable,
        (_, code) if code.contains("InternalServerError") => ErrorClass::Unavailable,
        // An operation that ended so, without a code of its own.
        (200, "Failed" | "Canceled") => ErrorClass::Unavailable,
        // Another resource is still being written, as the message says which.
        (_, "ReferencedResourceNotProvisioned" | "OperationNotAllowedDueToProvisioningState") => {
            ErrorClass::Unavailable
        }
        (403, _) => ErrorClass::Denied,
        (_, _) => ErrorClass::Refused,
    }
}

/// The reason that a write was not made.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// A call failed.
    Call(CallError),
    /// The state of the machine or of a group does not allow the write.
    Refused(CloudError),
}

impl WriteError {
    /// See [`CallError::is_conflict`].
    pub(crate) fn is_conflict(&self) -> bool {
        match self {
            Self::Call(error) => error.is_conflict(),
            Self::Refused(_) => false,
        }
    }
}

impl From<CallError> for WriteError {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

impl From<CloudError> for WriteError {
    fn from(error: CloudError) -> Self {
        Self::Refused(error)
    }
}

impl From<WriteError> for CloudError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Call(error) => error.into(),
            WriteError::Refused(error) => error,
        }
    }
}

fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "AuthorizationFailed" | "LinkedAuthorizationFailed" => {
            "give the broker's identity the role in packaging/azure/role.json on the subscription"
        }
        "RequestDisallowedByPolicy" => {
            "a policy of Azure forbids the rule: exempt the rules that begin with postern-"
        }
        "ScopeLocked" => {
            "a lock forbids changes: take the lock off the resource, or move it to what Postern does not change"
        }
        "SubscriptionNotFound" => {
            "give the broker's identity a role on the subscription, or take it out of azure.subscriptions"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, code: &str) -> CallError {
        super::answered("PUT a rule", status, code.to_owned(), "a test".to_owned())
    }

    #[test]
    fn a_transient_error_is_retried_and_a_lasting_one_is_refused_with_the_remedy() {
        for (status, code) in [
            (409, "AnotherOperationInProgress"),
            (412, "PreconditionFailed"),
            (429, "TooManyRequests"),
            (503, "ServerTimeout"),
            (400, "ReferencedResourceNotProvisioned"),
            (200, "Failed"),
            (400, "SecurityRuleConflict"),
        ] {
            assert!(
                matches!(CloudError::from(answered(status, code)), CloudError::Unavailable { .. }),
                "{code}"
            );
        }
        let CloudError::Refused { reason } = answered(403, "AuthorizationFailed").into() else {
            panic!("not refused")
        };
        assert!(reason.contains("role.json"), "{reason}");
        let missing = answered(400, "InvalidParameter");
        assert!(matches!(CloudError::from(missing), CloudError::Refused { .. }));
    }

    #[test]
    fn a_conflict_is_read_again_and_a_rate_is_no_conflict() {
        for (status, code) in [
            (400, "SecurityRuleConflict"),
            (412, "PreconditionFailed"),
            (409, "AnotherOperationInProgress"),
            (429, "RetryableErrorDueToAnotherOperation"),
            (200, "CanceledAndSupersededDueToAnotherOperation"),
        ] {
            assert!(answered(status, code).is_conflict(), "{code}");
        }
        assert!(!answered(429, "TooManyRequests").is_conflict());
        assert!(!answered(403, "AuthorizationFailed").is_conflict());
    }

    #[test]
    fn only_the_typed_not_found_is_not_found() {
        assert!(answered(404, "ResourceNotFound").is_not_found());
        assert!(answered(404, "NotFound").is_not_found());
        assert!(!answered(404, "SubscriptionNotFound").is_not_found());
        assert!(!answered(404, "status 404").is_not_found(), "a proxy on the way may say that");
        assert!(!answered(403, "ResourceNotFound").is_not_found());
    }
}
