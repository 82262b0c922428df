//! The outcome of a lockdown or a release on one target.

use postern_core::TargetId;
use postern_provider::{CloudError, Concern, Consent, LockdownReport};

use postern_store::StoreError;

/// The outcome of one target.
#[derive(Debug)]
pub struct TargetOutcome {
    /// The target.
    pub target: TargetId,
    /// The changes that were made, or, if it is not done, those that would be made.
    pub report: LockdownReport,
    /// The concerns that kept it from being done.
    pub unmet: Vec<Concern>,
    /// The concerns that the caller accepts.
    pub consent: Consent,
    /// Reports that the target is now as the caller asked.
    pub done: bool,
    /// The reason why it is not, or another failure.
    pub error: Option<TargetError>,
}

/// The failure of one target; the others go on.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// The current state does not allow it. Nothing was touched.
    #[error("{reason}")]
    Precondition {
        /// The reason, with the remedy.
        reason: String,
    },
    /// The cloud refused, or failed.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The store failed: before the cloud was touched, or, if the target is done, after it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
