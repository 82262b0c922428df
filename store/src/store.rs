//! The store as a use case sees it: records by their types, over a backend that knows none.

use std::sync::Arc;

use postern_core::audit::Head;

use crate::backend::{Backend, Range};
use crate::batch::Batch;
use crate::document::Document;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::forgeries::Forgeries;
use crate::headroom::{Headroom, Reserve, RoomStatus};
use crate::record::{Record, Versioned};
use crate::seal::Sealer;
use crate::sealed_batch::{SealedBatch, says_its_versions, seal};
use crate::transaction::Transaction;

/// A store of records and the audit log. Cheap to clone.
///
/// Each kind of record adds its own queries (`records/`), which use the methods here.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    headroom: Option<Arc<Headroom>>,
    sealer: Sealer,
    forgeries: Arc<Forgeries>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Makes the store over a backend whose records have the seals of this sealer.
    pub fn new(backend: Arc<dyn Backend>, sealer: Sealer) -> Self {
        Self { backend, headroom: None, sealer, forgeries: Arc::default() }
    }

    /// Returns the same store with a backend that wraps this one's.
    #[must_use]
    pub fn wrapped(&self, wrap: impl FnOnce(Arc<dyn Backend>) -> Arc<dyn Backend>) -> Self {
        Self { backend: wrap(Arc::clone(&self.backend)), ..self.clone() }
    }

    /// Returns the forged records that reads of this store have met.
    pub fn forgeries(&self) -> &Forgeries {
        &self.forgeries
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
        if says_its_versions(&batch) {
            let SealedBatch { batch, .. } = seal(batch, &self.sealer, &*self.backend).await?;
            return self.backend.apply(batch).await;
        }
        // Boxed for the same reason.
        Box::pin(self.commit_at_last_versions(batch)).await
    }

    /// Commits a batch of which some writes do not say the version after them. It conflicts with the versions that were read for
    /// its seals only if they have moved since: then they are read again.
    async fn commit_at_last_versions(&self, batch: Batch) -> Result<Head, StoreError> {
        let mut before = None;
        loop {
            let SealedBatch { batch: sealed, read } = seal(batch.clone(), &self.sealer, &*self.backend).await?;
            let outcome = self.backend.apply(sealed).await;
            if !matches!(outcome, Err(StoreError::Conflict { .. })) || before.as_ref() == Some(&read) {
                return outcome;
            }
            before = Some(read);
        }
    }

    /// Returns the record with this key.
    ///
    /// # Errors
    /// Here and in every other read: the store failed, or a record in it cannot be read.
    pub async fn get<R: Record>(&self, key: &R::Key) -> Result<Option<Versioned<R>>, StoreError> {
        let found = self.backend.get(R::KIND, &key.to_string()).await?;
        found.map(|document| self.noting(document.versioned(&self.sealer))).transpose()
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
        let found = found.into_inner().map(|document| self.noting(document.versioned(&self.sealer)));
        Ok(Durable::new(found.transpose()?))
    }

    /// Returns every record of a kind, in the order of the keys' text, without the forged ones.
    ///
    /// # Errors
    /// The store failed, a record in it cannot be read, or one is forged of which the list must have every one.
    pub async fn list<R: Record>(&self) -> Result<Vec<Versioned<R>>, StoreError> {
        self.genuine(&self.backend.list(R::KIND).await?, None)
    }

    /// Returns the records in a range of an index, without the forged ones.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn range<R: Record>(&self, range: Range<'_>) -> Result<Vec<Versioned<R>>, StoreError> {
        self.page(range).await.map(|page| page.records)
    }

    /// Returns a page of an index: its records without the forged ones, and where the next page begins.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub(crate) async fn page<R: Record>(&self, range: Range<'_>) -> Result<RecordPage<R>, StoreError> {
        let found = self.backend.range(R::KIND, range).await?;
        let last = found.last().filter(|_| found.len() >= range.limit).map(|document| document.key.to_string());
        Ok(RecordPage { records: self.genuine(&found, Some(range.index))?, last })
    }

    /// Returns the records of the documents, of an index if one is named, and leaves forged ones out if the kind allows it.
    pub(crate) fn genuine<R: Record>(
        &self,
        documents: &[Document],
        index: Option<&str>,
    ) -> Result<Vec<Versioned<R>>, StoreError> {
        let read = |document: &Document| {
            self.noting(match index {
                Some(index) => document.indexed::<R>(&self.sealer, index),
                None => document.versioned::<R>(&self.sealer),
            })
        };
        let found = documents.iter().map(read);
        found.filter(|found| R::KIND.is_whole || !matches!(found, Err(StoreError::Forged { .. }))).collect()
    }

    /// Remembers that a record is forged, for the broker's log.
    fn noting<T>(&self, found: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Forged { what }) = &found {
            self.forgeries.note(what);
        }
        found
    }

    /// Returns up to `limit` lines of the audit log after record `after`, in order.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        self.backend.audit_lines(after, limit).await
    }

    /// Returns the end of the audit log.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audit_head(&self) -> Result<Head, StoreError> {
        self.backend.audit_head().await
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

/// A page of an index.
#[derive(Debug)]
pub(crate) struct RecordPage<R> {
    /// The records.
    pub(crate) records: Vec<Versioned<R>>,
    /// The key of the last document, forged or not; none if the index has no more.
    pub(crate) last: Option<String>,
}
