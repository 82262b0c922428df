//! The store as a use case sees it: records by their types, over a backend that knows none.

use std::sync::Arc;

use postern_core::Policy;
use postern_core::audit::Head;

use crate::backend::{Backend, Range};
use crate::document::Document;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::headroom::{Headroom, Reserve, RoomStatus};
use crate::record::{Found, Record, Versioned};
use crate::transaction::Transaction;

/// A store of records and the audit log. Cheap to clone.
///
/// Each kind of record adds its own queries (`records/`), which use the methods here.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    headroom: Option<Arc<Headroom>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Makes the store over a backend.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self { backend, headroom: None }
    }

    /// Makes the store keep a reserve: see [`Transaction::giving_way`].
    #[must_use]
    pub fn keeping(self, reserve: Reserve) -> Self {
        Self { headroom: Some(Arc::new(Headroom::new(reserve))), ..self }
    }

    /// Returns the room that the store has left beside its reserve; none if it keeps no reserve, or the database does not tell.
    pub async fn room(&self) -> Option<RoomStatus> {
        self.headroom.as_ref()?.status(&*self.backend).await
    }

    /// Returns the backend, for a backend that wraps it.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Applies all of the transaction or none of it, durably, and appends its audit events in order.
    ///
    /// Returns the head of the audit log after this transaction. An empty transaction changes nothing. If every change is
    /// conditional, a transaction that is sent again after an unknown outcome either conflicts or has the same effect.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if an expectation does not hold, [`StoreError::LowOnSpace`] if the transaction gives way and
    /// the store is low on space, [`StoreError::Unaudited`] for changes without an audit event; nothing was changed. Of the other errors only [`StoreError::Unavailable`] leaves the outcome unknown.
    pub async fn commit(&self, transaction: Transaction) -> Result<Head, StoreError> {
        let gives_way = transaction.gives_way;
        let batch = transaction.into_batch()?;
        if let Some(headroom) = self.headroom.as_ref().filter(|_| gives_way) {
            // Boxed, as few transactions give way: every caller's future would hold its size.
            Box::pin(headroom.admit(&*self.backend, batch.size())).await?;
        }
        self.backend.apply(batch).await
    }

    /// Returns the record with this key.
    ///
    /// # Errors
    /// Here and in every other read: the store failed, or a record in it cannot be read.
    pub async fn get<R: Record>(&self, key: &R::Key) -> Result<Option<Versioned<R>>, StoreError> {
        let found = self.backend.get(R::KIND, &key.to_string()).await?;
        found.map(|document| document.versioned()).transpose()
    }

    /// Returns the record with this key, or that there is none, once that is as durable as an answered commit.
    ///
    /// # Errors
    /// It may be lost with the server that has it.
    pub async fn get_durable<R: Record>(
        &self,
        key: &R::Key,
    ) -> Result<Durable<Option<Versioned<R>>>, StoreError> {
        let found = self.backend.get_durable(R::KIND, &key.to_string()).await?;
        Ok(Durable::new(found.into_inner().map(|document| document.versioned()).transpose()?))
    }

    /// Returns every record of a kind, in the order of the keys' text.
    ///
    /// # Errors
    /// The store failed, or a record in it cannot be read.
    pub async fn list<R: Record>(&self) -> Result<Vec<Versioned<R>>, StoreError> {
        versioned(&self.backend.list(R::KIND).await?)
    }

    /// Returns the records in a range of an index.
    ///
    /// # Errors
    /// The store failed, or a record in it cannot be read.
    pub async fn range<R: Record>(&self, range: Range<'_>) -> Result<Vec<Versioned<R>>, StoreError> {
        versioned(&self.backend.range(R::KIND, range).await?)
    }

    /// Returns up to about `limit` records of a kind with their keys, in no order, from the beginning or from the end of another page,
    /// and the beginning of the next page.
    ///
    /// # Errors
    /// The store failed, or a record in it cannot be read.
    pub async fn scan<R: Record>(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<Found<R>>, Option<String>), StoreError> {
        let page = self.backend.scan(R::KIND, from, limit).await?;
        let found = page.documents.into_iter().map(|(key, document)| {
            let Versioned { record, version } = document.versioned()?;
            Ok(Found { key, record, version })
        });
        Ok((found.collect::<Result<_, StoreError>>()?, page.next))
    }

    /// Returns up to `limit` lines of the audit log after record `after`, in order.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        self.backend.audit_lines(after, limit).await
    }

    /// Returns the base of the audit log: the head after which the lines in the store begin; the empty one if none has left it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audit_base(&self) -> Result<Head, StoreError> {
        self.backend.audit_base().await
    }

    /// Returns the end of the audit log.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audit_head(&self) -> Result<Head, StoreError> {
        self.backend.audit_head().await
    }

    /// Waits until everything that the store holds now is as durable as an answered commit: a plain read may show what a server
    /// loses. The log may be another by then than one that was read before.
    ///
    /// # Errors
    /// It may be lost with the server that has it.
    pub async fn confirm(&self) -> Result<(), StoreError> {
        // Which record is read does not matter: each read that waits confirms the head of the log.
        self.backend.get_durable(Policy::KIND, "").await.map(drop)
    }

    /// Waits until this process can no longer trust the store, and returns the reason; usually it waits forever.
    pub async fn lost(&self) -> String {
        self.backend.lost().await
    }

    /// Waits until a task of the store has ended without which it does nothing, and returns its name; usually it waits forever.
    pub async fn ended(&self) -> String {
        self.backend.ended().await
    }
}

impl<T> Durable<T> {
    /// Commits the transaction, and returns the value that holds after it.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn commit(store: &Store, transaction: Transaction, value: T) -> Result<Self, StoreError> {
        store.commit(transaction).await.map(|_| Self::new(value))
    }
}

fn versioned<R: Record>(documents: &[Document]) -> Result<Vec<Versioned<R>>, StoreError> {
    documents.iter().map(|document| document.versioned()).collect()
}
