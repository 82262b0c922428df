//! Moving a whole store into another: record by record as it is kept, with versions and the bytes of the audit log. Only seals are
//! made again, as they name the tenant. An entry that no broker can have written, as it has no version or is no text, stays behind: it
//! counts for nothing, and must not keep a store from being moved.
//!
//! At no moment are there two stores that a broker would open: brokers refuse the target from its first record to its last,
//! and the source is marked as moved before the target's mark is removed. A migration that stops in between leaves a target
//! that can be filled again, and a source that can be read.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use postern_core::audit::{AuditEvent, AuditRecord, Head, Verifier};

use crate::body::{corrupt, from_body};
use crate::error::{MigrationError, StoreError};
use crate::indexes::Indexes;
use crate::kind::{Part, Version};
use crate::seal::{Sealed, Sealer};

/// The number of records that are copied at once.
pub(crate) const PAGE: usize = 500;

/// A record as it is kept, whatever its kind. A body is the record's text, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A line of the audit log. Lines are copied in order.
    Audit {
        /// The number.
        seq: u64,
        /// The line.
        line: String,
    },
    /// A document.
    Document {
        /// The name of its kind.
        kind: String,
        /// The key.
        key: String,
        /// The version.
        version: Version,
        /// The body; none for a deleted record that left its version.
        body: Option<String>,
        /// The indexes in which it is.
        indexes: Indexes,
    },
}

/// A page of one part of a store.
#[derive(Debug)]
pub struct Page {
    /// The records. The same record may come twice.
    pub items: Vec<Item>,
    /// The keys of the entries that no broker can have written.
    pub left_out: Vec<Vec<u8>>,
    /// The beginning of the next page; none after the last one.
    pub next: Option<String>,
}

/// The number of records in each part of a store. A source has in it every part that a migration moves.
pub type Counts = BTreeMap<Part, u64>;

/// A migration that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The number of records that were moved, by part.
    pub counts: Counts,
    /// The number of entries that no broker can have written, and that stayed behind.
    pub left_out: u64,
}

/// The store from which records are moved.
#[async_trait]
pub trait Source: Send {
    /// Returns the maker and checker of this store's seals.
    fn sealer(&self) -> &Sealer;

    /// Returns the end of the audit log.
    async fn head(&mut self) -> Result<Head, StoreError>;

    /// Returns the base of the audit log, after which its lines begin.
    async fn base(&mut self) -> Result<Head, StoreError>;

    /// Counts the records.
    async fn counts(&mut self) -> Result<Counts, StoreError>;

    /// Returns up to [`PAGE`] records of a part, from the beginning or from the end of another page.
    async fn page(&mut self, part: &Part, from: Option<&str>) -> Result<Page, StoreError>;

    /// Marks the store as moved, if the audit log still ends at `head`: from then on brokers refuse it.
    ///
    /// # Errors
    /// [`MigrationError::Changed`] if the log ends elsewhere; nothing was marked.
    async fn mark_moved(&mut self, to: &str, head: &Head) -> Result<(), StoreError>;
}

/// The empty store into which records are moved.
#[async_trait]
pub trait Target: Send {
    /// Returns the maker and checker of this store's seals.
    fn sealer(&self) -> &Sealer;

    /// Marks the store as incomplete. With `overwrite`, empties a store that an earlier migration marked.
    ///
    /// # Errors
    /// [`MigrationError::NotEmpty`], or [`MigrationError::Incomplete`] without `overwrite`; nothing was changed.
    async fn begin(&mut self, from: &str, overwrite: bool) -> Result<(), StoreError>;

    /// Sets the base of the audit log, before its first line.
    async fn set_base(&mut self, base: Head) -> Result<(), StoreError>;

    /// Writes these records.
    async fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError>;

    /// Counts the records that have arrived.
    async fn arrived(&mut self) -> Result<Counts, StoreError>;

    /// Waits until all records are as durable as a commit.
    async fn settle(&mut self) -> Result<(), StoreError>;

    /// Appends the last audit record, and removes the mark: from then on brokers open this store.
    async fn finish(&mut self, last: &AuditRecord) -> Result<(), StoreError>;
}

/// The options of a migration.
#[derive(Debug, Clone)]
pub struct MigrationOptions {
    /// The address of the source, without a password.
    pub from: String,
    /// The address of the target, without a password.
    pub to: String,
    /// Leaves the source open for brokers.
    pub keep_source: bool,
    /// Empties an incomplete target first.
    pub overwrite_incomplete: bool,
}

/// Moves a store. `now` returns the time of the new audit record, which is not before that of the record it is given.
///
/// # Errors
/// The source is broken, changes during the migration or cannot be read; the target is not empty, or cannot be written.
pub async fn transfer(
    source: &mut dyn Source,
    target: &mut dyn Target,
    how: &MigrationOptions,
    now: impl FnOnce(Option<&AuditRecord>) -> jiff::Timestamp,
) -> Result<Moved, StoreError> {
    let Verified { base, head, last } = verify(source).await?;
    let mut sent = source.counts().await?;
    let mut all_left_out = 0;
    target.begin(&how.from, how.overwrite_incomplete).await?;
    if base != Head::EMPTY {
        target.set_base(base).await?;
    }
    for (part, count) in &mut sent {
        let (mut from, mut left_out) = (None, BTreeSet::new());
        loop {
            let page = source.page(part, from.as_deref()).await?;
            left_out.extend(page.left_out);
            let items = page.items.into_iter().map(|item| resealed(item, source.sealer(), target.sealer()));
            let items = items.collect();
            target.put(items).await?;
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        let left_out = u64::try_from(left_out.len()).unwrap_or(u64::MAX);
        *count = count.saturating_sub(left_out);
        all_left_out += left_out;
    }
    if source.head().await? != head {
        return Err(MigrationError::Changed.into());
    }
    let arrived = target.arrived().await?;
    for part in sent.keys().chain(arrived.keys()) {
        let count = |counts: &Counts| counts.get(part).copied().unwrap_or(0);
        if count(&sent) != count(&arrived) {
            let (sent, arrived) = (count(&sent), count(&arrived));
            return Err(MigrationError::Lost { part: part.clone(), sent, arrived }.into());
        }
    }
    target.settle().await?;
    if !how.keep_source {
        source.mark_moved(&how.to, &head).await?;
    }
    let event = AuditEvent::done(now(last.as_ref()), "broker", "store.migrated")
        .with("from", &how.from)
        .with("to", &how.to)
        .with("records", sent.values().sum::<u64>());
    target.finish(&AuditRecord::following(&head, event)).await?;
    target.settle().await?;
    Ok(Moved { counts: sent, left_out: all_left_out })
}

/// Copies a store exactly: the copy's audit log ends where the source's does, and the source is not changed. The caller verifies the
/// copy. No broker opens the target before it is complete.
///
/// # Errors
/// The source changes meanwhile ([`MigrationError::Changed`]), is empty or cannot be read; the target is not empty, or cannot be
/// written. What was written is left, and marked as incomplete.
pub async fn copy(
    source: &mut dyn Source,
    target: &mut dyn Target,
    from: &str,
    overwrite_incomplete: bool,
) -> Result<Counts, StoreError> {
    let (base, head) = (source.base().await?, source.head().await?);
    let sent = source.counts().await?;
    target.begin(from, overwrite_incomplete).await?;
    if base != Head::EMPTY {
        target.set_base(base).await?;
    }
    // The last line is written with the removal of the mark.
    let mut last = None;
    for part in sent.keys() {
        let mut from = None;
        loop {
            let page = source.page(part, from.as_deref()).await?;
            let mut items = Vec::with_capacity(page.items.len());
            for item in page.items {
                match item {
                    Item::Audit { seq, line } if seq == head.seq => last = Some(line),
                    item @ (Item::Audit { .. } | Item::Document { .. }) => {
                        items.push(resealed(item, source.sealer(), target.sealer()));
                    }
                }
            }
            target.put(items).await?;
            from = page.next;
            if from.is_none() {
                break;
            }
        }
    }
    if (source.base().await?, source.head().await?) != (base, head) {
        return Err(MigrationError::Changed.into());
    }
    let arrived = target.arrived().await?;
    for part in sent.keys().chain(arrived.keys()) {
        let count = |counts: &Counts| counts.get(part).copied().unwrap_or(0);
        let (sent, held_back) = (count(&sent), u64::from(*part == Part::Audit && last.is_some()));
        let arrived = count(&arrived) + held_back;
        if sent != arrived {
            return Err(MigrationError::Lost { part: part.clone(), sent, arrived }.into());
        }
    }
    let last = last.ok_or_else(|| corrupt("audit log", Cut { ends: 0, should: head.seq }))?;
    let last: AuditRecord = from_body("last audit record", &last)?;
    target.settle().await?;
    target.finish(&last).await?;
    target.settle().await?;
    Ok(sent)
}

/// Returns a document with the seal of the target, which may have another tenant. One whose seal does not fit stays as it is, and
/// is as forged there.
fn resealed(item: Item, from: &Sealer, to: &Sealer) -> Item {
    let Item::Document { kind, key, version, body: Some(text), indexes } = item else { return item };
    let of = Sealed { kind: &kind, key: &key, version };
    let sealed = from.open(of, &text).map(|body| to.seal(of, body));
    Item::Document { body: Some(sealed.unwrap_or(text)), kind, key, version, indexes }
}

/// An audit log that is one chain.
struct Verified {
    base: Head,
    head: Head,
    last: Option<AuditRecord>,
}

/// Reads the audit log from its base, and checks that it is one chain that ends at the store's head.
async fn verify(source: &mut dyn Source) -> Result<Verified, StoreError> {
    let (base, head) = (source.base().await?, source.head().await?);
    let (mut verifier, mut from, mut last) = (Verifier::after(base), None, None);
    loop {
        let page = source.page(&Part::Audit, from.as_deref()).await?;
        for item in &page.items {
            if let Item::Audit { line, .. } = item {
                last = Some(verifier.line(line).map_err(|broken| corrupt("audit log", broken))?);
            }
        }
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    if verifier.head() == head {
        return Ok(Verified { base, head, last });
    }
    if source.head().await? != head {
        return Err(MigrationError::Changed.into());
    }
    let cut = Cut { ends: verifier.head().seq, should: head.seq };
    Err(corrupt("audit log", cut))
}

#[derive(Debug, thiserror::Error)]
#[error("it ends with record {ends}, and the store says {should}")]
struct Cut {
    ends: u64,
    should: u64,
}
