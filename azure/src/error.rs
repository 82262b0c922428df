//! The errors of Azure Resource Manager, and their meaning for the broker.

use azure_core::error::ErrorKind;
use postern_provider::CloudError;
use postern_runtime::error_chain::error_chain;

/// An error of one call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// Azure answered with an error.
    #[error("{call}: {code}: {message}")]
    Answered {
        /// The call.
        call: String,
        /// The answer's status; 200 where an operation ended with an error.
        status: u16,
        /// Azure's code.
        code: String,
        /// Azure's message.
        message: String,
    },
    /// There was no answer, or none that can be read: the call may have taken effect.
    #[error("{call}: {reason}")]
    NoAnswer {
        /// The call.
        call: String,
        /// The reason.
        reason: String,
    },
    /// No call was made: there is no token.
    #[error("no token from Microsoft Entra: {reason}")]
    NoToken {
        /// The reason.
        reason: String,
    },
}

impl CallError {
    /// Reads the SDK's error. Its own words hold whole answers, and are not used.
    pub(crate) fn of(call: &str, error: &azure_core::Error) -> Self {
        let call = call.to_owned();
        if let Some(answer) = error.as_http_error() {
            let status = u16::from(answer.status());
            let code = answer.error_code().map_or_else(|| format!("status {status}"), str::to_owned);
            let message = answer.error_message().unwrap_or_default().to_owned();
            return Self::Answered { call, status, code, message };
        }
        let reason = error_chain(error);
        match error.kind() {
            ErrorKind::Credential => Self::NoToken { reason },
            ErrorKind::HttpResponse { .. }
            | ErrorKind::Io
            | ErrorKind::DataConversion
            | ErrorKind::MockFramework
            | ErrorKind::Other => Self::NoAnswer { call, reason },
        }
    }

    /// Azure's code; empty where there was no answer.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Answered { code, .. } => code,
            Self::NoAnswer { .. } | Self::NoToken { .. } => "",
        }
    }

    /// Reports whether Azure says that the resource does not exist. A resource group that is gone took it along; a
    /// subscription that is not found is one that the broker may not see.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Answered { status: 404, code, .. }
        if matches!(
            code.as_str(),
            "ResourceNotFound" | "NotFound" | "ResourceGroupNotFound" | "ParentResourceNotFound"
        ))
    }

    /// Reports whether another principal was faster: another rule has the priority now, the resource has another etag, or
    /// another operation came first. Azure changed nothing, and a fresh read may lead to another write.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self.code(), "SecurityRuleConflict" | "PreconditionFailed") || self.is_other_operation()
    }

    /// Reports whether another operation on the resource is under way.
    fn is_other_operation(&self) -> bool {
        matches!(
            self.code(),
            "AnotherOperationInProgress"
                | "RetryableError"
                | "RetryableErrorDueToAnotherOperation"
                | "CanceledAndSupersededDueToAnotherOperation"
        )
    }

    /// Reports whether a retry may succeed.
    fn is_transient(&self) -> bool {
        match self {
            Self::NoAnswer { .. } | Self::NoToken { .. } => true,
            Self::Answered { status, code, .. } => {
                *status >= 500
                    || matches!(status, 401 | 408 | 409 | 412 | 429)
                    || self.is_conflict()
                    || code.contains("InternalServerError")
            }
        }
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

impl From<CallError> for CloudError {
    fn from(error: CallError) -> Self {
        if error.is_transient() {
            return Self::unavailable(error.to_string());
        }
        match remedy(error.code()) {
            Some(remedy) => Self::refused(format!("{error}; {remedy}")),
            None => Self::refused(error.to_string()),
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
        let (call, code, message) = ("PUT a rule".to_owned(), code.to_owned(), "a test".to_owned());
        CallError::Answered { call, status, code, message }
    }

    #[test]
    fn a_transient_error_is_retried_and_a_lasting_one_is_refused_with_the_remedy() {
        for (status, code) in [
            (409, "AnotherOperationInProgress"),
            (412, "PreconditionFailed"),
            (429, "TooManyRequests"),
            (503, "ServerTimeout"),
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
    fn a_conflict_is_read_again_and_a_call_without_an_answer_is_no_conflict() {
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
        assert!(!CallError::NoAnswer { call: "x".into(), reason: "cut".into() }.is_conflict());
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
