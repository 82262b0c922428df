//! The agent that calls.

use std::net::IpAddr;

use jiff::Timestamp;
use postern_core::TargetId;
use postern_core::agent_keys::{KeyHash, ShownKey};
use postern_store::AgentRecord;

/// An agent that calls, as its certificate proves it.
#[derive(Debug, Clone)]
pub struct AgentCaller {
    /// Its target.
    pub target: TargetId,
    /// The key of its certificate.
    pub key: KeyHash,
    /// The end of its certificate.
    pub certificate_not_after: Timestamp,
    /// The address that the broker sees.
    pub address: Option<IpAddr>,
}

impl AgentCaller {
    /// Returns the key as this record sees it.
    pub(super) fn shown_to(&self, record: &AgentRecord) -> ShownKey {
        ShownKey { key: self.key, is_later: self.certificate_not_after > record.certificate_not_after }
    }
}
