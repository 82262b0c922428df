//! The errors of a store. Only an unavailable store leaves the outcome of a commit open.

use crate::kind::Part;
use crate::room::Medium;

/// An error of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An expectation of the transaction does not hold; nothing was changed.
    #[error("{what} was changed by another caller in the meantime")]
    Conflict {
        /// The record.
        what: String,
    },
    /// The transaction changes records without an audit event, which is a mistake in the broker; nothing was changed.
    #[error("a transaction changes records without an audit event")]
    Unaudited,
    /// Another broker works on the target by now, or this broker lost its membership; nothing was changed.
    #[error("{what}; nothing was changed")]
    Fenced {
        /// The reason.
        what: String,
    },
    /// The store has no room left; nothing was changed.
    #[error("the store has no room left; {}", .0.remedy())]
    Full(
        /// The kind of room that is used up.
        Medium,
    ),
    /// The store keeps what room it has left for changes that close; nothing was changed.
    #[error("the store is low on space: {what}")]
    LowOnSpace {
        /// The room, with the remedy.
        what: String,
    },
    /// The store was written by a newer Postern; nothing was touched.
    #[error(
        "the store has schema {found} and this broker knows {known}; run the newer broker, or restore a backup"
    )]
    NewerSchema {
        /// The schema of the store.
        found: u32,
        /// The newest schema that this broker knows.
        known: u32,
    },
    /// The store was moved away, or its migration was not completed; nothing was touched.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// A record was made or changed by a program that does not have the records key; it counts for nothing.
    #[error(
        "{what} in the store is forged: its seal does not fit this broker's ca/records.key; find out who can write the store"
    )]
    Forged {
        /// The record.
        what: String,
    },
    /// The policies are not those that were kept last: the store has lost one, or has brought one back.
    #[error(
        "the policies in the store are not those that were kept last: {what}; compare the policies and apply them \
         again, or delete what is lost (`postern policy list`, `apply`, `delete`); until then hosts keep their protection"
    )]
    PoliciesLost {
        /// The policy, and the difference.
        what: String,
    },
    /// The store was sealed with another records key; nothing was touched.
    #[error(
        "the store was sealed with another records key: copy ca/records.key in data_dir from a broker that uses this store, \
         with its owner and mode 0600"
    )]
    OtherKey,
    /// The server does not run every command that the store needs; nothing was written.
    #[error("the server does not run every command that the store needs: {what}")]
    Lacking {
        /// The commands, with the remedy.
        what: String,
    },
    /// A record cannot be read.
    #[error("the store's {what} cannot be read; restore a backup")]
    Corrupt {
        /// The kind of the record, and the record itself if it is known.
        what: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store cannot be reached or failed; a commit may or may not have been applied.
    #[error("the store cannot be reached or failed; ask again, with the same idempotency key")]
    Unavailable {
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A reason why a store is not opened, or not moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MigrationError {
    /// A store was moved into another.
    #[error("this store moved to {to}; configure that one")]
    Moved {
        /// The address of the new store, without a password.
        to: String,
    },
    /// A migration into this store was not completed.
    #[error(
        "a migration from {from} into this store was broken off; run it again with --overwrite-incomplete"
    )]
    Incomplete {
        /// The address of the source, without a password.
        from: String,
    },
    /// The target of a migration already has records.
    #[error("there is a store already; migrate into an empty one")]
    NotEmpty,
    /// A broker wrote to the source during the migration.
    #[error(
        "the store was changed while it was read; stop its brokers, and begin again with --overwrite-incomplete"
    )]
    Changed,
    /// The target has fewer or more records than the source.
    #[error("{arrived} of {sent} {part} have arrived; begin again with --overwrite-incomplete")]
    Lost {
        /// The part of the store.
        part: Part,
        /// The number of records in the source.
        sent: u64,
        /// The number of records in the target.
        arrived: u64,
    },
}
