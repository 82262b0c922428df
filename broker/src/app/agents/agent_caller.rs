//! The agent that calls.

use std::net::IpAddr;

use jiff::Timestamp;
use postern_core::TargetId;
use postern_core::agent_keys::{KeyHash, ShownKey};
use postern_store::AgentRecord;

use crate::principals::Revocations;

/// An agent that calls, as its certificate proves it.
#[derive(Debug, Clone)]
pub struct AgentCaller {
    /// Its target.
    pub target: TargetId,
    /// The key of its certificate.
    pub key: KeyHash,
    /// The time at which its certificate was signed, in whole seconds.
    pub certificate_issued_at: Timestamp,
    /// The end of its certificate.
    pub certificate_not_after: Timestamp,
    /// The keys of the intermediates that signed its certificate.
    pub signers: Vec<KeyHash>,
    /// The address that the broker sees.
    pub address: Option<IpAddr>,
}

impl AgentCaller {
    /// Reports whether the intermediate that signed its certificate is revoked.
    pub(super) fn is_signer_revoked(&self, revocations: &Revocations) -> bool {
        revocations.cover_signers(&self.signers)
    }

    /// Returns the key as this record sees it. The end of a certificate proves nothing if its intermediate is revoked: the thief
    /// of the intermediate's key writes any end.
    pub(super) fn shown_to(&self, record: &AgentRecord, revocations: &Revocations) -> ShownKey {
        let is_later = self.certificate_not_after > record.certificate_not_after;
        ShownKey { key: self.key, is_later: is_later && !self.is_signer_revoked(revocations) }
    }
}
