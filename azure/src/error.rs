//! What an error of Azure Resource Manager means for us.

use azure_core::error::ErrorKind;
use postern_cloud::CloudError;

/// An error of one call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// Azure answered with an error.
    #[error("{what}: {code}: {message}")]
    Answered {
        /// What was asked.
        what: String,
        /// The answer's status; 200 where an operation ended with an error.
        status: u16,
        /// Azure's code.
        code: String,
        /// Azure's words.
        message: String,
    },
    /// There was no answer, or none that can be read: the call may have taken effect.
    #[error("{what}: {reason}")]
    Silent {
        /// What was asked.
        what: String,
        /// Why.
        reason: String,
    },
    /// No call was made: there is no token.
    #[error("no token from Microsoft Entra: {reason}")]
    NoToken {
        /// Why.
        reason: String,
    },
}

impl CallError {
    /// Reads the SDK's error. Its own words hold whole answers, and are not used.
    pub(crate) fn of(what: &str, error: &azure_core::Error) -> Self {
        let what = what.to_owned();
        if let Some(answer) = error.as_http_error() {
            let status = u16::from(answer.status());
            let code = answer.error_code().map_or_else(|| format!("status {status}"), str::to_owned);
            let message = answer.error_message().unwrap_or_default().to_owned();
            return Self::Answered { what, status, code, message };
        }
        let reason = in_words(error);
        match error.kind() {
            ErrorKind::Credential => Self::NoToken { reason },
            ErrorKind::HttpResponse { .. }
            | ErrorKind::Io
            | ErrorKind::DataConversion
            | ErrorKind::MockFramework
            | ErrorKind::Other => Self::Silent { what, reason },
        }
    }

    /// Azure's code; empty where there was no answer.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Answered { code, .. } => code,
            Self::Silent { .. } | Self::NoToken { .. } => "",
        }
    }

    /// Whether Azure says that the resource does not exist. A group that is gone took it along; a subscription that is not
    /// found is one that the broker may not see.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Answered { status: 404, code, .. }
        if matches!(
            code.as_str(),
            "ResourceNotFound" | "NotFound" | "ResourceGroupNotFound" | "ParentResourceNotFound"
        ))
    }

    /// Whether the priority or the name is another rule's.
    pub(crate) fn is_conflict(&self) -> bool {
        self.code() == "SecurityRuleConflict"
    }

    /// Whether asking again may help.
    fn is_passing(&self) -> bool {
        const CODES: [&str; 5] = [
            "AnotherOperationInProgress",
            "RetryableError",
            "RetryableErrorDueToAnotherOperation",
            "CanceledAndSupersededDueToAnotherOperation",
            "SecurityRuleConflict",
        ];
        match self {
            Self::Silent { .. } | Self::NoToken { .. } => true,
            Self::Answered { status, code, .. } => {
                *status >= 500
                    || matches!(status, 401 | 408 | 409 | 412 | 429)
                    || CODES.contains(&code.as_str())
                    || code.contains("InternalServerError")
            }
        }
    }
}

/// An error with its causes, one after the other.
pub(crate) fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut words: Vec<String> = causes.map(ToString::to_string).collect();
    words.dedup();
    words.join(": ")
}

impl From<CallError> for CloudError {
    fn from(error: CallError) -> Self {
        if error.is_passing() {
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
        let (what, code, message) = ("PUT a rule".to_owned(), code.to_owned(), "a test".to_owned());
        CallError::Answered { what, status, code, message }
    }

    #[test]
    fn a_hiccup_is_tried_again_and_what_lasts_is_refused_with_the_remedy() {
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
    fn only_the_typed_not_found_is_not_found() {
        assert!(answered(404, "ResourceNotFound").is_not_found());
        assert!(answered(404, "NotFound").is_not_found());
        assert!(!answered(404, "SubscriptionNotFound").is_not_found());
        assert!(!answered(404, "status 404").is_not_found(), "a proxy on the way may say that");
        assert!(!answered(403, "ResourceNotFound").is_not_found());
    }
}
