//! Changes that happen together, as a use case writes them.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use postern_core::audit::AuditEvent;

use crate::batch::{AuditCut, Batch, Expect, Put, Requirement, Write};
use crate::body::to_body;
use crate::coordination::Lease;
use crate::error::StoreError;
use crate::kind::Kind;
use crate::record::{ForgedRecord, Found, Record};

/// Changes that happen together or not at all. A transaction with changes has an audit event, too (I9).
///
/// Each kind of record adds its own changes (`records/`), which use [`Self::put`] and [`Self::delete`].
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// The writes, applied in order.
    drafts: Vec<DraftWrite>,
    requires: Vec<Requirement>,
    /// The audit events that describe them.
    pub audit: Vec<AuditEvent>,
    /// The records that leave the audit log, if any.
    cut: Option<Box<AuditCut>>,
    /// The lease that the changes need, if any: the store refuses them once another broker holds it.
    pub under: Option<Lease>,
    /// Set if the store refuses the transaction when it is low on space.
    pub(crate) gives_way: bool,
}

/// A write whose record is not yet text.
#[derive(Debug, Clone)]
struct DraftWrite {
    kind: Kind,
    key: String,
    expect: Expect,
    subject: fn(&str) -> String,
    put: Option<Arc<dyn AnyRecord>>,
}

impl Transaction {
    /// Writes a record.
    #[must_use]
    pub fn put<R: Record>(mut self, key: &R::Key, record: R, expect: Expect) -> Self {
        self.drafts.push(DraftWrite { put: Some(Arc::new(record)), ..draft::<R>(key, expect) });
        self
    }

    /// Deletes a record; conflicts if there is none. Of several callers at once, one succeeds.
    #[must_use]
    pub fn delete<R: Record>(mut self, key: &R::Key, expect: Expect) -> Self {
        self.drafts.push(draft::<R>(key, expect));
        self
    }

    /// Deletes a record that a scan has found; conflicts if it has changed since.
    #[must_use]
    pub fn delete_found<R: Record>(mut self, found: &Found<R>) -> Self {
        let (key, expect) = (found.key.clone(), Expect::Version(found.version));
        self.drafts.push(DraftWrite { kind: R::KIND, key, expect, subject: R::subject, put: None });
        self
    }

    /// Deletes a forged record; conflicts if it has changed since it was found.
    #[must_use]
    pub fn delete_forged<R: Record>(mut self, forged: &ForgedRecord) -> Self {
        let (key, expect) = (forged.key.clone(), Expect::Version(forged.version));
        self.drafts.push(DraftWrite { kind: R::KIND, key, expect, subject: R::subject, put: None });
        self
    }

    /// Removes the first records of the audit log from the store. The transaction conflicts if the log does not begin and go on as
    /// the cut says. Its caller has the records elsewhere, durably; the last record of the log never leaves.
    #[must_use]
    pub fn cut_audit(mut self, cut: AuditCut) -> Self {
        self.cut = Some(Box::new(cut));
        self
    }

    /// Makes the transaction depend on a record that it does not write: it conflicts if the record is not as expected at the
    /// moment of the commit.
    #[must_use]
    pub fn require<R: Record>(mut self, key: &R::Key, expect: Expect) -> Self {
        let DraftWrite { kind, key, expect, subject, put: _ } = draft::<R>(key, expect);
        self.requires.push(Requirement { kind, key, expect, subject });
        self
    }

    /// Adds an audit event.
    #[must_use]
    pub fn audit(mut self, event: AuditEvent) -> Self {
        self.audit.push(event);
        self
    }

    /// Makes the transaction depend on a lease.
    #[must_use]
    pub fn under(mut self, lease: Lease) -> Self {
        self.under = Some(lease);
        self
    }

    /// Makes the transaction give way to revocations, bans and closes: the store refuses it when it is low on space.
    #[must_use]
    pub fn giving_way(mut self) -> Self {
        self.gives_way = true;
        self
    }

    /// Returns the number of writes.
    pub fn writes(&self) -> usize {
        self.drafts.len()
    }

    /// Returns the records of this type that the transaction writes, each with its condition.
    pub fn puts<R: Record>(&self) -> impl Iterator<Item = (&R, Expect)> {
        self.drafts.iter().filter_map(|draft| {
            let record: &dyn Any = draft.put.as_deref()?;
            Some((record.downcast_ref()?, draft.expect))
        })
    }

    /// Returns the transaction as a backend takes it.
    ///
    /// # Errors
    /// A record has no text.
    pub(crate) fn into_batch(self) -> Result<Batch, StoreError> {
        let writes = self.drafts.into_iter().map(DraftWrite::into_write).collect::<Result<_, _>>()?;
        Ok(Batch { requires: self.requires, writes, audit: self.audit, cut: self.cut, under: self.under })
    }
}

fn draft<R: Record>(key: &R::Key, expect: Expect) -> DraftWrite {
    DraftWrite { kind: R::KIND, key: key.to_string(), expect, subject: R::subject, put: None }
}

impl DraftWrite {
    fn into_write(self) -> Result<Write, StoreError> {
        let put = self.put.map(AnyRecord::into_put).transpose()?;
        Ok(Write { kind: self.kind, key: self.key, expect: self.expect, subject: self.subject, put })
    }
}

/// A record of any kind.
trait AnyRecord: Any + Debug + Send + Sync {
    fn into_put(self: Arc<Self>) -> Result<Put, StoreError>;
}

impl<R: Record> AnyRecord for R {
    fn into_put(self: Arc<Self>) -> Result<Put, StoreError> {
        let (body, indexes) = (to_body(&*self)?, self.indexes());
        let targets = self.targets().into_iter().map(ToString::to_string).collect();
        Ok(Put { body, indexes, targets, record: self })
    }
}
