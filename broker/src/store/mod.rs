//! The store: what the broker must not forget.
//!
//! A record is changed by compare-and-set on its version, and everything that belongs together (a grant, its
//! idempotency key, its audit lines) is one [`Transaction`], durable before [`Store::commit`] returns: that is
//! what I4 and I9 stand on. A store keeps no timers; no record here ever expires by itself.

#[cfg(test)]
mod conformance;
pub mod embedded;
#[cfg(test)]
pub mod memory;

use async_trait::async_trait;
use jiff::Timestamp;
use postern_core::audit::{AuditEvent, Head};
use postern_core::{Grant, GrantId, Name, Policy, Principal, TargetId};
use serde::{Deserialize, Serialize};

/// Counts the changes of one record, from 1. A policy that is deleted and put again counts on: a version that was
/// read before never fits what came after.
pub type Version = u64;

/// A record and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The record.
    pub record: T,
    /// Its version, for the compare-and-set of the next change.
    pub version: Version,
}

/// Keeps grants, policies, agents and the audit log.
///
/// Every implementation passes the suite in `conformance.rs`. Methods may be called from many tasks at once.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies all of the transaction or none of it, durably, and appends its audit events in order.
    ///
    /// Returns the head of the audit log after this transaction; one that is empty changes nothing. Where every change is conditional, a
    /// transaction that is repeated after an unknown outcome either conflicts or has the same effect.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where an expectation does not hold, [`StoreError::Silent`] for changes without an audit
    /// event; nothing was changed. Of the others the outcome is unknown only for [`StoreError::Unavailable`].
    async fn commit(&self, transaction: Transaction) -> Result<Head, StoreError>;

    /// One grant.
    ///
    /// # Errors
    /// Here and in every other look: the store failed, or a record in it cannot be read.
    async fn grant(&self, id: GrantId) -> Result<Option<Versioned<Grant>>, StoreError>;

    /// Grants by id, the newest first.
    async fn grants(&self, query: GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError>;

    /// Every grant that is not in a final state, the oldest first.
    async fn open_grants(&self) -> Result<Vec<Versioned<Grant>>, StoreError>;

    /// The grant that the principal's request with this key made.
    async fn grant_of_request(&self, principal: &Name, key: &str) -> Result<Option<GrantId>, StoreError>;

    /// What the reconciler needs of one target, read at one instant.
    async fn snapshot(&self, target: &TargetId) -> Result<TargetSnapshot, StoreError>;

    /// Every policy, by name.
    async fn policies(&self) -> Result<Vec<Versioned<Policy>>, StoreError>;

    /// One policy.
    async fn policy(&self, name: &Name) -> Result<Option<Versioned<Policy>>, StoreError>;

    /// Every agent, by target.
    async fn agents(&self) -> Result<Vec<Versioned<AgentRecord>>, StoreError>;

    /// One agent.
    async fn agent(&self, target: &TargetId) -> Result<Option<Versioned<AgentRecord>>, StoreError>;

    /// The token with this hash.
    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, StoreError>;

    /// Up to `limit` lines of the audit log after record `after`, in order.
    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError>;

    /// Where the audit log ends.
    async fn audit_head(&self) -> Result<Head, StoreError>;
}

/// Changes that happen together or not at all. One with changes has an audit event, too (I9).
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// The changes, applied in order.
    pub changes: Vec<Change>,
    /// What the audit log says of them.
    pub audit: Vec<AuditEvent>,
}

impl Transaction {
    /// With one more change.
    #[must_use]
    pub fn change(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    /// With one more audit event.
    #[must_use]
    pub fn audit(mut self, event: AuditEvent) -> Self {
        self.audit.push(event);
        self
    }

    /// Whether it would change something without a word in the audit log, which no store does.
    fn is_silent(&self) -> bool {
        self.audit.is_empty() && !self.changes.is_empty()
    }
}

/// One change of one record.
#[derive(Debug, Clone)]
pub enum Change {
    /// Keeps a grant.
    PutGrant {
        /// The grant.
        grant: Grant,
        /// What must hold of the record before.
        expect: Expect,
    },
    /// Remembers which grant a request made; conflicts where the key is known.
    RememberRequest {
        /// Who asked.
        principal: Name,
        /// Their idempotency key.
        key: String,
        /// The grant.
        grant: GrantId,
    },
    /// Keeps a policy.
    PutPolicy {
        /// The policy.
        policy: Policy,
        /// What must hold of the record before.
        expect: Expect,
    },
    /// Deletes a policy; conflicts where there is none.
    DeletePolicy {
        /// Its name.
        name: Name,
    },
    /// Keeps an agent.
    PutAgent {
        /// The agent.
        agent: AgentRecord,
        /// What must hold of the record before.
        expect: Expect,
    },
    /// Keeps a join token.
    PutToken {
        /// Its hash.
        hash: TokenHash,
        /// What it is good for.
        token: TokenRecord,
    },
    /// Consumes a join token; conflicts where there is none. Of several at once, one succeeds.
    TakeToken {
        /// Its hash.
        hash: TokenHash,
    },
}

impl Change {
    /// The record that it changes, in words.
    fn subject(&self) -> String {
        match self {
            Self::PutGrant { grant, .. } => format!("the grant {}", grant.id),
            Self::RememberRequest { principal, key, .. } => format!("the request {key:?} of {principal}"),
            Self::PutPolicy { policy, .. } => format!("the policy {}", policy.name),
            Self::DeletePolicy { name } => format!("the policy {name}"),
            Self::PutAgent { agent, .. } => format!("the agent of {}", agent.target),
            Self::PutToken { .. } | Self::TakeToken { .. } => "the join token".to_owned(),
        }
    }
}

/// What must hold of a record before it is changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// There is none.
    Absent,
    /// It has this version.
    Version(Version),
    /// Anything.
    Any,
}

impl Expect {
    /// Whether it holds of a record with this version; none: there is no such record.
    fn holds(self, found: Option<Version>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Version(version) => found == Some(version),
            Self::Any => true,
        }
    }
}

/// Which grants to list.
#[derive(Debug, Clone, Default)]
pub struct GrantQuery {
    /// Only those with a window on this target.
    pub target: Option<TargetId>,
    /// Only those in one of these states, by word; empty: any.
    pub states: Vec<&'static str>,
    /// Only those of this principal.
    pub principal: Option<Name>,
    /// Only those older than this one (by id); for paging.
    pub before: Option<GrantId>,
    /// At most so many.
    pub limit: usize,
}

/// One target's part of the store, at one instant.
#[derive(Debug, Clone)]
pub struct TargetSnapshot {
    /// The grants with a window on it that are not in a final state, the oldest first.
    pub grants: Vec<Versioned<Grant>>,
    /// Every policy that covers it.
    pub policies: Vec<Policy>,
    /// The audit log's last record at that instant: it rises with every change, across restarts.
    pub seq: u64,
}

/// What is known of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Its target.
    pub target: TargetId,
    /// When it enrolled.
    pub enrolled_at: Timestamp,
    /// When its newest certificate ends.
    pub certificate_not_after: Timestamp,
    /// Set once it was banned; enrolling anew lifts the ban.
    pub banned: Option<Ban>,
}

/// Who banned an agent, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// Who.
    pub by: Principal,
    /// When.
    pub at: Timestamp,
    /// Why; may be empty.
    pub reason: String,
}

/// The SHA-256 of a join token's secret: the secret itself is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

/// What a join token is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The target whose agent may enrol with it.
    pub target: TargetId,
    /// When it stops working.
    pub expires_at: Timestamp,
}

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An expectation of the transaction does not hold; nothing was changed.
    #[error("{what} was changed by someone else in the meantime")]
    Conflict {
        /// The record.
        what: String,
    },
    /// The transaction changes records without an audit event, which is a mistake of the caller; nothing was changed.
    #[error("a transaction changes records without an audit event")]
    Silent,
    /// There is no room; nothing was changed.
    #[error("the store has no room left; free disk space on the broker's data directory")]
    Full,
    /// The store was written by a newer Postern; nothing was touched.
    #[error(
        "the store has schema {found} and this broker knows {known}; run the newer broker, or restore a backup"
    )]
    NewerSchema {
        /// The store's.
        found: u32,
        /// This broker's.
        known: u32,
    },
    /// A record cannot be read.
    #[error("the store holds a {what} that cannot be read; restore a backup")]
    Corrupt {
        /// What kind of record.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store cannot be reached or failed; a commit may or may not have happened.
    #[error("the store failed")]
    Unavailable {
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
