//! A store in memory, with the faults of a real one, for tests of everything above the store.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use postern_core::audit::{AuditRecord, Head};

use crate::backend::{Backend, DocumentPage, Order, Range, Snapshot, SnapshotQuery};
use crate::batch::{AuditCut, Batch, Write};
use crate::coordination::Lease;
use crate::document::Document;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::indexes::Indexes;
use crate::kind::{Kind, LastVersion, Version};
use crate::room::{Medium, Room};
use crate::store::Store;
use crate::testing::test_sealing;

/// A store in memory. It is lost with the process, and copies everything on each commit.
#[derive(Debug, Clone)]
pub struct Memory {
    backend: Arc<MemoryBackend>,
    store: Store,
}

#[derive(Debug, Default)]
struct MemoryBackend {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Documents,
    faults: VecDeque<Fault>,
    /// Set while the newest commit is not durable.
    unconfirmed: bool,
    room: Option<Room>,
    /// Set if the next looks at the room fail.
    room_fails: bool,
    /// The number of reads of several documents, by kind.
    reads: BTreeMap<&'static str, usize>,
    /// The number of lines of the audit log that were read.
    lines_read: usize,
}

#[derive(Debug, Clone)]
struct Documents {
    /// The documents by kind and key.
    by_key: BTreeMap<(&'static str, String), Kept>,
    audit: Vec<String>,
    base: Head,
    head: Head,
}

/// A document with its indexes; a deleted one may have left its version.
#[derive(Debug, Clone)]
struct Kept {
    version: Version,
    present: Option<(Document, Indexes)>,
}

/// A fault of the next commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No fault: the commit succeeds.
    Nothing,
    /// The commit has no effect, and the caller cannot know: [`StoreError::Unavailable`].
    Before,
    /// The commit takes effect, and the answer is lost: [`StoreError::Unavailable`].
    After,
    /// The commit takes effect, and is not durable until a later commit is: [`StoreError::Unavailable`].
    Unconfirmed,
    /// The store has no room: [`StoreError::Full`].
    Full,
    /// Another caller was first: [`StoreError::Conflict`].
    Conflict,
}

/// The error of a fault.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the store was lost")]
struct Lost;

fn lost() -> StoreError {
    StoreError::Unavailable { source: Box::new(Lost) }
}

impl Default for Memory {
    fn default() -> Self {
        let backend: Arc<MemoryBackend> = Arc::default();
        Self { store: Store::new(Arc::clone(&backend) as _, test_sealing().sealer("")), backend }
    }
}

impl Deref for Memory {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Memory {
    /// Gives each of the next commits a fault.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.backend.lock().faults.extend(faults);
    }

    /// Changes the text of a document as a program does that can write the database, and returns the text before.
    pub fn tamper(&self, kind: Kind, key: &str, change: impl FnOnce(&str) -> String) -> String {
        let mut inner = self.backend.lock();
        let kept = inner.state.by_key.get_mut(&(kind.name, key.to_owned()));
        let (document, _) = kept.and_then(|kept| kept.present.as_mut()).unwrap();
        let before = document.text().to_owned();
        *document = Document::from_text(key, document.version, change(&before));
        before
    }

    /// Removes a document as a program does that can write the database, and leaves nothing of it.
    pub fn lose(&self, kind: Kind, key: &str) {
        self.backend.lock().state.by_key.remove(&(kind.name, key.to_owned()));
    }

    /// Sets the room that is left.
    pub fn set_room(&self, room: Option<Room>) {
        let mut inner = self.backend.lock();
        (inner.room, inner.room_fails) = (room, false);
    }

    /// Makes every look at the room fail until it is set.
    pub fn fail_room(&self) {
        self.backend.lock().room_fails = true;
    }

    /// Returns the number of reads of several documents of a kind so far.
    pub fn reads_of(&self, kind: Kind) -> usize {
        self.backend.lock().reads.get(kind.name).copied().unwrap_or(0)
    }

    /// Replaces the lines of the audit log, as an attacker who can write a store's database does. The end that the store goes on from
    /// is that of the last line.
    pub fn replace_audit(&self, lines: Vec<String>) {
        let last = lines.last().and_then(|line| serde_json::from_str::<AuditRecord>(line).ok());
        let state = &mut self.backend.lock().state;
        (state.audit, state.head) = (lines, last.map_or(Head::EMPTY, |last| last.head()));
    }

    /// Returns the number of lines of the audit log that were read since the last call.
    pub fn take_lines_read(&self) -> usize {
        std::mem::take(&mut self.backend.lock().lines_read)
    }

    /// Returns the store, for the code under test.
    pub fn store(&self) -> Store {
        self.store.clone()
    }
}

impl MemoryBackend {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Counts a read of several documents of a kind.
    fn read(&mut self, kind: Kind) -> &Documents {
        *self.reads.entry(kind.name).or_default() += 1;
        &self.state
    }
}

impl Default for Documents {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), audit: Vec::new(), base: Head::EMPTY, head: Head::EMPTY }
    }
}

impl Documents {
    fn after(&self, batch: Batch) -> Result<Self, StoreError> {
        if batch.is_unaudited() {
            return Err(StoreError::Unaudited);
        }
        let mut next = self.clone();
        for requirement in batch.requires {
            let kept = next.by_key.get(&(requirement.kind.name, requirement.key.clone()));
            let found = kept.filter(|kept| kept.present.is_some()).map(|kept| kept.version);
            if !requirement.expect.holds(found, kept.map_or(0, |kept| kept.version)) {
                return Err(StoreError::Conflict { what: requirement.subject() });
            }
        }
        for write in batch.writes {
            next.apply(write)?;
        }
        if let Some(cut) = batch.cut {
            next.cut(*cut)?;
        }
        for event in batch.audit {
            let record = AuditRecord::following(&next.head, event);
            next.head = record.head();
            next.audit.push(record.to_line());
        }
        Ok(next)
    }

    fn cut(&mut self, cut: AuditCut) -> Result<(), StoreError> {
        let count = usize::try_from(cut.count()).unwrap_or(usize::MAX);
        let last = count.checked_sub(1).and_then(|last| self.audit.get(last));
        let last = last.and_then(|line| serde_json::from_str::<AuditRecord>(line).ok());
        if self.base != cut.from || self.head == cut.upto || last.map(|last| last.head()) != Some(cut.upto) {
            return Err(AuditCut::conflict());
        }
        self.audit.drain(..count);
        self.base = cut.upto;
        Ok(())
    }

    fn apply(&mut self, write: Write) -> Result<(), StoreError> {
        let place = (write.kind.name, write.key.clone());
        let before = self.by_key.get(&place);
        let found = before.filter(|kept| kept.present.is_some()).map(|kept| kept.version);
        let Some(version) = write.version_after(found, before.map_or(0, |kept| kept.version)) else {
            return Err(StoreError::Conflict { what: write.subject() });
        };
        let present =
            write.put.map(|put| (Document::from_text(write.key.as_str(), version, put.body), put.indexes));
        if present.is_none() && !write.kind.keeps_versions {
            self.by_key.remove(&place);
        } else {
            self.by_key.insert(place, Kept { version, present });
        }
        Ok(())
    }

    /// Returns the documents of a kind, each with its key and its indexes, in the order of the keys.
    fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&str, &(Document, Indexes))> {
        let from = self.by_key.range((kind.name, String::new())..);
        let of_kind = from.take_while(move |((name, _), _)| *name == kind.name);
        of_kind.filter_map(|((_, key), kept)| Some((key.as_str(), kept.present.as_ref()?)))
    }

    fn list(&self, kind: Kind) -> Vec<Document> {
        self.of_kind(kind).map(|(_, (document, _))| document.clone()).collect()
    }

    fn range(&self, kind: Kind, range: Range<'_>) -> Vec<Document> {
        let is_wanted = |key: &str, indexes: &Indexes| {
            indexes.contains(range.index)
                && range.before.is_none_or(|before| key < before)
                && range.after.is_none_or(|after| key > after)
        };
        let found = self.of_kind(kind).filter(|(key, (_, indexes))| is_wanted(key, indexes));
        let mut found: Vec<Document> = found.map(|(_, (document, _))| document.clone()).collect();
        if range.order == Order::Descending {
            found.reverse();
        }
        found.truncate(range.limit);
        found
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    async fn apply(&self, batch: Batch) -> Result<Head, StoreError> {
        let mut inner = self.lock();
        let fault = inner.faults.pop_front();
        match fault {
            Some(Fault::Before) => return Err(lost()),
            Some(Fault::Full) => return Err(StoreError::Full(Medium::Disk)),
            Some(Fault::Conflict) => return Err(StoreError::Conflict { what: batch.subject() }),
            Some(Fault::After | Fault::Unconfirmed | Fault::Nothing) | None => {}
        }
        inner.state = inner.state.after(batch)?;
        inner.unconfirmed = fault == Some(Fault::Unconfirmed);
        match fault {
            Some(Fault::After | Fault::Unconfirmed) => Err(lost()),
            _ => Ok(inner.state.head),
        }
    }

    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Document>, StoreError> {
        let inner = self.lock();
        let kept = inner.state.by_key.get(&(kind.name, key.to_owned()));
        Ok(kept.and_then(|kept| kept.present.as_ref()).map(|(document, _)| document.clone()))
    }

    async fn get_durable(&self, kind: Kind, key: &str) -> Result<Durable<Option<Document>>, StoreError> {
        let found = self.get(kind, key).await?;
        if self.lock().unconfirmed { Err(lost()) } else { Ok(Durable::new(found)) }
    }

    async fn last_version(&self, kind: Kind, key: &str) -> Result<LastVersion, StoreError> {
        let inner = self.lock();
        let kept = inner.state.by_key.get(&(kind.name, key.to_owned()));
        Ok(kept.map_or_else(LastVersion::default, |kept| LastVersion {
            version: kept.version,
            is_there: kept.present.is_some(),
        }))
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Document>, StoreError> {
        Ok(self.lock().read(kind).list(kind))
    }

    async fn range(&self, kind: Kind, range: Range<'_>) -> Result<DocumentPage, StoreError> {
        let documents = self.lock().read(kind).range(kind, range);
        let next = documents.last().filter(|_| documents.len() >= range.limit);
        Ok(DocumentPage { next: next.map(|last| last.key.to_string()), documents })
    }

    async fn scan(&self, kind: Kind, from: Option<&str>, limit: usize) -> Result<DocumentPage, StoreError> {
        let mut inner = self.lock();
        let all = inner.read(kind).of_kind(kind).filter(|(key, _)| from.is_none_or(|from| *key > from));
        let documents: Vec<Document> = all.take(limit).map(|(_, (document, _))| document.clone()).collect();
        let next = documents.last().filter(|_| documents.len() == limit).map(|last| last.key.to_string());
        Ok(DocumentPage { documents, next })
    }

    async fn count(&self, kind: Kind, index: &str) -> Result<usize, StoreError> {
        Ok(self.lock().state.range(kind, Range::all(index)).len())
    }

    async fn snapshot(&self, _: &Lease, wanted: SnapshotQuery<'_>) -> Result<Snapshot, StoreError> {
        let one = self.get(wanted.one.0, wanted.one.1).await?;
        let state = &self.lock().state;
        let (kind, key) = wanted.beside;
        let beside = state.by_key.get(&(kind.name, key.to_owned())).and_then(|kept| kept.present.as_ref());
        Ok(Snapshot {
            one,
            beside: beside.map(|(document, _)| document.clone()),
            indexed: state.range(wanted.kind, Range::all(wanted.index)),
            whole: state.list(wanted.whole),
            seq: state.head.seq,
        })
    }

    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        let mut inner = self.lock();
        let state = &inner.state;
        let after = usize::try_from(after.saturating_sub(state.base.seq)).unwrap_or(usize::MAX);
        let first = state.base.seq + 1;
        let lines: Vec<_> = (first..).zip(state.audit.iter().cloned()).skip(after).take(limit).collect();
        inner.lines_read += lines.len();
        Ok(lines)
    }

    async fn audit_base(&self) -> Result<Head, StoreError> {
        Ok(self.lock().state.base)
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        Ok(self.lock().state.head)
    }

    async fn room(&self) -> Result<Option<Room>, StoreError> {
        let inner = self.lock();
        if inner.room_fails { Err(lost()) } else { Ok(inner.room) }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use postern_core::audit::AuditEvent;

    use super::*;
    use crate::testing::conformance;
    use crate::transaction::Transaction;

    #[tokio::test(flavor = "multi_thread")]
    async fn the_fake_conforms() {
        conformance::run(async || Memory::default().store()).await;
    }

    #[tokio::test]
    async fn a_fault_befalls_one_commit_and_only_after_takes_effect() {
        let store = Memory::default();
        store.fail_next([Fault::Before, Fault::Full, Fault::Conflict, Fault::After]);
        let event = AuditEvent::done(Timestamp::UNIX_EPOCH, "broker", "test");
        let commit = async || store.commit(Transaction::default().audit(event.clone())).await;
        assert!(matches!(commit().await, Err(StoreError::Unavailable { .. })));
        assert!(matches!(commit().await, Err(StoreError::Full(_))));
        assert!(matches!(commit().await, Err(StoreError::Conflict { .. })));
        assert_eq!(store.audit_head().await.unwrap(), Head::EMPTY);
        assert!(matches!(commit().await, Err(StoreError::Unavailable { .. })));
        assert_eq!(store.audit_head().await.unwrap().seq, 1);
        assert_eq!(commit().await.unwrap().seq, 2);
    }
}
