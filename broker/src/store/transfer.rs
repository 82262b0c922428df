//! Moving a whole store into another: record by record as it is kept, versions and the audit log's bytes included.
//!
//! At no moment are there two stores that a broker would go on with: the target is refused from its first record to its
//! last, and the source is marked as moved before the target is let go. Whatever is broken off in between leaves a target
//! that can be filled anew, and a source that can be read.

use std::collections::BTreeMap;

use async_trait::async_trait;
use postern_core::audit::{AuditEvent, AuditRecord, Head, Verifier};
use postern_core::{Grant, Name};

use super::bodies::corrupt;
use super::{MigrationError, RecordKind, StoreError, TokenHash, Version};

/// So many records go at once.
pub(super) const PAGE: usize = 500;

/// One record as it is kept. A body is the record's text, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A line of the audit log, after all those before it.
    Audit {
        /// Its number.
        seq: u64,
        /// The line.
        line: String,
    },
    /// A grant.
    Grant {
        /// What the body says.
        grant: Box<Grant>,
        /// Its version.
        version: Version,
        /// The body.
        body: String,
    },
    /// An idempotency key.
    Request {
        /// Whose.
        principal: Name,
        /// The key.
        key: String,
        /// The id of the grant that was made.
        grant: String,
    },
    /// A policy; one that was deleted has no body.
    Policy {
        /// Its name.
        name: String,
        /// Its version.
        version: Version,
        /// The body.
        body: Option<String>,
    },
    /// An agent.
    Agent {
        /// Its target.
        target: String,
        /// Its version.
        version: Version,
        /// The body.
        body: String,
    },
    /// A join token.
    Token {
        /// Its hash.
        hash: TokenHash,
        /// The body.
        body: String,
    },
}

/// Some records of a kind, and where those after them begin.
#[derive(Debug)]
pub struct Page {
    /// The records. One may come twice, as the same.
    pub items: Vec<Item>,
    /// Where to go on; none: that was all.
    pub next: Option<String>,
}

/// How many records there are of each kind.
pub type Counts = BTreeMap<RecordKind, u64>;

/// A store that is read from its beginning to its end.
#[async_trait]
pub trait Source: Send {
    /// Where the audit log ends.
    async fn head(&mut self) -> Result<Head, StoreError>;

    /// How many records there are.
    async fn counts(&mut self) -> Result<Counts, StoreError>;

    /// Up to [`PAGE`] records of a kind, from the beginning or from where a page ended.
    async fn page(&mut self, kind: RecordKind, from: Option<&str>) -> Result<Page, StoreError>;

    /// Marks the store as moved, if the audit log still ends at `head`: from then on it is not written to.
    ///
    /// # Errors
    /// [`MigrationError::Changed`] where it does not; nothing was marked.
    async fn mark_moved(&mut self, to: &str, head: &Head) -> Result<(), StoreError>;
}

/// An empty store that is filled.
#[async_trait]
pub trait Target: Send {
    /// Marks the store as incomplete. One that was marked before is emptied, if it is to be overwritten.
    ///
    /// # Errors
    /// [`MigrationError::NotEmpty`], or [`MigrationError::Incomplete`] where it is not to be overwritten; nothing was changed.
    async fn begin(&mut self, from: &str, overwrite: bool) -> Result<(), StoreError>;

    /// Keeps these records.
    async fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError>;

    /// How many records there are.
    async fn arrived(&mut self) -> Result<Counts, StoreError>;

    /// Waits until everything is as durable as a commit.
    async fn settle(&mut self) -> Result<(), StoreError>;

    /// Appends the last record, and takes the mark away: from then on this is a store like any other.
    async fn finish(&mut self, last: &AuditRecord) -> Result<(), StoreError>;
}

/// What to call the two stores, and what is asked for.
#[derive(Debug, Clone)]
pub struct MigrationOptions {
    /// The source, without a password.
    pub from: String,
    /// The target, without a password.
    pub to: String,
    /// Whether the source stays open for writing.
    pub keep_source: bool,
    /// Whether a target that is incomplete is emptied first.
    pub overwrite_incomplete: bool,
}

/// Moves a store. `now` is asked for the moment of the last record, which is not before that of the one before it.
///
/// # Errors
/// The source is broken, changes meanwhile or cannot be read; the target is not empty, or cannot be written to.
pub async fn transfer(
    source: &mut dyn Source,
    target: &mut dyn Target,
    how: &MigrationOptions,
    now: impl FnOnce(Option<&AuditRecord>) -> jiff::Timestamp,
) -> Result<Counts, StoreError> {
    let (head, last) = verify(source).await?;
    let sent = source.counts().await?;
    target.begin(&how.from, how.overwrite_incomplete).await?;
    for kind in RecordKind::ALL {
        let mut from = None;
        loop {
            let page = source.page(kind, from.as_deref()).await?;
            target.put(page.items).await?;
            from = page.next;
            if from.is_none() {
                break;
            }
        }
    }
    if source.head().await? != head {
        return Err(MigrationError::Changed.into());
    }
    let arrived = target.arrived().await?;
    for kind in RecordKind::ALL {
        let count = |counts: &Counts| counts.get(&kind).copied().unwrap_or(0);
        if count(&sent) != count(&arrived) {
            return Err(MigrationError::Lost { kind, sent: count(&sent), arrived: count(&arrived) }.into());
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
    Ok(sent)
}

/// Reads the audit log from its beginning: it is one chain, and ends where the store says. Returns that, and the last
/// record.
async fn verify(source: &mut dyn Source) -> Result<(Head, Option<AuditRecord>), StoreError> {
    let head = source.head().await?;
    let (mut verifier, mut from, mut last) = (Verifier::default(), None, None);
    loop {
        let page = source.page(RecordKind::Audit, from.as_deref()).await?;
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
        return Ok((head, last));
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
