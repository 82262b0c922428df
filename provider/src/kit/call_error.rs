//! The errors of single calls to a cloud, and their meaning for the broker.

use crate::CloudError;

/// An error of one call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The cloud answered with an error.
    #[error("{code}: {message} ({call})")]
    Answered {
        /// The call.
        call: String,
        /// The answer's HTTP status; 200 where an operation ended with an error later.
        status: u16,
        /// The cloud's code.
        code: String,
        /// The cloud's message.
        message: String,
        /// The class of the code.
        class: ErrorClass,
        /// The remedy, if the provider knows one.
        remedy: Option<&'static str>,
    },
    /// No usable answer arrived: the call may have taken effect.
    #[error("{reason} ({call})")]
    NoAnswer {
        /// The call.
        call: String,
        /// The reason.
        reason: String,
    },
    /// No call was made, for instance because there is no token for it.
    #[error("{reason}")]
    NotSent {
        /// The reason.
        reason: String,
    },
}

/// The class of an answer that is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The caller exceeded a rate. Nothing was changed.
    Throttled,
    /// The cloud does not accept the credentials, which may be too old. Nothing was changed.
    Unauthenticated,
    /// The caller may not do it.
    Denied,
    /// The cloud says that the resource does not exist.
    NotFound,
    /// The cloud does not show a resource that may have been made, or shows one that may have been deleted, a moment ago: its reads
    /// lag behind its writes. Nothing was changed.
    NotShown,
    /// Another principal was faster. Nothing was changed, and a fresh read may lead to another call.
    Conflict,
    /// The cloud failed: the call may have taken effect.
    Unavailable,
    /// Any other error: the same call would fail again.
    Refused,
}

impl ErrorClass {
    /// Reports whether a retry may succeed.
    fn is_retryable(self) -> bool {
        match self {
            Self::Throttled | Self::Unauthenticated | Self::NotShown | Self::Conflict | Self::Unavailable => {
                true
            }
            Self::Denied | Self::NotFound | Self::Refused => false,
        }
    }
}

impl CallError {
    /// Creates the error of a call without a usable answer.
    pub fn no_answer(call: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::NoAnswer { call: call.into(), reason: reason.into() }
    }

    /// Returns the cloud's code; empty if no answer arrived.
    pub fn code(&self) -> &str {
        match self {
            Self::Answered { code, .. } => code,
            Self::NoAnswer { .. } | Self::NotSent { .. } => "",
        }
    }

    /// Returns the class of the answer, if one arrived.
    pub fn class(&self) -> Option<ErrorClass> {
        match self {
            Self::Answered { class, .. } => Some(*class),
            Self::NoAnswer { .. } | Self::NotSent { .. } => None,
        }
    }

    /// Reports whether the cloud says that the resource does not exist.
    pub fn is_not_found(&self) -> bool {
        self.class() == Some(ErrorClass::NotFound)
    }

    /// Reports whether another principal was faster, so that a fresh read may lead to another call.
    pub fn is_conflict(&self) -> bool {
        self.class() == Some(ErrorClass::Conflict)
    }

    /// Reports whether the call may have taken effect despite the error.
    pub fn may_have_taken_effect(&self) -> bool {
        match self {
            Self::Answered { class, .. } => *class == ErrorClass::Unavailable,
            Self::NoAnswer { .. } => true,
            Self::NotSent { .. } => false,
        }
    }

    /// Replaces the remedy if the answer has this code.
    #[must_use]
    pub fn with_remedy(mut self, expected: &str, better: &'static str) -> Self {
        if let Self::Answered { code, remedy, .. } = &mut self
            && code == expected
        {
            *remedy = Some(better);
        }
        self
    }

    /// Reports whether a retry may succeed.
    fn is_retryable(&self) -> bool {
        self.class().is_none_or(ErrorClass::is_retryable)
    }
}

impl From<CallError> for CloudError {
    fn from(error: CallError) -> Self {
        let reason = match &error {
            CallError::Answered { remedy: Some(remedy), .. } => format!("{error}; {remedy}"),
            CallError::Answered { .. } | CallError::NoAnswer { .. } | CallError::NotSent { .. } => {
                error.to_string()
            }
        };
        if error.is_retryable() { Self::unavailable(reason) } else { Self::refused(reason) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(class: ErrorClass) -> CallError {
        CallError::Answered {
            call: "PUT rule".into(),
            status: 400,
            code: "Odd".into(),
            message: "a test".into(),
            class,
            remedy: Some("ask for more"),
        }
    }

    #[test]
    fn a_lasting_error_is_refused_with_its_remedy_and_a_passing_one_is_unavailable() {
        for class in [ErrorClass::Denied, ErrorClass::NotFound, ErrorClass::Refused] {
            let refused = CloudError::refused("Odd: a test (PUT rule); ask for more");
            assert_eq!(CloudError::from(answered(class)), refused, "{class:?}");
        }
        for class in [
            ErrorClass::Throttled,
            ErrorClass::Unauthenticated,
            ErrorClass::NotShown,
            ErrorClass::Conflict,
            ErrorClass::Unavailable,
        ] {
            let error = CloudError::from(answered(class));
            assert!(matches!(error, CloudError::Unavailable { .. }), "{class:?}");
        }
        let cut = CallError::no_answer("PUT rule", "the connection was cut");
        assert_eq!(CloudError::from(cut), CloudError::unavailable("the connection was cut (PUT rule)"));
        let unsent = CallError::NotSent { reason: "no token".into() };
        assert_eq!(CloudError::from(unsent), CloudError::unavailable("no token"));
    }

    #[test]
    fn a_call_without_an_answer_may_have_taken_effect_and_is_no_conflict() {
        let cut = CallError::no_answer("PUT rule", "cut");
        assert!(cut.may_have_taken_effect() && !cut.is_conflict() && !cut.is_not_found());
        assert!(answered(ErrorClass::Unavailable).may_have_taken_effect());
        assert!(!answered(ErrorClass::Throttled).may_have_taken_effect());
        assert!(!CallError::NotSent { reason: String::new() }.may_have_taken_effect());
        assert!(
            answered(ErrorClass::Conflict).is_conflict() && answered(ErrorClass::NotFound).is_not_found()
        );
    }
}
