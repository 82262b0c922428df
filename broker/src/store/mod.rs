//! The store: what the broker must not forget.
//!
//! A record is changed by compare-and-set on its version, and everything that belongs together (a grant, its
//! idempotency key, its audit lines) is one [`Transaction`], durable before [`Store::commit`] returns: that is
//! what I4 and I9 stand on. A store keeps no timers; no record here ever expires by itself.

mod bodies;
#[cfg(test)]
pub(crate) mod conformance;
pub mod coordination;
pub mod embedded;
mod error;
#[cfg(test)]
pub mod memory;
mod records;
pub mod redis;
pub mod single_broker;
mod transaction;
pub mod transfer;

use async_trait::async_trait;
use postern_core::audit::Head;
use postern_core::{Grant, GrantId, Name, Policy, TargetId};

pub use coordination::{Coordination, Lease};
pub use error::{MigrationError, StoreError};
pub use records::{AgentRecord, Ban, RecordKind, TokenHash, TokenRecord, Version, Versioned};
pub use transaction::{Change, Expect, Transaction};

/// Keeps grants, policies, agents and the audit log.
///
/// Every implementation passes the suite in `conformance.rs`. Methods may be called from many tasks at once.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies all of the transaction or none of it, durably, and appends its audit events in order.
    ///
    /// Returns the head of the audit log after this transaction; one that is empty changes nothing. Where every
    /// change is conditional, a transaction that is repeated after an unknown outcome either conflicts or has the
    /// same effect.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] where an expectation does not hold, [`StoreError::Unaudited`] for changes without an
    /// audit event; nothing was changed. Of the others the outcome is unknown only for [`StoreError::Unavailable`].
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

    /// What the reconciler needs of one target, read at one instant. Whatever it acts on is as durable as an answer.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where the lease is held no more.
    async fn snapshot(&self, lease: &Lease) -> Result<TargetSnapshot, StoreError>;

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

    /// Ends once this process cannot trust the store any more, with the reason; usually never.
    async fn lost(&self) -> String {
        std::future::pending().await
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
