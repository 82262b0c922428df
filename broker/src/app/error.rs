//! The errors of the use cases.

use postern_core::Invalid;
use postern_core::grant::IllegalTransition;
use postern_core::policy::Denial;
use postern_pki::PkiError;

use postern_store::StoreError;

/// The reason why a use case did not do what its caller asked for. It has changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input is malformed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The policies do not allow the request.
    #[error(transparent)]
    Denied(#[from] Denial),
    /// The request would take its principal or a target past a quota.
    #[error(transparent)]
    Quota(#[from] QuotaExceeded),
    /// The caller may not do this.
    #[error("{reason}")]
    Forbidden {
        /// The reason, with the remedy.
        reason: String,
    },
    /// The record does not exist, or the caller may not see it.
    #[error("{what} does not exist, or you may not see it")]
    NotFound {
        /// The record.
        what: String,
    },
    /// The record does not exist, or the caller may not see it; and it is so old that it may have left the store.
    #[error(
        "{what} does not exist, or you may not see it; a grant leaves the store {after} after it closed ([retention] grants), and the \
         audit log keeps its records"
    )]
    NotFoundAnymore {
        /// The record.
        what: String,
        /// The time after which such records leave the store.
        after: String,
    },
    /// The current state of a record or a cloud does not allow it.
    #[error("{reason}")]
    Precondition {
        /// The reason, with the remedy.
        reason: String,
    },
    /// A cloud must be asked, and does not answer.
    #[error("{reason}")]
    Unavailable {
        /// The reason.
        reason: String,
    },
    /// A grant cannot take this step.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// A reserved part of the interface.
    #[error("{what} is not available in this version")]
    Reserved {
        /// The part.
        what: &'static str,
    },
    /// The join token or the certificate request proves no identity.
    #[error("{reason}")]
    Unproven {
        /// The reason, with the remedy.
        reason: &'static str,
    },
    /// The caller's proof was revoked during the call.
    #[error("your certificate or token was revoked; ask an administrator for a new one")]
    Revoked,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Signing failed.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// A quota that a request met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct QuotaExceeded {
    /// A stable word for machines.
    pub reason: &'static str,
    /// The quota and the remedy.
    pub message: String,
}
