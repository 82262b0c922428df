//! Errors of the use cases as gRPC statuses, with the field and the remedy in google.rpc details.

use postern_core::policy::PolicyLimit;
use postern_pki::PkiError;
use postern_proto::status::{invalid, plain, with_field};
use postern_store::StoreError;
use tonic::{Code, Status};

use super::authentication::REVOKED;
use crate::app::Error;
use crate::limits::log_due;

/// Converts an error into its status. Errors of the store and of signing are logged here, as the caller sees little of them.
pub(super) fn to_status(error: Error) -> Status {
    match error {
        Error::Invalid(error) => invalid(&error),
        Error::Denied(denial) => {
            let code =
                if denial.limit == PolicyLimit::Target { Code::NotFound } else { Code::PermissionDenied };
            with_field(code, denial.limit.reason(), &denial.invalid)
        }
        Error::Quota(exceeded) => plain(Code::ResourceExhausted, exceeded.reason, exceeded.message),
        Error::Forbidden { reason } => plain(Code::PermissionDenied, "FORBIDDEN", reason),
        Error::NotFound { .. } | Error::NotFoundAnymore { .. } => {
            plain(Code::NotFound, "NOT_FOUND", error.to_string())
        }
        Error::Precondition { reason } => plain(Code::FailedPrecondition, "PRECONDITION", reason),
        Error::Unavailable { reason } => plain(Code::Unavailable, "CLOUD_UNAVAILABLE", reason),
        Error::Illegal(illegal) => plain(Code::FailedPrecondition, "WRONG_STATE", illegal.to_string()),
        Error::Reserved { .. } => plain(Code::Unimplemented, "RESERVED", error.to_string()),
        Error::Unproven { reason } => plain(Code::Unauthenticated, "NOT_PROVEN", reason),
        Error::Revoked => REVOKED.to_status(),
        Error::Store(error) => store_status(&error),
        Error::Pki(error) => pki_status(&error),
    }
}

fn store_status(error: &StoreError) -> Status {
    let (code, reason) = match error {
        StoreError::Conflict { .. } => (Code::Aborted, "CONFLICT"),
        StoreError::Fenced { .. } => (Code::Unavailable, "BROKER_FENCED"),
        StoreError::Unaudited => (Code::Internal, "UNAUDITED_CHANGE"),
        StoreError::LowOnSpace { .. } => (Code::ResourceExhausted, "STORE_LOW_ON_SPACE"),
        StoreError::Full(_) => (Code::ResourceExhausted, "STORE_FULL"),
        StoreError::NewerSchema { .. } => (Code::FailedPrecondition, "STORE_NEWER"),
        StoreError::Migration(_) => (Code::FailedPrecondition, "STORE_MOVED"),
        StoreError::Forged { .. } => (Code::DataLoss, "STORE_FORGED"),
        StoreError::PoliciesLost { .. } => (Code::FailedPrecondition, "POLICIES_LOST"),
        StoreError::OtherKey => (Code::FailedPrecondition, "STORE_OTHER_KEY"),
        StoreError::Lacking { .. } => (Code::FailedPrecondition, "STORE_LACKS_COMMANDS"),
        StoreError::Corrupt { .. } => (Code::DataLoss, "STORE_CORRUPT"),
        StoreError::Unavailable { .. } => (Code::Unavailable, "STORE_UNAVAILABLE"),
    };
    if code == Code::ResourceExhausted {
        // Its callers may ask without end.
        if let Some(omitted) = log_due("store without room") {
            tracing::error!(
                error = error as &dyn std::error::Error,
                omitted,
                "the store has no room for a call"
            );
        }
    } else if code != Code::Aborted
        && let Some(omitted) = log_due("store failed")
    {
        tracing::error!(error = error as &dyn std::error::Error, omitted, "the store failed during a call");
    }
    plain(code, reason, error.to_string())
}

fn pki_status(error: &PkiError) -> Status {
    if error.is_bad_csr() {
        return plain(Code::InvalidArgument, "BAD_CSR", error.to_string());
    }
    if let Some(omitted) = log_due("signing failed") {
        tracing::error!(error = error as &dyn std::error::Error, omitted, "cannot sign a certificate");
    }
    plain(Code::Internal, "SIGNING_FAILED", "the broker could not sign; see its log")
}
