//! Enrolled agents, by their targets.

use jiff::Timestamp;
use postern_core::{Principal, TargetId};
use serde::{Deserialize, Serialize};

use crate::batch::Expect;
use crate::error::StoreError;
use crate::kind::Kind;
use crate::record::{Record, Versioned};
use crate::store::Store;
use crate::transaction::Transaction;

/// An enrolled agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// The target.
    pub target: TargetId,
    /// The time of its enrolment.
    pub enrolled_at: Timestamp,
    /// The end of its newest certificate.
    pub certificate_not_after: Timestamp,
    /// The ban of this agent, if it is banned; enrolling again lifts it.
    pub banned: Option<Ban>,
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

impl Record for AgentRecord {
    const KIND: Kind = Kind::new("agents", "agent").announced();
    type Key = TargetId;

    fn subject(key: &str) -> String {
        format!("the agent of {key}")
    }
}

impl Transaction {
    /// Writes an agent.
    #[must_use]
    pub fn put_agent(self, agent: AgentRecord, expect: Expect) -> Self {
        self.put(&agent.target.clone(), agent, expect)
    }
}

impl Store {
    /// Returns the agent of a target.
    ///
    /// # Errors
    /// The store failed, or the record cannot be read.
    pub async fn agent(&self, target: &TargetId) -> Result<Option<Versioned<AgentRecord>>, StoreError> {
        self.get(target).await
    }

    /// Returns every agent, in the order of their targets.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn agents(&self) -> Result<Vec<Versioned<AgentRecord>>, StoreError> {
        let mut agents: Vec<Versioned<AgentRecord>> = self.list().await?;
        // The order of targets is not that of their text.
        agents.sort_by(|a, b| a.record.target.cmp(&b.record.target));
        Ok(agents)
    }
}
