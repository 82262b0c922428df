//! What can go wrong in a store. Only an unavailable store leaves the outcome of a commit open.

use super::records::RecordKind;

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An expectation of the transaction does not hold; nothing was changed.
    #[error("{what} was changed by someone else in the meantime")]
    Conflict {
        /// The record.
        what: String,
    },
    /// The transaction changes records without an audit event, which is a mistake of the caller; nothing was changed.
    #[error("a transaction changes records without an audit event")]
    Silent,
    /// Another broker works on it by now, or this one has been away for too long; nothing was changed.
    #[error("{what}; nothing was changed")]
    Fenced {
        /// What stands in the way.
        what: String,
    },
    /// There is no room; nothing was changed.
    #[error("the store has no room left; free disk space on the broker's data directory")]
    Full,
    /// The store was written by a newer Postern; nothing was touched.
    #[error(
        "the store has schema {found} and this broker knows {known}; run the newer broker, or restore a backup"
    )]
    NewerSchema {
        /// The store's.
        found: u32,
        /// This broker's.
        known: u32,
    },
    /// The store was moved, or has not arrived; nothing was touched.
    #[error(transparent)]
    Moving(#[from] MigrationError),
    /// A record cannot be read.
    #[error("the store's {what} cannot be read; restore a backup")]
    Corrupt {
        /// What kind of record, and which where that is known.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store cannot be reached or failed; a commit may or may not have happened.
    #[error("the store cannot be reached or failed; ask again, with the same idempotency key")]
    Unavailable {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a store is not opened, or not moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MigrationError {
    /// A store was moved into another.
    #[error("this store moved to {to}; configure that one")]
    Moved {
        /// Where it is, without a password.
        to: String,
    },
    /// A store that was being moved here did not arrive.
    #[error(
        "a migration from {from} into this store was broken off; run it again with --overwrite-incomplete"
    )]
    Incomplete {
        /// Where the store was.
        from: String,
    },
    /// The target has records of its own.
    #[error("there is a store already; migrate into an empty one")]
    NotEmpty,
    /// The source was written to meanwhile.
    #[error(
        "the store was changed while it was read; stop its brokers, and begin again with --overwrite-incomplete"
    )]
    Changed,
    /// What arrived is not what was sent.
    #[error("{arrived} of {sent} {kind} have arrived; begin again with --overwrite-incomplete")]
    Lost {
        /// Of what.
        kind: RecordKind,
        /// So many were there.
        sent: u64,
        /// So many are.
        arrived: u64,
    },
}
