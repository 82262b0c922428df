//! What a use case can answer besides success.

use postern_core::Invalid;
use postern_core::grant::IllegalTransition;
use postern_core::policy::Denial;
use postern_pki::PkiError;

use crate::store::StoreError;

/// Why a call did not do what it asked for. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input cannot be what it should be.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Policy does not allow it.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The caller may not.
    #[error("{reason}")]
    Forbidden {
        /// Why, with the remedy.
        reason: String,
    },
    /// There is no such thing, or the caller may not see it.
    #[error("{what} does not exist, or you may not see it")]
    NotFound {
        /// The thing.
        what: String,
    },
    /// The state of things does not allow it now.
    #[error("{reason}")]
    Precondition {
        /// Why, with the remedy.
        reason: String,
    },
    /// A cloud has to be asked, and does not answer.
    #[error("{reason}")]
    Unavailable {
        /// Why.
        reason: String,
    },
    /// A grant cannot take this step.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// Part of the interface that is reserved.
    #[error("{what} is not available in this version")]
    Reserved {
        /// The part.
        what: &'static str,
    },
    /// The join token or certificate request proves nothing.
    #[error("{reason}")]
    Unproven {
        /// Why, with the remedy.
        reason: &'static str,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Signing failed.
    #[error(transparent)]
    Pki(#[from] PkiError),
}
