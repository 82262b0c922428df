//! The store: everything that the broker must not forget.
//!
//! **The problem.** A broker answers "your window opens" and may die in the next moment. The window has to end anyway, an
//! administrator has to see who asked, and the same request sent twice must not make two grants. So a broker acts only on
//! what is in its store, and answers only after the store has it.
//!
//! **The words.**
//!
//! - A *record* is one thing that the broker keeps: a grant, a policy, an agent, a revocation. Each *kind* of record is one file
//!   in `records/`, which says how its key is written and in which *indexes* a record is ([`Record`]).
//! - A *version* counts the changes of one record, from 1. A caller reads a record with its version and says with each write
//!   which version it expects ([`Expect`]); the store refuses the write if the record has another one by then.
//! - A [`Transaction`] holds the writes that belong together and the audit events that describe them.
//! - The *audit log* is a chain: each record has a number and the hash of the record before it, so that a changed, missing
//!   or moved line shows (I9). Its end, number and hash, is the *head*. Old records may leave the store once they are elsewhere
//!   ([`Transaction::cut_audit`]); the head of the last one that left is the *base*, from which the rest of the chain goes on. The number rises with every change of the store,
//!   and serves as the generation of what agents are sent.
//! - A *seal* shows that a broker wrote a record (`seal.rs`). [`Store`] seals every record that gives or takes rights, and takes
//!   none whose seal does not fit.
//! - A [`Backend`] is a database under the store. It keeps *documents*: keys, versions, texts and the names of indexes. No
//!   backend knows a kind of record, and [`Store`] is the thin layer that gives the documents their types.
//!
//! **The rule.** [`Store::commit`] applies all of a transaction or none of it, appends its audit events in the same step,
//! and returns only when both are durable (I4). An answer from a read waits for the same ([`Durable`]). A transaction with
//! writes and no audit event is refused (I9). Nothing in a store expires by itself: a store keeps no timers, and no record
//! has a time to live.
//!
//! **On failure.** [`StoreError::Conflict`], [`StoreError::Fenced`], [`StoreError::Full`],
//! [`StoreError::LowOnSpace`] and [`StoreError::Unaudited`] mean that nothing was changed. After [`StoreError::Unavailable`] the transaction may or may not have been applied. The
//! caller sends it again: if its writes are conditional, it then conflicts or has the same effect. A record that cannot
//! be read is an error, never an absent record; a forged one gives no right ([`StoreError::Forged`]). A store that lost confirmed records ends the broker ([`Store::lost`]).
//!
//! The backends are SQLite for one broker ([`embedded`]) and Redis for several ([`redis`]); both pass
//! `testing/conformance.rs`. How several brokers share one store is [`coordination`], and how a store moves is [`transfer`].

mod backend;
mod batch;
mod body;
pub mod coordination;
mod document;
mod durable;
pub mod embedded;
mod error;
#[cfg(test)]
mod forged_tests;
mod forgeries;
mod headroom;
mod indexes;
mod kind;
mod paging;
mod record;
mod records;
pub mod redis;
mod room;
#[cfg(test)]
mod schema_2;
mod seal;
mod sealed_batch;
pub mod single_broker;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod transaction;
pub mod transfer;

pub use backend::{Backend, DocumentPage, Order, Range, Snapshot, SnapshotQuery};
pub use batch::{AuditCut, Batch, Expect, Put, Write};
pub use coordination::{Coordination, Lease};
pub use document::Document;
pub use durable::Durable;
pub use error::{MigrationError, StoreError};
pub use forgeries::{Forgeries, NewForgeries};
pub use headroom::{Reserve, RoomStatus};
pub use indexes::{ALL, Indexes};
pub use kind::{Kind, LastVersion, Part, Version};
pub use record::{ForgedRecord, Found, FoundPage, Record, RecordPage, Versioned};
pub use records::agent::{AgentRecord, Ban, CloneAlarm, Forgotten};
pub use records::grant::{GrantQuery, TargetSnapshot};
pub use records::intermediate::RevokedIntermediate;
pub use records::issued::{IssuedCertificate, IssuedPrincipal};
pub use records::manifest::{
    ComparedPolicies, KeptPolicies, PolicyManifest, PolicyMark, SeenPolicies, TheManifest,
};
pub use records::request::{RequestKey, RequestRecord};
pub use records::revocation::{Revocation, RevokedProof};
pub use records::token::{TokenHash, TokenRecord};
pub use room::{Medium, Room};
pub use seal::{RecordsKey, Sealer, Sealing};
pub use store::Store;
pub use transaction::Transaction;
