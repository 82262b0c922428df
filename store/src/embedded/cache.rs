//! A cache of the documents that every request and every pass of the reconciler reads, and of the head.
//!
//! Only this broker has the database open, so the cache is complete: it has every document of a kind, or every one in an
//! index of the kind. It follows a batch once that is durable and before the callers are answered: no reader sees a record
//! that a power cut could take back, and a caller that was answered sees its own commit. It keeps records as they were
//! written, so that no read of them parses anything.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use postern_core::audit::Head;

use crate::backend::{Order, Range, Snapshot, SnapshotQuery};
use crate::batch::Write;
use crate::document::Document;
use crate::error::StoreError;
use crate::indexes::Indexes;
use crate::kind::{Kind, Version};
use crate::record::Record;
use crate::seal::{Sealer, digest};

/// Reads the record of a document, and the indexes in which it says that it is.
type ReadRecord = fn(&Document, &Sealer) -> Result<(Document, Indexes), StoreError>;

/// A kind whose documents are cached.
#[derive(Debug, Clone, Copy)]
pub(super) struct CachedKind {
    pub(super) kind: Kind,
    /// The index in which the cached documents are. It leads a family: a document in the index `x open` is in `open`, too.
    /// None: every document is cached.
    index: Option<&'static str>,
    read: ReadRecord,
}

impl CachedKind {
    /// Caches every document of a kind.
    pub(super) fn whole<R: Record>() -> Self {
        Self { kind: R::KIND, index: None, read: Document::read::<R> }
    }

    /// Caches the documents in an index.
    pub(super) fn indexed<R: Record>(index: &'static str) -> Self {
        Self { index: Some(index), ..Self::whole::<R>() }
    }

    /// Reports whether every document of an index is cached.
    fn covers(&self, name: &str) -> bool {
        self.index.is_none_or(|index| {
            name.strip_suffix(index).is_some_and(|rest| rest.is_empty() || rest.ends_with(' '))
        })
    }

    fn holds(&self, indexes: &Indexes) -> bool {
        self.index.is_none_or(|index| indexes.contains(index))
    }
}

/// The cache, shared by the writer and all readers.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    kinds: Arc<[CachedKind]>,
    shared: Arc<RwLock<Cached>>,
}

#[derive(Debug)]
struct Cached {
    /// The shelves, in the order of the cached kinds.
    shelves: Vec<Shelf>,
    head: Head,
}

/// The cached documents of one kind, by their keys.
#[derive(Debug, Default)]
struct Shelf {
    documents: BTreeMap<Arc<str>, (Document, Indexes)>,
    /// The same documents by index, for the indexes that the cache covers.
    indexes: HashMap<String, BTreeMap<Arc<str>, Document>>,
}

/// A document as the cache takes it from the database.
#[derive(Debug)]
pub(super) struct CachedDocument {
    pub(super) document: Document,
    pub(super) indexes: Indexes,
}

/// The effect of a write on the cache.
#[derive(Debug)]
pub(super) struct Effect {
    shelf: usize,
    key: Arc<str>,
    /// The document and its indexes, if it is cached from now on.
    after: Option<(Document, Indexes)>,
}

impl Cache {
    /// Makes an empty cache of these kinds, for a log with this head.
    pub(super) fn new(kinds: &[CachedKind], head: Head) -> Self {
        let shelves = kinds.iter().map(|_| Shelf::default()).collect();
        Self { kinds: kinds.into(), shared: Arc::new(RwLock::new(Cached { shelves, head })) }
    }

    /// Adds documents that the database has.
    ///
    /// # Errors
    /// A document cannot be read.
    pub(super) fn fill(
        &self,
        kind: Kind,
        documents: impl IntoIterator<Item = CachedDocument>,
        sealer: &Sealer,
    ) -> Result<(), StoreError> {
        let Some((shelf, cached)) = self.shelf(kind) else { return Ok(()) };
        let mut effects = Vec::new();
        for CachedDocument { document, indexes } in documents {
            let key = Arc::clone(&document.key);
            let after = match (cached.read)(&document, sealer) {
                // A record that is not in the index that leads does not belong here, whatever the database's entries say.
                Ok((_, indexes)) if !cached.holds(&indexes) => continue,
                Ok(read) => read,
                // It stays as it is, so that each read meets it.
                Err(StoreError::Forged { .. }) => (document, indexes),
                Err(error) => return Err(error),
            };
            effects.push(Effect { shelf, key, after: Some(after) });
        }
        let head = self.head();
        self.follow(effects, head);
        Ok(())
    }

    /// Returns the effect of a write that gave its record this version; none for a kind that is not cached.
    pub(super) fn effect(&self, write: Write, version: Version) -> Option<Effect> {
        let (shelf, cached) = self.shelf(write.kind)?;
        let put = write.put.filter(|put| cached.holds(&put.indexes));
        let key: Arc<str> = write.key.into();
        let after = put.map(|put| {
            let digest = write.kind.is_whole.then(|| digest(&put.body).into());
            (Document::of_record(Arc::clone(&key), version, put.record, digest), put.indexes)
        });
        Some(Effect { shelf, key, after })
    }

    /// Follows a durable commit.
    pub(super) fn follow(&self, effects: impl IntoIterator<Item = Effect>, head: Head) {
        let mut cached = self.shared.write().unwrap_or_else(PoisonError::into_inner);
        for Effect { shelf, key, after } in effects {
            if let (Some(shelf), Some(kind)) = (cached.shelves.get_mut(shelf), self.kinds.get(shelf)) {
                shelf.follow(kind, key, after);
            }
        }
        cached.head = head;
    }

    /// Returns a document. The outer none: the cache does not know whether there is one.
    pub(super) fn get(&self, kind: Kind, key: &str) -> Option<Option<Document>> {
        let (shelf, cached) = self.shelf(kind)?;
        let found = self.look().shelves.get(shelf)?.documents.get(key).map(|(document, _)| document.clone());
        (found.is_some() || cached.index.is_none()).then_some(found)
    }

    /// Returns every document of a kind, if all are cached.
    pub(super) fn list(&self, kind: Kind) -> Option<Vec<Document>> {
        let (shelf, _) = self.shelf(kind).filter(|(_, cached)| cached.index.is_none())?;
        Some(self.look().shelves.get(shelf)?.all())
    }

    /// Returns the documents in a range of an index, if the whole index is cached.
    pub(super) fn range(&self, kind: Kind, range: Range<'_>) -> Option<Vec<Document>> {
        let (shelf, cached) = self.shelf(kind).filter(|(_, cached)| cached.covers(range.index))?;
        Some(self.look().shelves.get(shelf)?.range(cached, range))
    }

    /// Returns the number of documents in an index, if the whole index is cached.
    pub(super) fn count(&self, kind: Kind, index: &str) -> Option<usize> {
        let (shelf, cached) = self.shelf(kind).filter(|(_, cached)| cached.covers(index))?;
        let look = self.look();
        let shelf = look.shelves.get(shelf)?;
        let is_whole = cached.index == Some(index);
        Some(if is_whole { shelf.documents.len() } else { shelf.indexes.get(index).map_or(0, BTreeMap::len) })
    }

    /// Returns the documents of a snapshot without the single one, if all are cached.
    pub(super) fn snapshot(&self, wanted: SnapshotQuery<'_>) -> Option<Snapshot> {
        let (of_index, kind) = self.shelf(wanted.kind).filter(|(_, kind)| kind.covers(wanted.index))?;
        let (of_whole, _) = self.shelf(wanted.whole).filter(|(_, kind)| kind.index.is_none())?;
        let (kind_beside, key_beside) = wanted.beside;
        let (of_beside, _) = self.shelf(kind_beside).filter(|(_, kind)| kind.index.is_none())?;
        let cached = self.look();
        let beside = cached.shelves.get(of_beside)?.documents.get(key_beside);
        Some(Snapshot {
            indexed: cached.shelves.get(of_index)?.range(kind, Range::all(wanted.index)),
            whole: cached.shelves.get(of_whole)?.all(),
            beside: beside.map(|(document, _)| document.clone()),
            one: None,
            seq: cached.head.seq,
        })
    }

    pub(super) fn head(&self) -> Head {
        self.look().head
    }

    fn shelf(&self, kind: Kind) -> Option<(usize, &CachedKind)> {
        self.kinds.iter().enumerate().find(|(_, cached)| cached.kind.name == kind.name)
    }

    fn look(&self) -> RwLockReadGuard<'_, Cached> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn follow(&mut self, kind: &CachedKind, key: Arc<str>, after: Option<(Document, Indexes)>) {
        let before = self.documents.remove(&key).map(|(_, indexes)| indexes).unwrap_or_default();
        let none = Indexes::default();
        for name in before.without(after.as_ref().map_or(&none, |(_, indexes)| indexes)) {
            if let Some(documents) = self.indexes.get_mut(name) {
                documents.remove(&key);
                if documents.is_empty() {
                    self.indexes.remove(name);
                }
            }
        }
        let Some((document, indexes)) = after else { return };
        // Every document of the shelf is in the index that leads: that one is the shelf itself.
        for name in indexes.names().filter(|name| kind.covers(name) && kind.index != Some(name)) {
            if let Some(documents) = self.indexes.get_mut(name) {
                documents.insert(Arc::clone(&key), document.clone());
            } else {
                let first = BTreeMap::from([(Arc::clone(&key), document.clone())]);
                self.indexes.insert(name.to_owned(), first);
            }
        }
        self.documents.insert(key, (document, indexes));
    }

    fn all(&self) -> Vec<Document> {
        self.documents.values().map(|(document, _)| document.clone()).collect()
    }

    fn range(&self, kind: &CachedKind, range: Range<'_>) -> Vec<Document> {
        let bound = |key: Option<_>| key.map_or(Bound::Unbounded, Bound::Excluded);
        if range.after.zip(range.before).is_some_and(|(after, before)| after >= before) {
            return Vec::new();
        }
        let keys: (Bound<&str>, Bound<&str>) = (bound(range.after), bound(range.before));
        if kind.index == Some(range.index) {
            return in_order(self.documents.range::<str, _>(keys).map(|(_, (document, _))| document), range);
        }
        let documents = self.indexes.get(range.index).into_iter();
        in_order(documents.flat_map(|documents| documents.range::<str, _>(keys)).map(|(_, it)| it), range)
    }
}

fn in_order<'a>(documents: impl DoubleEndedIterator<Item = &'a Document>, range: Range<'_>) -> Vec<Document> {
    match range.order {
        Order::Ascending => documents.take(range.limit).cloned().collect(),
        Order::Descending => documents.rev().take(range.limit).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use postern_core::{CloseReason, Event, Grant, Policy};

    use super::*;
    use crate::batch::Expect;
    use crate::testing::builders::{a_grant, a_policy, at};
    use crate::transaction::Transaction;

    fn follow(cache: &Cache, transaction: Transaction) {
        let writes = transaction.into_batch().unwrap().writes;
        let effects: Vec<Effect> = writes.into_iter().filter_map(|write| cache.effect(write, 1)).collect();
        cache.follow(effects, Head::EMPTY);
    }

    fn keys(documents: Option<Vec<Document>>) -> Vec<String> {
        let sealer = crate::testing::test_sealing().sealer("");
        let id = |document: &Document| document.record::<Grant>(&sealer).unwrap().id.to_string();
        documents.unwrap().iter().map(id).collect()
    }

    #[test]
    fn an_index_is_served_only_if_the_cache_has_all_of_it_and_loses_what_leaves_it() {
        let kinds = [CachedKind::indexed::<Grant>("open"), CachedKind::whole::<Policy>()];
        let cache = Cache::new(&kinds, Head::EMPTY);
        let (one, both) = (a_grant().number(1).build(), a_grant().number(2).and_on("host:vm-2").build());
        let policy = a_policy().build();
        let all = [one.clone(), both.clone()].into_iter();
        let all = all.fold(Transaction::default(), |all, grant| all.put_grant(grant, Expect::Any));
        follow(&cache, all.put_policy(policy.clone(), Expect::Any));
        let (first, second) = (one.id.to_string(), both.id.to_string());
        let range = |index| cache.range(Grant::KIND, Range::all(index));
        assert!(range("on:host:vm-1").is_none() && range("reopen").is_none() && range("all").is_none());
        assert_eq!(keys(range("open")), [first.clone(), second.clone()]);
        assert_eq!(keys(range("on:host:vm-2 open")), [second.as_str()]);
        let count = |index| cache.count(Grant::KIND, index);
        let counts = ["open", "on:host:vm-2 open", "of:alice open", "on:host:vm-3 open", "all"].map(count);
        assert_eq!(counts, [Some(2), Some(1), Some(2), Some(0), None]);
        let newest = Range { order: Order::Descending, limit: 1, ..Range::all("on:host:vm-1 open") };
        assert_eq!(keys(cache.range(Grant::KIND, newest)), [second.as_str()]);
        let older = Range { before: Some(&second), ..Range::all("open") };
        assert_eq!(keys(cache.range(Grant::KIND, older)), [first.as_str()]);
        let younger = Range { after: Some(&first), ..Range::all("open") };
        assert_eq!(keys(cache.range(Grant::KIND, younger)), [second.as_str()]);
        let none = Range { after: Some(&second), before: Some(&first), ..Range::all("open") };
        assert!(keys(cache.range(Grant::KIND, none)).is_empty());

        let closing = both.after(Event::Close(CloseReason::Expired), at(60)).unwrap();
        let closed = closing.after(Event::ClosedEverywhere, at(61)).unwrap();
        follow(&cache, Transaction::default().put_grant(closed, Expect::Any).delete_policy(&policy.name));
        assert_eq!(keys(range("open")), [first.as_str()]);
        assert!(keys(range("on:host:vm-2 open")).is_empty());
        assert!(cache.get(Grant::KIND, &second).is_none(), "the database has it");
        assert!(matches!(cache.get(Policy::KIND, "usual"), Some(None)), "there is none anywhere");
        assert!(cache.list(Policy::KIND).unwrap().is_empty());
    }
}
