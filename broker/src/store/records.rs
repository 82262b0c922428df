//! The records that a store keeps, apart from those of `postern_core`.

use jiff::Timestamp;
use postern_core::{AgentKeys, Principal, TargetId};
use serde::{Deserialize, Serialize};

/// The count of a record's changes, from 1. A policy that is deleted and put again counts on, so that a version that was
/// read before the deletion never fits a later record.
pub type Version = u64;

/// A record and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    /// The record.
    pub record: T,
    /// The version, for the compare-and-set of the next change.
    pub version: Version,
}

/// An enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// The target.
    pub target: TargetId,
    /// The time of its enrolment.
    pub enrolled_at: Timestamp,
    /// The end of the certificate of this target that ends last.
    pub certificate_not_after: Timestamp,
    /// The ban of this agent, if it is banned; enrolling again lifts it.
    pub banned: Option<Ban>,
    /// The keys that admit it; none in a record of a version that did not keep them.
    #[serde(default)]
    pub keys: Option<AgentKeys>,
    /// The alarm that two machines hold its identity; a ban and enrolling again end it.
    #[serde(default)]
    pub cloned: Option<CloneAlarm>,
    /// Set once an administrator has had the agent forgotten; enrolling again makes a new record.
    #[serde(default)]
    pub forgotten: Option<Forgotten>,
}

impl AgentRecord {
    /// Makes the record of an agent that has enrolled.
    pub fn enrolled(
        target: TargetId,
        enrolled_at: Timestamp,
        certificate_not_after: Timestamp,
        keys: AgentKeys,
    ) -> Self {
        let keys = Some(keys);
        Self { target, enrolled_at, certificate_not_after, banned: None, keys, cloned: None, forgotten: None }
    }
}

/// An alarm that two machines hold the identity of one agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneAlarm {
    /// The first refused attempt.
    pub first_at: Timestamp,
    /// The last refused attempt that was recorded.
    pub last_at: Timestamp,
    /// The number of attempts that were recorded.
    pub attempts: u64,
    /// The reason of the last refusal.
    pub reason: String,
}

/// The end of an agent that is gone for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// The administrator who had it forgotten.
    pub by: Principal,
    /// The time from which nothing waits for it.
    pub at: Timestamp,
    /// The reason; may be empty.
    pub reason: String,
}

/// A ban of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ban {
    /// The administrator who banned it.
    pub by: Principal,
    /// The time of the ban.
    pub at: Timestamp,
    /// The reason; may be empty.
    pub reason: String,
}

/// The SHA-256 of a join token's secret; the store does not keep the secret itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The target whose agent may enrol with it.
    pub target: TargetId,
    /// The time at which it was made.
    pub created_at: Timestamp,
    /// The time from which it is refused.
    pub expires_at: Timestamp,
}

/// A kind of record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKind {
    /// The audit log.
    Audit,
    /// Grants, open and closed.
    Grants,
    /// Idempotency keys.
    Requests,
    /// Policies, with the versions of deleted ones.
    Policies,
    /// Agents.
    Agents,
    /// Join tokens.
    Tokens,
}

impl RecordKind {
    /// Every kind, in the order in which a store is moved.
    pub(super) const ALL: [Self; 6] =
        [Self::Audit, Self::Grants, Self::Requests, Self::Policies, Self::Agents, Self::Tokens];
}

impl std::fmt::Display for RecordKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Audit => "audit records",
            Self::Grants => "grants",
            Self::Requests => "requests",
            Self::Policies => "policies",
            Self::Agents => "agents",
            Self::Tokens => "join tokens",
        })
    }
}
