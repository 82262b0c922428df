//! Changes that happen together, and the versions that they expect.

use postern_core::audit::AuditEvent;
use postern_core::{Grant, GrantId, Name, Policy};

use super::coordination::Lease;
use super::{AgentRecord, TokenHash, TokenRecord, Version};

/// Changes that happen together or not at all. A transaction with changes has an audit event, too (I9).
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// The changes, applied in order.
    pub changes: Vec<Change>,
    /// The audit events that describe them.
    pub audit: Vec<AuditEvent>,
    /// The lease that the changes need, if any: the store refuses them once another broker holds it.
    pub under: Option<Lease>,
}

impl Transaction {
    /// Adds a change.
    #[must_use]
    pub fn change(mut self, change: Change) -> Self {
        self.changes.push(change);
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

    /// Reports whether the transaction changes records without an audit event, which no store accepts.
    pub(super) fn is_unaudited(&self) -> bool {
        self.audit.is_empty() && !self.changes.is_empty()
    }
}

/// A change of one record.
#[derive(Debug, Clone)]
pub enum Change {
    /// Writes a grant.
    PutGrant {
        /// The grant.
        grant: Grant,
        /// The condition on the record before the change.
        expect: Expect,
    },
    /// Remembers the grant that a request made; conflicts if the key is known.
    RememberRequest {
        /// The principal who sent the request.
        principal: Name,
        /// The request's idempotency key.
        key: String,
        /// The grant.
        grant: GrantId,
    },
    /// Writes a policy.
    PutPolicy {
        /// The policy.
        policy: Policy,
        /// The condition on the record before the change.
        expect: Expect,
    },
    /// Deletes a policy; conflicts if there is none.
    DeletePolicy {
        /// The name of the policy.
        name: Name,
    },
    /// Writes an agent.
    PutAgent {
        /// The agent.
        agent: AgentRecord,
        /// The condition on the record before the change.
        expect: Expect,
    },
    /// Writes a join token.
    PutToken {
        /// The hash of the token.
        hash: TokenHash,
        /// The token.
        token: TokenRecord,
    },
    /// Consumes a join token; conflicts if there is none. Of several callers at once, one succeeds.
    TakeToken {
        /// The hash of the token.
        hash: TokenHash,
    },
}

impl Change {
    /// Names the record that the change is about, for an error.
    pub(super) fn subject(&self) -> String {
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

/// The condition under which a change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The record does not exist.
    Absent,
    /// The record has this version.
    Version(Version),
    /// No condition.
    Any,
}

impl Expect {
    /// Reports whether the condition holds for a record with this version; `None`: there is no such record.
    pub(super) fn holds(self, found: Option<Version>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Version(version) => found == Some(version),
            Self::Any => true,
        }
    }
}
