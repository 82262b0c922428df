//! The records that a store keeps, apart from those of `postern_core`.

use jiff::Timestamp;
use postern_core::{Principal, TargetId};
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
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stops working.
    pub expires_at: Timestamp,
}

/// What a store keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKind {
    /// The audit log.
    Audit,
    /// Grants, open and closed.
    Grants,
    /// Idempotency keys.
    Requests,
    /// Policies, and the versions of deleted ones.
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
