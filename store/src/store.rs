//! The store as a use case sees it: records by their types, over a backend that knows none.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use postern_core::audit::Head;
use postern_core::{Name, Policy};

use crate::backend::{Backend, DocumentPage, Range};
use crate::batch::{Batch, Expect};
use crate::body::corrupt;
use crate::document::Document;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::forgeries::Forgeries;
use crate::headroom::{Headroom, Reserve, RoomStatus};
use crate::kind::LastVersion;
use crate::record::{ForgedRecord, Found, FoundPage, Record, RecordPage, Versioned};
use crate::records::manifest::{
    ComparedPolicies, KeptPolicies, MAX_FOLLOWED, PolicyManifest, PolicyMark, SeenPolicies, TheManifest,
};
use crate::seal::Sealer;
use crate::sealed_batch::{SealedBatch, says_its_versions, seal, seal_as_said};
use crate::transaction::Transaction;

/// The most reads of the policies that others change meanwhile.
const MANIFEST_READS: usize = 50;

/// A store of records and the audit log. Cheap to clone.
///
/// Each kind of record adds its own queries (`records/`), which use the methods here.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    headroom: Option<Arc<Headroom>>,
    sealer: Sealer,
    forgeries: Arc<Forgeries>,
    /// The highest generation of policies that an agent has followed.
    followed: Arc<AtomicU64>,
    /// The newest policies that this broker has seen.
    seen: Arc<RwLock<Arc<SeenPolicies>>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    /// Makes the store over a backend whose records have the seals of this sealer.
    pub fn new(backend: Arc<dyn Backend>, sealer: Sealer) -> Self {
        Self {
            backend,
            headroom: None,
            sealer,
            forgeries: Arc::default(),
            followed: Arc::default(),
            seen: Arc::default(),
        }
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
        let mut batch = transaction.into_batch()?;
        if let Some(headroom) = self.headroom.as_ref().filter(|_| gives_way) {
            // Boxed, as few transactions give way: every caller's future would hold its size.
            Box::pin(headroom.admit(&*self.backend, batch.size())).await?;
        }
        if says_its_versions(&batch) {
            seal_as_said(&mut batch, &self.sealer);
            return self.backend.apply(batch).await;
        }
        // Boxed for the same reason.
        Box::pin(self.commit_at_last_versions(batch)).await
    }

    /// Commits a batch of which some writes do not say the version after them, or that changes policies. It conflicts with what was
    /// read for it only if that has moved since: then it is read again.
    async fn commit_at_last_versions(&self, batch: Batch) -> Result<Head, StoreError> {
        let mut before = None;
        loop {
            let (sealed, read) =
                self.with_manifest(seal(batch.clone(), &self.sealer, &*self.backend).await?).await?;
            let outcome = self.backend.apply(sealed).await;
            if !matches!(outcome, Err(StoreError::Conflict { .. })) || before.as_ref() == Some(&read) {
                return outcome;
            }
            before = Some(read);
        }
    }

    /// Adds the manifest to a batch that changes policies. Returns the batch with the versions that were read for it.
    async fn with_manifest(&self, sealed: SealedBatch) -> Result<(Batch, Vec<LastVersion>), StoreError> {
        let SealedBatch { mut batch, mut read, policies } = sealed;
        if policies.is_empty() {
            return Ok((batch, read));
        }
        let last = self.backend.last_version(PolicyManifest::KIND, &TheManifest.to_string()).await?;
        let mut manifest = self.manifest_to_change().await?;
        let expect = if last.is_there { Expect::Version(last.version) } else { Expect::Absent };
        read.push(last);
        for (name, mark) in policies {
            let parsed: Name = name.parse().map_err(|source| corrupt("policy", source))?;
            if mark.is_none() && manifest.policies.contains_key(&parsed) {
                // A policy that the store has lost is deleted in the manifest alone.
                let there = self.backend.last_version(Policy::KIND, &name).await?;
                read.push(there);
                batch.writes.retain(|write| {
                    there.is_there || write.kind != Policy::KIND || write.key != name || write.put.is_some()
                });
            }
            match mark {
                Some(mark) => drop(manifest.policies.insert(parsed, mark)),
                None => drop(manifest.policies.remove(&parsed)),
            }
        }
        let passed = self.followed.load(Ordering::Relaxed).max(self.seen_generation());
        manifest.generation = manifest.generation.max(passed).saturating_add(1);
        let write = Transaction::default().put(&TheManifest, manifest, expect).into_batch()?;
        batch.writes.extend(seal(write, &self.sealer, &*self.backend).await?.batch.writes);
        Ok((batch, read))
    }

    /// Returns the manifest from which a change of a policy goes on: that of the store, unless it is forged, lost or older than the one
    /// that this broker has seen.
    async fn manifest_to_change(&self) -> Result<PolicyManifest, StoreError> {
        let seen = self.seen();
        let stored = self.genuine::<PolicyManifest>(&TheManifest).await?.map(|stored| stored.record);
        let is_current = stored.as_ref().is_some_and(|stored| seen.check(stored).is_ok());
        let mut manifest = match (stored, seen.manifest()) {
            (Some(stored), _) if is_current => stored,
            (_, Some(seen)) => seen,
            (Some(stored), None) => stored,
            // The policies of a store that has no manifest yet.
            (None, None) => {
                let policies = self.marks_of_genuine().await?;
                return Ok(PolicyManifest { generation: 0, policies });
            }
        };
        if manifest.lacks_digests() {
            manifest.complete(&self.marks_of_genuine().await?);
        }
        Ok(manifest)
    }

    async fn marks_of_genuine(&self) -> Result<BTreeMap<Name, PolicyMark>, StoreError> {
        let found = self.backend.list(Policy::KIND).await?;
        let genuine = found.iter().filter_map(|it| Some((it, it.versioned::<Policy>(&self.sealer).ok()?)));
        Ok(marks_of(genuine))
    }

    /// Returns every policy with the generation of their manifest.
    ///
    /// # Errors
    /// The store failed, or [`StoreError::Forged`] or [`StoreError::PoliciesLost`] if they are not those that were kept last.
    pub(crate) async fn kept_policies(&self) -> Result<KeptPolicies, StoreError> {
        // Before the read: what is read after it is no older, unless the store went back.
        let seen = self.seen();
        let mut manifest = self.stored_manifest().await?;
        for _ in 0..MANIFEST_READS {
            let documents = self.backend.list(Policy::KIND).await?;
            let fitting = self.fitting(&documents, manifest.clone(), &seen);
            if fitting.is_ok() {
                return fitting;
            }
            // The policies that were read between two reads of the same manifest are those of that manifest.
            let later = self.stored_manifest().await?;
            if later == manifest {
                return fitting;
            }
            manifest = later;
        }
        let reason = "the policies have changed during each of many reads";
        Err(StoreError::Unavailable { source: reason.into() })
    }

    /// Returns the manifest in the store.
    async fn stored_manifest(&self) -> Result<Option<PolicyManifest>, StoreError> {
        Ok(self.get::<PolicyManifest>(&TheManifest).await?.map(|manifest| manifest.record))
    }

    /// Checks policies and their manifest, which were read at one instant. `seen` is [`Self::seen`] before that read. Without a manifest
    /// the policies are those that are there, of a store in which no policy was written since there are manifests.
    ///
    /// # Errors
    /// They are not those that were kept last, or one is forged.
    pub(crate) fn fitting(
        &self,
        documents: &[Document],
        manifest: Option<PolicyManifest>,
        seen: &SeenPolicies,
    ) -> Result<KeptPolicies, StoreError> {
        let Sorted { records, .. } = self.sorted::<Policy>(documents, None)?;
        let there = marks_of(records.iter().map(|(document, policy)| (*document, policy)));
        let generation = match manifest {
            Some(manifest) => {
                manifest.check(&there)?;
                seen.check(&manifest)?;
                manifest.generation
            }
            None => {
                seen.check(&PolicyManifest { generation: 0, policies: there })?;
                0
            }
        };
        let policies = records.into_iter().map(|(_, policy)| policy).collect();
        Ok(KeptPolicies { generation, policies })
    }

    /// Returns the genuine policies that are there, for an administrator who compares them, with what is wrong with them as a whole.
    ///
    /// # Errors
    /// The store failed.
    pub async fn policies_to_compare(&self) -> Result<ComparedPolicies, StoreError> {
        let trouble = match Box::pin(self.kept_policies()).await {
            Ok(KeptPolicies { policies, .. }) => return Ok(ComparedPolicies { policies, trouble: None }),
            Err(error @ (StoreError::Forged { .. } | StoreError::PoliciesLost { .. })) => error.to_string(),
            Err(error) => return Err(error),
        };
        let found = self.backend.list(Policy::KIND).await?;
        let genuine = found.iter().filter_map(|document| document.versioned(&self.sealer).ok());
        Ok(ComparedPolicies { policies: genuine.collect(), trouble: Some(trouble) })
    }

    /// Notes the generation of policies that an agent has followed: the next change of a policy gets a higher one.
    pub fn agent_follows(&self, generation: u64) {
        if generation <= MAX_FOLLOWED {
            self.followed.fetch_max(generation, Ordering::Relaxed);
        }
    }

    /// Returns the manifest of the policies; none if the store has none. It is as durable as an answered commit.
    ///
    /// # Errors
    /// The manifest cannot be read, or may be lost with the server that has it.
    pub async fn durable_manifest(&self) -> Result<Option<PolicyManifest>, StoreError> {
        let manifest = self.get_durable::<PolicyManifest>(&TheManifest).await?.into_inner();
        Ok(manifest.map(|manifest| manifest.record))
    }

    /// Notes policies that this broker has seen: policies of a lower generation are refused from now on
    /// ([`StoreError::PoliciesLost`]), and the next change of a policy gets a higher one. Older ones than are noted change nothing.
    pub fn has_seen(&self, policies: &SeenPolicies) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let is_whole = policies.generation == seen.generation && seen.policies.is_none();
        if policies.generation > seen.generation || is_whole {
            *seen = Arc::new(policies.clone());
        }
    }

    /// Returns the newest policies that this broker has seen.
    pub(crate) fn seen(&self) -> Arc<SeenPolicies> {
        Arc::clone(&self.seen.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the highest generation of policies that this broker has seen; 0 if none.
    pub fn seen_generation(&self) -> u64 {
        self.seen().generation
    }

    /// Reports whether the store has lost a policy that is kept.
    ///
    /// # Errors
    /// The store failed.
    pub async fn has_lost_policy(&self, name: &Name) -> Result<bool, StoreError> {
        let is_kept = self.manifest_to_change().await?.policies.contains_key(name);
        Ok(is_kept && self.genuine::<Policy>(name).await?.is_none())
    }

    /// Reports whether an agent has followed newer policies than the store has: the store went back.
    ///
    /// # Errors
    /// The manifest cannot be read.
    pub async fn went_back_behind_agents(&self) -> Result<bool, StoreError> {
        let generation = self.stored_manifest().await?.map_or(0, |manifest| manifest.generation);
        Ok(generation < self.followed.load(Ordering::Relaxed))
    }

    /// Returns the record with this key.
    ///
    /// # Errors
    /// Here and in every other read: the store failed, or a record in it cannot be read.
    pub async fn get<R: Record>(&self, key: &R::Key) -> Result<Option<Versioned<R>>, StoreError> {
        let found = self.backend.get(R::KIND, &key.to_string()).await?;
        found.map(|document| self.noting(document.versioned(&self.sealer))).transpose()
    }

    /// Returns the record with this key as [`Self::get`] does; a forged one counts as none.
    ///
    /// # Errors
    /// As [`Self::get`], for other reasons.
    pub async fn genuine<R: Record>(&self, key: &R::Key) -> Result<Option<Versioned<R>>, StoreError> {
        match self.get(key).await {
            Err(StoreError::Forged { .. }) => Ok(None),
            found => found,
        }
    }

    /// Returns the record that a caller is about to replace, with the condition of that write: a forged one counts as none, and is
    /// written over.
    ///
    /// # Errors
    /// As [`Self::genuine`].
    pub async fn to_replace<R: Record>(
        &self,
        key: &R::Key,
    ) -> Result<(Option<Versioned<R>>, Expect), StoreError> {
        match self.get::<R>(key).await {
            Ok(Some(found)) => {
                let expect = Expect::Version(found.version);
                Ok((Some(found), expect))
            }
            Ok(None) => Ok((None, Expect::Absent)),
            Err(StoreError::Forged { .. }) => {
                // With its version: what another broker writes over it meanwhile is not written over.
                let last = self.backend.last_version(R::KIND, &key.to_string()).await?;
                let expect = if last.is_there { Expect::Version(last.version) } else { Expect::Absent };
                Ok((None, expect))
            }
            Err(error) => Err(error),
        }
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
        self.without_forged(&self.backend.list(R::KIND).await?, None)
    }

    /// Returns the records in a range of an index, without the forged ones.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn range<R: Record>(&self, range: Range<'_>) -> Result<Vec<Versioned<R>>, StoreError> {
        self.page(range).await.map(|page| page.records)
    }

    /// Returns a page of an index: its records, the forged ones apart, and where the next page begins.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn page<R: Record>(&self, range: Range<'_>) -> Result<RecordPage<R>, StoreError> {
        let DocumentPage { documents, next } = self.backend.range(R::KIND, range).await?;
        let Sorted { records, forged } = self.sorted(&documents, Some(range.index))?;
        Ok(RecordPage { records: records.into_iter().map(|(_, record)| record).collect(), forged, next })
    }

    /// Returns the records of the documents, of an index if one is named, and leaves forged ones out if the kind allows it.
    pub(crate) fn without_forged<R: Record>(
        &self,
        documents: &[Document],
        index: Option<&str>,
    ) -> Result<Vec<Versioned<R>>, StoreError> {
        let sorted = self.sorted(documents, index)?;
        Ok(sorted.records.into_iter().map(|(_, record)| record).collect())
    }

    /// Returns the record of a document, if there is one.
    pub(crate) fn of_document<R: Record>(
        &self,
        document: Option<&Document>,
    ) -> Result<Option<R>, StoreError> {
        let found = document.map(|document| self.noting(document.versioned(&self.sealer))).transpose()?;
        Ok(found.map(|found| found.record))
    }

    /// Returns the records of the documents, each with its document, and the forged ones apart if the kind allows it.
    fn sorted<'a, R: Record>(
        &self,
        documents: &'a [Document],
        index: Option<&str>,
    ) -> Result<Sorted<'a, R>, StoreError> {
        let (mut records, mut forged) = (Vec::with_capacity(documents.len()), Vec::new());
        for document in documents {
            let found = match index {
                Some(index) => document.indexed::<R>(&self.sealer, index),
                None => document.versioned::<R>(&self.sealer),
            };
            match self.noting(found) {
                Ok(record) => records.push((document, record)),
                Err(StoreError::Forged { .. }) if !R::KIND.is_whole => {
                    // Of a false entry of an index the record itself may be genuine.
                    if matches!(document.record::<R>(&self.sealer), Err(StoreError::Forged { .. })) {
                        forged
                            .push(ForgedRecord { key: document.key.to_string(), version: document.version });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Sorted { records, forged })
    }

    /// Reports whether a record that was found forged is still in the store as it was found. An index may name one that is not there.
    ///
    /// # Errors
    /// The store failed.
    pub async fn is_still_forged<R: Record>(&self, forged: &ForgedRecord) -> Result<bool, StoreError> {
        let last = self.backend.last_version(R::KIND, &forged.key).await?;
        Ok(last.is_there && last.version == forged.version)
    }

    /// Remembers that a record is forged, for the broker's log.
    fn noting<T>(&self, found: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Forged { what }) = &found {
            self.forgeries.note(what);
        }
        found
    }

    /// Returns up to about `limit` records of a kind with their keys, in no order, from the beginning or from the end of another page,
    /// the forged ones apart.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn scan<R: Record>(
        &self,
        from: Option<&str>,
        limit: usize,
    ) -> Result<FoundPage<R>, StoreError> {
        let page = self.backend.scan(R::KIND, from, limit).await?;
        let Sorted { records, forged } = self.sorted::<R>(&page.documents, None)?;
        let found = records.into_iter().map(|(document, Versioned { record, version })| Found {
            key: document.key.to_string(),
            record,
            version,
        });
        Ok(FoundPage { found: found.collect(), forged, next: page.next })
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

/// Returns the marks of policies, each with its document.
fn marks_of<'a, P: Borrow<Versioned<Policy>>>(
    policies: impl Iterator<Item = (&'a Document, P)>,
) -> BTreeMap<Name, PolicyMark> {
    let mark = |(document, policy): (&Document, P)| {
        let Versioned { record, version } = policy.borrow();
        (record.name.clone(), PolicyMark { version: *version, digest: document.digest().into_owned() })
    };
    policies.map(mark).collect()
}

/// The records of documents, each with its document, and the forged ones apart.
struct Sorted<'a, R> {
    records: Vec<(&'a Document, Versioned<R>)>,
    forged: Vec<ForgedRecord>,
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
