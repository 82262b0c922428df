//! The seam to a cloud.

use std::collections::BTreeSet;

use async_trait::async_trait;
use postern_core::TargetId;
use postern_core::plan::CloudWindow;

/// Drives one cloud's own rules. Every call is idempotent: the driver repeats whatever it is not sure of.
///
/// Every implementation passes the conformance suite beside this file.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// Every window of ours that the cloud holds for the target, read from the rules' own names and tags: the store is
    /// not asked (I2).
    ///
    /// # Errors
    /// [`CloudError::NotFound`] only where the cloud says that the target does not exist.
    async fn observe(&self, target: &TargetId) -> Result<BTreeSet<CloudWindow>, CloudError>;

    /// Opens a window; one that is open already stays.
    ///
    /// # Errors
    /// After any error the window may or may not be open.
    async fn open(&self, window: &CloudWindow) -> Result<(), CloudError>;

    /// Closes a window; one that is not there is closed. Windows of other grants stay, also where they share a rule.
    ///
    /// # Errors
    /// After any error the window may or may not be open.
    async fn close(&self, window: &CloudWindow) -> Result<(), CloudError>;
}

/// What can go wrong in a cloud.
#[derive(Debug, Clone, thiserror::Error)]
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
