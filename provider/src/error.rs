//! The errors of a cloud.

use postern_core::TargetId;

/// The errors of a cloud.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// The cloud says that the target does not exist (any more), so that no port of it can be open.
    #[error("{target} does not exist in its cloud")]
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
    #[error("the cloud cannot be reached: {reason}")]
    Unavailable {
        /// The reason.
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
            "{target} is not under lockdown; an administrator runs `postern lockdown {target}` first"
        ))
    }

    /// Creates an error that a retry may cure.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }
}
