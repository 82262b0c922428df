//! What can go wrong in a cloud.

use postern_core::TargetId;

/// What can go wrong in a cloud.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    /// The cloud says that the target does not exist (any more). Nothing of it can be open.
    #[error("{target} does not exist in its cloud")]
    NotFound {
        /// The target.
        target: TargetId,
    },
    /// The cloud will not, and asking again will not help: a quota, a missing permission, an unsupported set-up.
    #[error("{reason}")]
    Refused {
        /// Why, with the remedy.
        reason: String,
    },
    /// The cloud could not be reached or failed; asking again may help.
    #[error("the cloud cannot be reached: {reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
}

impl CloudError {
    /// The cloud will not.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }

    /// Asking again may help.
    pub fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable { reason: reason.into() }
    }
}
