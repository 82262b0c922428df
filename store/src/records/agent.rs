//! Enrolled agents, by their targets.

use jiff::Timestamp;
use postern_core::{AgentKeys, KeyHash, Principal, TargetId};
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
    /// The roots that the agent trusts, by the hashes of their public keys, as it reported them last while a root was being replaced.
    #[serde(default)]
    pub roots: Vec<KeyHash>,
    /// The root under which its newest certificate was signed, by the hash of its public key; none if the record does not know it.
    #[serde(default)]
    pub certificate_root: Option<KeyHash>,
}

impl AgentRecord {
    /// Makes the record of an agent that has enrolled.
    pub fn enrolled(
        target: TargetId,
        enrolled_at: Timestamp,
        certificate_not_after: Timestamp,
        keys: AgentKeys,
    ) -> Self {
        Self {
            target,
            enrolled_at,
            certificate_not_after,
            banned: None,
            keys: Some(keys),
            cloned: None,
            forgotten: None,
            roots: Vec::new(),
            certificate_root: None,
        }
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

impl Record for AgentRecord {
    const KIND: Kind = Kind::new("agents", "agent").sealed().announced();
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
