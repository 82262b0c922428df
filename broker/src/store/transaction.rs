//! What is changed together, and what must hold before.

use postern_core::audit::AuditEvent;
use postern_core::{Grant, GrantId, Name, Policy};

use super::coordination::Lease;
use super::{AgentRecord, TokenHash, TokenRecord, Version};

/// Changes that happen together or not at all. One with changes has an audit event, too (I9).
#[derive(Debug, Clone, Default)]
pub struct Transaction {
    /// The changes, applied in order.
    pub changes: Vec<Change>,
    /// What the audit log says of them.
    pub audit: Vec<AuditEvent>,
    /// By what right, where that is needed: a lease that is held no more changes nothing.
    pub under: Option<Lease>,
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

    /// By the right of a lease.
    #[must_use]
    pub fn under(mut self, lease: Lease) -> Self {
        self.under = Some(lease);
        self
    }

    /// Whether it would change something without a word in the audit log, which no store does.
    pub(super) fn is_unaudited(&self) -> bool {
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
    pub(super) fn holds(self, found: Option<Version>) -> bool {
        match self {
            Self::Absent => found.is_none(),
            Self::Version(version) => found == Some(version),
            Self::Any => true,
        }
    }
}
