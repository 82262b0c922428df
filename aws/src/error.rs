//! The errors of EC2's calls, classified.

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use postern_provider::kit::{CallError, ErrorClass};
use postern_runtime::error_chain::error_chain;

/// Classifies the SDK's error.
pub(crate) fn call_error<E>(action: &'static str, error: &SdkError<E, HttpResponse>) -> CallError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    if let SdkError::ServiceError(answer) = error
        && let Some(code) = answer.err().code()
    {
        return answered(
            action,
            answer.raw().status().as_u16(),
            code,
            answer.err().message().unwrap_or_default(),
        );
    }
    CallError::no_answer(action, error_chain(error))
}

/// Returns the error of an answer with this HTTP status, code and message.
pub(crate) fn answered(action: &str, status: u16, code: &str, message: &str) -> CallError {
    CallError::Answered {
        call: action.to_owned(),
        status,
        code: code.to_owned(),
        message: message.to_owned(),
        class: class(code, status >= 500),
        remedy: remedy(code),
    }
}

/// Returns the class of a code (EC2 API reference, "Error codes"). A resource that EC2 does not find may appear in a moment, and one
/// that it calls a duplicate may not have been shown yet: EC2 is eventually consistent (EC2 API reference, "Eventual consistency").
fn class(code: &str, is_server_error: bool) -> ErrorClass {
    match code {
        _ if is_throttling(code) => ErrorClass::Throttled,
        _ if is_server_error => ErrorClass::Unavailable,
        "Unavailable" | "InternalError" => ErrorClass::Unavailable,
        "InvalidGroup.Duplicate" | "InvalidPermission.Duplicate" => ErrorClass::NotShown,
        _ if code.ends_with(".NotFound") => ErrorClass::NotShown,
        "RequestExpired" | "ExpiredToken" | "ExpiredTokenException" | "AuthFailure" => {
            ErrorClass::Unauthenticated
        }
        "UnauthorizedOperation" => ErrorClass::Denied,
        _ => ErrorClass::Refused,
    }
}

/// Reports whether the code says that the caller exceeded a rate. The status of these codes is 503 (EC2 API
/// reference, "Error codes").
fn is_throttling(code: &str) -> bool {
    matches!(code, "RequestLimitExceeded" | "Throttling" | "ThrottlingException" | "EC2ThrottledException")
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
        "OperationNotPermitted" => Some(
            "EC2 lets only the service that made an interface change its groups; where it is a machine's own interface, look for a policy that denies the change",
        ),
        "DependencyViolation" => Some(
            "an interface has the group, or a rule of another group names it; a lockdown's parked rules (postern-parked-…) count as well",
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
    use postern_provider::CloudError;

    use super::*;

    fn answered(code: &str, status: u16) -> CallError {
        super::answered("AuthorizeSecurityGroupIngress", status, code, "a test")
    }

    #[test]
    fn a_limit_is_refused_with_the_remedy_and_a_hiccup_is_tried_again() {
        let CloudError::Refused { reason } = answered("RulesPerSecurityGroupLimitExceeded", 400).into()
        else {
            panic!("not refused")
        };
        assert!(reason.contains("quota of rules per security group raised"), "{reason}");
        for (code, status) in [
            ("RequestLimitExceeded", 503),
            ("InternalError", 500),
            ("InvalidGroup.NotFound", 400),
            ("InvalidPermission.Duplicate", 400),
            ("AuthFailure", 403),
        ] {
            let error = CloudError::from(answered(code, status));
            assert!(matches!(error, CloudError::Unavailable { .. }), "{code}");
        }
    }

    #[test]
    fn only_a_failure_of_ec2_itself_may_have_taken_effect() {
        assert!(answered("InternalError", 500).may_have_taken_effect());
        assert!(answered("AnyCode", 503).may_have_taken_effect());
        assert!(!answered("RequestLimitExceeded", 503).may_have_taken_effect());
        assert!(!answered("InvalidGroup.NotFound", 400).may_have_taken_effect());
    }
}
