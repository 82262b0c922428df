//! The seam between the store and a database: documents, indexes and the audit log, without knowledge of any record.
//!
//! Every backend passes the suite in `testing/conformance.rs`. Many tasks may call its methods at once.

use async_trait::async_trait;
use postern_core::audit::Head;

use crate::batch::Batch;
use crate::coordination::Lease;
use crate::document::Document;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::kind::{Kind, LastVersion};
use crate::room::Room;

/// A database for documents and the audit log.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Applies all of the batch or none of it, durably, and appends its audit events in order. Returns the head of the audit
    /// log after it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if an expectation does not hold, [`StoreError::Unaudited`] for writes without an audit event;
    /// nothing was changed. Of the other errors only [`StoreError::Unavailable`] leaves the outcome unknown.
    async fn apply(&self, batch: Batch) -> Result<Head, StoreError>;

    /// Returns the document with this key.
    ///
    /// # Errors
    /// Here and in every other read: the database failed.
    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Document>, StoreError>;

    /// Returns the document with this key, or that there is none, once that is as durable as an answered batch.
    ///
    /// # Errors
    /// It may be lost with the server that has it.
    async fn get_durable(&self, kind: Kind, key: &str) -> Result<Durable<Option<Document>>, StoreError>;

    /// Returns the last version of a document, which may have been deleted.
    async fn last_version(&self, kind: Kind, key: &str) -> Result<LastVersion, StoreError>;

    /// Returns every document of a kind, in the order of the keys' text.
    async fn list(&self, kind: Kind) -> Result<Vec<Document>, StoreError>;

    /// Returns the documents in a range of an index. The next page begins after the key that it names ([`Range::after`], or
    /// [`Range::before`] in descending order), and every page ends: another program may have written keys that are no text.
    async fn range(&self, kind: Kind, range: Range<'_>) -> Result<DocumentPage, StoreError>;

    /// Returns up to about `limit` documents of a kind, in no order, from the beginning or from the end of another
    /// page. Every document that is there from the first page to the last is on one of them.
    async fn scan(&self, kind: Kind, from: Option<&str>, limit: usize) -> Result<DocumentPage, StoreError>;

    /// Returns the number of documents in an index.
    async fn count(&self, kind: Kind, index: &str) -> Result<usize, StoreError>;

    /// Returns the documents that a snapshot asks for, read at one instant, once they are as durable as an answered batch. The
    /// single one may be newer.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if this broker no longer holds the lease.
    async fn snapshot(&self, lease: &Lease, wanted: SnapshotQuery<'_>) -> Result<Snapshot, StoreError>;

    /// Returns up to `limit` lines of the audit log after record `after`, in order; the first ones may have left the store.
    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError>;

    /// Returns the end of the audit log.
    async fn audit_head(&self) -> Result<Head, StoreError>;

    /// Returns the base of the audit log: the head after which the lines in the store begin.
    async fn audit_base(&self) -> Result<Head, StoreError>;

    /// Returns the room that is left; none if the database does not tell.
    async fn room(&self) -> Result<Option<Room>, StoreError> {
        Ok(None)
    }

    /// Waits until this process can no longer trust the database, and returns the reason; usually it waits forever.
    async fn lost(&self) -> String {
        std::future::pending().await
    }

    /// Waits until a task of the backend has ended without which it does nothing, and returns its name; usually it waits
    /// forever.
    async fn ended(&self) -> String {
        std::future::pending().await
    }
}

/// A range of an index, by the text of the keys.
#[derive(Debug, Clone, Copy)]
pub struct Range<'a> {
    /// The index.
    pub index: &'a str,
    /// The order.
    pub order: Order,
    /// Only the documents whose keys are greater than this one; for paging.
    pub after: Option<&'a str>,
    /// Only the documents whose keys are less than this one; for paging.
    pub before: Option<&'a str>,
    /// The most documents to return; one more after keys that are no text.
    pub limit: usize,
}

impl<'a> Range<'a> {
    /// Makes the range of the whole index, in the order of the keys.
    pub fn all(index: &'a str) -> Self {
        Self { index, order: Order::Ascending, after: None, before: None, limit: usize::MAX }
    }

    /// Returns the limit as a database takes it.
    pub(crate) fn limit(&self) -> i64 {
        i64::try_from(self.limit).unwrap_or(i64::MAX)
    }
}

/// A page of documents.
#[derive(Debug, Default)]
pub struct DocumentPage {
    /// The documents, each once.
    pub documents: Vec<Document>,
    /// The beginning of the next page; none after the last one.
    pub next: Option<String>,
}

/// The order of a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the least key.
    Ascending,
    /// From the greatest key.
    Descending,
}

/// A query of documents that are read at one instant.
#[derive(Debug, Clone, Copy)]
pub struct SnapshotQuery<'a> {
    /// The kind of which one index is read.
    pub kind: Kind,
    /// The index, which is read whole.
    pub index: &'a str,
    /// The kind of which every document is read.
    pub whole: Kind,
    /// The kind and the key of a document that is read at the same instant.
    pub beside: (Kind, &'a str),
    /// The kind and the key of the one document that may be newer.
    pub one: (Kind, &'a str),
}

/// Documents that were read at one instant.
#[derive(Debug)]
pub struct Snapshot {
    /// The documents of the index, in the order of their keys.
    pub indexed: Vec<Document>,
    /// The documents of the whole kind, in the order of their keys.
    pub whole: Vec<Document>,
    /// The document that was read at the same instant, if it exists.
    pub beside: Option<Document>,
    /// The single document, if it exists.
    pub one: Option<Document>,
    /// The number of the last audit record at that instant.
    pub seq: u64,
}
