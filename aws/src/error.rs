//! Errors of EC2, classified: refused, worth a retry, or of unknown effect.

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use postern_provider::CloudError;
use postern_runtime::error_chain::error_chain;

/// An error of one call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// EC2 answered with an error.
    #[error("{action}: {code}: {message}")]
    Answered {
        /// The action.
        action: &'static str,
        /// EC2's code (EC2 API reference, "Error codes").
        code: String,
        /// EC2's message.
        message: String,
        /// A retry may help.
        retryable: bool,
        /// The call certainly had no effect.
        had_no_effect: bool,
    },
    /// No usable answer arrived: the call may have taken effect.
    #[error("{action}: {reason}")]
    NoAnswer {
        /// The action.
        action: &'static str,
        /// Why.
        reason: String,
    },
}

impl CallError {
    /// Classifies the SDK's error.
    pub(crate) fn of<E, R>(action: &'static str, error: SdkError<E, R>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        R: std::fmt::Debug + AnswerStatus + 'static,
    {
        if let SdkError::ServiceError(answer) = &error
            && let Some(code) = answer.err().code()
        {
            let message = answer.err().message().unwrap_or_default().to_owned();
            let broken = answer.raw().is_server_error();
            let had_no_effect = !broken || is_throttling(code);
            return Self::Answered {
                action,
                code: code.to_owned(),
                message,
                retryable: broken || is_transient(code),
                had_no_effect,
            };
        }
        Self::NoAnswer { action, reason: error_chain(&error) }
    }

    /// Reports whether the call may have taken effect despite the error.
    pub(crate) fn may_have_taken_effect(&self) -> bool {
        !matches!(self, Self::Answered { had_no_effect: true, .. })
    }

    /// EC2's code; empty if no answer arrived.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Answered { code, .. } => code,
            Self::NoAnswer { .. } => "",
        }
    }
}

/// An answer with an HTTP status.
pub(crate) trait AnswerStatus {
    /// Reports whether the status is 5xx.
    fn is_server_error(&self) -> bool;
}

impl AnswerStatus for aws_smithy_runtime_api::client::orchestrator::HttpResponse {
    fn is_server_error(&self) -> bool {
        self.status().is_server_error()
    }
}

/// Reports whether the code says that the caller exceeded a rate. The status of these codes is 503 (EC2 API
/// reference, "Error codes").
fn is_throttling(code: &str) -> bool {
    matches!(code, "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "EC2ThrottledException")
}

/// Reports whether a retry may help after this code of a 4xx answer. A resource that EC2 does not find may
/// appear in a moment, and one that it calls a duplicate may not have been shown yet: EC2 is eventually
/// consistent (EC2 API reference, "Eventual consistency").
fn is_transient(code: &str) -> bool {
    const CODES: [&str; 8] = [
        "InvalidGroup.Duplicate",
        "InvalidPermission.Duplicate",
        "RequestExpired",
        "ExpiredToken",
        "ExpiredTokenException",
        "AuthFailure",
        "Unavailable",
        "InternalError",
    ];
    CODES.contains(&code) || is_throttling(code) || code.ends_with(".NotFound")
}

impl From<CallError> for CloudError {
    fn from(error: CallError) -> Self {
        let reason =
            remedy(error.code()).map_or_else(|| error.to_string(), |remedy| format!("{error}; {remedy}"));
        match error {
            CallError::Answered { retryable: true, .. } | CallError::NoAnswer { .. } => {
                Self::Unavailable { reason }
            }
            CallError::Answered { .. } => Self::Refused { reason },
        }
    }
}

fn remedy(code: &str) -> Option<&'static str> {
    match code {
        "UnauthorizedOperation" => Some(
            "compare the role's permissions with packaging/aws/policy.json, and the tags that it asks for",
        ),
        "RulesPerSecurityGroupLimitExceeded" => {
            Some("close windows that are not needed, or have the quota of rules per security group raised")
        }
        "SecurityGroupsPerInterfaceLimitExceeded" => Some(
            "detach a group that is not needed, or have the quota of security groups per network interface raised (16 at most)",
        ),
        "InvalidGroup.Duplicate" => Some(
            "EC2 may not show a group of Postern's yet; if this lasts, another Postern of the account has a group of this name, or the tags of the group were removed: delete it",
        ),
        "SecurityGroupLimitExceeded" => Some("have the quota of security groups per Region raised"),
        "TagLimitExceeded" => Some("too many grants share one source and port: wait until one of them ends"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: &str, retryable: bool) -> CloudError {
        let (action, code) = ("AuthorizeSecurityGroupIngress", code.to_owned());
        CallError::Answered { action, code, message: "a test".into(), retryable, had_no_effect: true }.into()
    }

    #[test]
    fn a_limit_is_refused_with_the_remedy_and_a_hiccup_is_tried_again() {
        let CloudError::Refused { reason } = answered("RulesPerSecurityGroupLimitExceeded", false) else {
            panic!("not refused")
        };
        assert!(reason.contains("quota of rules per security group raised"), "{reason}");
        assert!(matches!(answered("RequestLimitExceeded", true), CloudError::Unavailable { .. }));
        let no_answer =
            CallError::NoAnswer { action: "RevokeSecurityGroupIngress", reason: "a timeout".into() };
        assert!(matches!(no_answer.into(), CloudError::Unavailable { .. }));
    }
}
