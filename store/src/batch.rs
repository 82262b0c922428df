//! Batches: transactions as a backend takes them, with records as text.

use std::any::Any;
use std::sync::Arc;

use postern_core::audit::{AuditEvent, Head};

use crate::coordination::Lease;
use crate::document::shown;
use crate::error::StoreError;
use crate::indexes::Indexes;
use crate::kind::{Kind, Version, next_version};

/// The bytes of an audit record besides its details.
const AUDIT_LINE: usize = 512;

/// Writes that happen together or not at all.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// The conditions on other records, which hold before the first write.
    pub requires: Vec<Requirement>,
    /// The writes, applied in order: each sees those before it.
    pub writes: Vec<Write>,
    /// The audit events that describe them.
    pub audit: Vec<AuditEvent>,
    /// The records that leave the audit log, if any. Boxed, as every batch would hold its size.
    pub cut: Option<Box<AuditCut>>,
    /// The lease that the writes need, if any.
    pub under: Option<Lease>,
}

/// The first records of the audit log, which leave the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuditCut {
    /// The base before: another one is a conflict.
    pub from: Head,
    /// The head of the last record that leaves, which is the base from then on. Another record at its number is a conflict.
    pub upto: Head,
}

impl AuditCut {
    /// Returns the number of records that leave.
    pub fn count(&self) -> u64 {
        self.upto.seq.saturating_sub(self.from.seq)
    }

    /// Makes the error for a log that is not as the cut expects it.
    pub(crate) fn conflict() -> StoreError {
        StoreError::Conflict { what: "the beginning of the audit log".to_owned() }
    }
}

impl Batch {
    /// Reports whether the batch writes records without an audit event, which no store accepts (I9).
    pub fn is_unaudited(&self) -> bool {
        self.audit.is_empty() && (!self.writes.is_empty() || self.cut.is_some())
    }

    /// Estimates the bytes that the batch brings: the texts, and as much again for keys, indexes and logs.
    pub(crate) fn size(&self) -> u64 {
        let writes = self.writes.iter().map(|write| write.put.as_ref().map_or(0, |put| put.body.len()));
        let audit = self.audit.iter().map(|event| {
            event.details.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() + AUDIT_LINE
        });
        u64::try_from(writes.chain(audit).sum::<usize>()).unwrap_or(u64::MAX).saturating_mul(2)
    }

    /// Names the first record that the batch writes, for an error.
    pub(crate) fn subject(&self) -> String {
        self.writes.first().map_or_else(|| "the audit log".to_owned(), Write::subject)
    }
}

/// A condition on a record that a batch does not write.
#[derive(Debug, Clone)]
pub struct Requirement {
    /// The kind of the record.
    pub kind: Kind,
    /// The text of its key.
    pub key: String,
    /// The condition.
    pub expect: Expect,
    /// The record's name, for an error.
    pub(crate) subject: fn(&str) -> String,
}

impl Requirement {
    /// Names the record, for an error.
    pub fn subject(&self) -> String {
        (self.subject)(&shown(&self.key))
    }
}

/// A write of one record.
#[derive(Debug, Clone)]
pub struct Write {
    /// The kind of the record.
    pub kind: Kind,
    /// The text of its key.
    pub key: String,
    /// The condition on the record before the write.
    pub expect: Expect,
    /// Names the record with this key, for an error.
    pub(crate) subject: fn(&str) -> String,
    /// The content. None deletes the record, and conflicts if there is none.
    pub put: Option<Put>,
}

impl Write {
    /// Names the record, for an error.
    pub fn subject(&self) -> String {
        (self.subject)(&shown(&self.key))
    }

    /// Returns the version of the record after this write, for a record that has this version before it.
    ///
    /// `found` is none if there is no such record. `last` is the version of the record before it was deleted, if it was.
    pub(crate) fn version_after(&self, found: Option<Version>, last: Version) -> Option<Version> {
        let last = self.kind.last_version(found, last);
        let may_be_made = self.expect.holds(found, last) && (self.put.is_some() || found.is_some());
        may_be_made.then(|| next_version(last))
    }
}

/// The content that a write gives a record.
#[derive(Debug, Clone)]
pub struct Put {
    /// The text.
    pub body: String,
    /// The indexes in which the record is from now on.
    pub indexes: Indexes,
    /// The targets to look at, for the event of the commit.
    pub targets: Vec<String>,
    /// The record itself.
    pub(crate) record: Arc<dyn Any + Send + Sync>,
}

impl Put {
    /// Returns the record, if it is of this type.
    pub fn record<R: 'static>(&self) -> Option<&R> {
        self.record.downcast_ref()
    }
}

/// The condition under which a write is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The record does not exist.
    Absent,
    /// The record does not exist, and had this version before it was deleted; 0 if it left none. The store itself asks this, to know
    /// the version that it seals.
    AbsentAfter(Version),
    /// The record has this version.
    Version(Version),
    /// No condition.
    Any,
}

impl Expect {
    /// Reports whether the condition holds for a record with this version; `None`: there is no such record. `last` is the version
    /// of the record before it was deleted, if it was.
    pub(crate) fn holds(self, found: Option<Version>, last: Version) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::AbsentAfter(version) => found.is_none() && last == version,
            Self::Version(version) => found == Some(version),
            Self::Any => true,
        }
    }

    /// Returns the version that a record of this kind has after a write under this condition; none if the condition does not say it.
    pub fn version_after(self, kind: Kind) -> Option<Version> {
        match self {
            Self::Version(version) | Self::AbsentAfter(version) => Some(next_version(version)),
            Self::Absent if !kind.keeps_versions => Some(1),
            Self::Absent | Self::Any => None,
        }
    }
}
