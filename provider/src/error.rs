//! The errors of a cloud.

use postern_core::TargetId;

/// The errors of a cloud.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// The cloud says that the target does not exist (any more), so that no port of it can be open.
    #[error("{} does not exist in its cloud", .target.in_words())]
    NotFound {
        /// The target.
        target: TargetId,
    },
    /// The cloud or the provider refuses, and a retry will not help: a quota, a missing permission, an
    /// unsupported set-up.
    #[error("{reason}")]
    Refused {
        /// The reason, with the remedy.
        reason: String,
    },
    /// The cloud could not be reached or failed; a retry may help.
    #[error("{reason}")]
    Unavailable {
        /// The reason: "cannot be reached" only of a cloud that did not answer.
        reason: String,
    },
}

impl CloudError {
    /// Creates a refusal.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }

    /// Creates the refusal to open a window on a target that is not under lockdown.
    pub fn not_locked(target: &TargetId) -> Self {
        Self::refused(format!(
            "{} is not under lockdown; an administrator runs `postern lockdown {target}` first",
            target.in_words()
        ))
    }

    /// Creates an error that a retry may cure.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }
}
