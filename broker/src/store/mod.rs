//! The store: everything that the broker must not forget.
//!
//! **The problem.** A broker answers "your window opens" and may die in the next moment. The window has to end anyway, an
//! administrator has to see who asked, and the same request sent twice must not make two grants. So a broker acts only on
//! what is in its store, and answers only after the store has it.
//!
//! **The words.**
//!
//! - A *record* is a grant, a policy, an agent, a join token, or the grant that an idempotency key made (`records.rs`).
//! - A *version* counts the changes of one record, from 1. A caller reads a record with its version and says with a
//!   [`Change`] which version it expects ([`Expect`]); the store refuses the change if the record has another one by then.
//! - A [`Transaction`] holds the changes that belong together and the audit events that describe them.
//! - The *audit log* is a chain: each record has a number and the hash of the record before it, so that a changed, missing
//!   or moved line shows (I9). Its end, number and hash, is the *head*. The number rises with every change of the store,
//!   and serves as the generation of what agents are sent.
//!
//! **The rule.** [`Store::commit`] applies all of a transaction or none of it, appends its audit events in the same step,
//! and returns only when both are durable (I4). An answer from a read waits for the same ([`Durable`]). A transaction with
//! changes and no audit event is refused (I9). Nothing in a store expires by itself: a store keeps no timers, and no record
//! has a time to live.
//!
//! **On failure.** [`StoreError::Conflict`], [`StoreError::Fenced`], [`StoreError::Full`] and [`StoreError::Unaudited`]
//! mean that nothing was changed. After [`StoreError::Unavailable`] the transaction may or may not have been applied. The
//! caller sends it again: if its changes are conditional, it then conflicts or has the same effect. A record that cannot
//! be read is an error, never an absent record. A store that lost confirmed records ends the broker ([`Store::lost`]).
//!
//! The implementations are SQLite for one broker ([`embedded`]) and Redis for several ([`redis`]); both pass
//! `conformance.rs`. How several brokers share one store is [`coordination`], and how a store moves is [`transfer`].

mod bodies;
#[cfg(test)]
pub(crate) mod conformance;
pub mod coordination;
mod durable;
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
use postern_core::{Grant, GrantId, Name, Policy, PrincipalKey, TargetId};

pub use coordination::{Coordination, Lease};
pub use durable::Durable;
pub use error::{MigrationError, StoreError};
pub use records::{
    AgentRecord, Ban, CloneAlarm, Forgotten, RecordKind, TokenHash, TokenRecord, Version, Versioned,
};
pub use transaction::{Change, Expect, Transaction};

/// A store of grants, policies, agents and the audit log.
///
/// Every implementation passes the suite in `conformance.rs`. Many tasks may call its methods at once.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Applies all of the transaction or none of it, durably, and appends its audit events in order.
    ///
    /// Returns the head of the audit log after this transaction. An empty transaction changes nothing. If every change is
    /// conditional, a transaction that is sent again after an unknown outcome either conflicts or has the same effect.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if an expectation does not hold, [`StoreError::Unaudited`] for changes without an audit
    /// event; nothing was changed. Of the other errors only [`StoreError::Unavailable`] leaves the outcome unknown.
    async fn commit(&self, transaction: Transaction) -> Result<Head, StoreError>;

    /// Returns a grant.
    ///
    /// # Errors
    /// Here and in every other read: the store failed, or a record in it cannot be read.
    async fn grant(&self, id: GrantId) -> Result<Option<Versioned<Grant>>, StoreError>;

    /// Returns a grant, or that there is none, once that is as durable as an answered commit.
    ///
    /// # Errors
    /// It may be lost with the server that has it.
    async fn durable_grant(&self, id: GrantId) -> Result<Durable<Option<Versioned<Grant>>>, StoreError>;

    /// Returns the grants that match the query, by id, the newest first.
    async fn grants(&self, query: GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError>;

    /// Returns every grant that is not in a final state, the oldest first.
    async fn open_grants(&self) -> Result<Vec<Versioned<Grant>>, StoreError>;

    /// Returns the grant that the principal's request with this key made.
    async fn grant_of_request(
        &self,
        principal: &PrincipalKey,
        key: &str,
    ) -> Result<Option<GrantId>, StoreError>;

    /// Returns the records of one target that the reconciler needs, read at one instant. They are as durable as an answered
    /// commit.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if this broker no longer holds the lease.
    async fn snapshot(&self, lease: &Lease) -> Result<TargetSnapshot, StoreError>;

    /// Returns every policy, in the order of their names.
    async fn policies(&self) -> Result<Vec<Versioned<Policy>>, StoreError>;

    /// Returns a policy.
    async fn policy(&self, name: &Name) -> Result<Option<Versioned<Policy>>, StoreError>;

    /// Returns a policy, or that there is none, once that is as durable as an answered commit.
    ///
    /// # Errors
    /// It may be lost with the server that has it.
    async fn durable_policy(&self, name: &Name) -> Result<Durable<Option<Versioned<Policy>>>, StoreError>;

    /// Returns every agent, in the order of their targets.
    async fn agents(&self) -> Result<Vec<Versioned<AgentRecord>>, StoreError>;

    /// Returns the agent of a target.
    async fn agent(&self, target: &TargetId) -> Result<Option<Versioned<AgentRecord>>, StoreError>;

    /// Returns the join token with this hash.
    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, StoreError>;

    /// Returns up to `limit` lines of the audit log after record `after`, in order.
    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError>;

    /// Returns the end of the audit log.
    async fn audit_head(&self) -> Result<Head, StoreError>;

    /// Waits until this process can no longer trust the store, and returns the reason; usually it waits forever.
    async fn lost(&self) -> String {
        std::future::pending().await
    }

    /// Waits until a task of the store has ended without which it does nothing, and returns its name; usually it waits forever.
    async fn ended(&self) -> String {
        std::future::pending().await
    }
}

impl<T> Durable<T> {
    /// Commits the transaction, and returns the value that holds after it.
    ///
    /// # Errors
    /// As [`Store::commit`].
    pub async fn commit(store: &dyn Store, transaction: Transaction, value: T) -> Result<Self, StoreError> {
        store.commit(transaction).await.map(|_| Self::new(value))
    }
}

/// A selection of grants.
#[derive(Debug, Clone, Default)]
pub struct GrantQuery {
    /// Only those with a window on this target.
    pub target: Option<TargetId>,
    /// Only those in one of these states, by word; empty: any.
    pub states: Vec<&'static str>,
    /// Only those of this principal.
    pub principal: Option<PrincipalKey>,
    /// Only those older than this one (by id); for paging.
    pub before: Option<GrantId>,
    /// The most grants to return.
    pub limit: usize,
}

/// The part of the store that concerns one target, at one instant.
#[derive(Debug, Clone)]
pub struct TargetSnapshot {
    /// The grants with a window on the target that are not in a final state, the oldest first.
    pub grants: Vec<Versioned<Grant>>,
    /// Every policy that covers the target.
    pub policies: Vec<Policy>,
    /// The number of the last audit record at that instant; it rises with every change, across restarts.
    pub seq: u64,
}
