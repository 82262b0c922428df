//! The outcome of an authentication: a caller, or the refusal of its proof.

use std::borrow::Cow;

use jiff::Timestamp;
use postern_core::{CallerKind, KeyHash};
use postern_proto::status::plain;
use tonic::{Code, Status};

use crate::principals::{Issuance, Revocations};

/// A caller that an authenticator has established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    /// The party that calls: a principal in a role, the agent of a target, or a broker.
    pub kind: CallerKind,
    /// The origin of the proof, by which it can be revoked.
    pub issuance: Issuance,
    /// The key of the certificate that is the proof; none for a proof of another kind.
    pub certificate_key: Option<KeyHash>,
    /// The keys of the intermediates that signed the certificate that is the proof; none for a proof of another kind.
    pub signers: Vec<KeyHash>,
    /// The end of the proof, by the wall clock.
    pub not_after: Timestamp,
    /// The answer to a call after that end, and the last word of a stream that lasts until then.
    pub when_expired: Refusal,
}

impl Authenticated {
    /// Reports whether the proof is revoked, or the intermediate that signed it. An agent is banned instead, and one whose
    /// intermediate is revoked proves itself by the key that its record knows ([`crate::app::agents`]).
    pub(in crate::api) fn is_revoked(&self, revocations: &Revocations) -> bool {
        match &self.kind {
            CallerKind::Principal(principal) => {
                revocations.cover(principal.key(), &self.issuance) || revocations.cover_signers(&self.signers)
            }
            CallerKind::Broker => revocations.cover_signers(&self.signers),
            CallerKind::Agent(_) => false,
        }
    }

    /// Waits until the proof is revoked, or the intermediate that signed it; for ever for an agent's.
    pub(in crate::api) async fn until_revoked(&self, revocations: &Revocations) {
        match &self.kind {
            CallerKind::Principal(principal) => tokio::select! {
                () = revocations.until_covered(principal.key(), &self.issuance) => {}
                () = revocations.until_signers_covered(&self.signers) => {}
            },
            CallerKind::Broker => revocations.until_signers_covered(&self.signers).await,
            CallerKind::Agent(_) => std::future::pending().await,
        }
    }
}

/// The answer to a call with a proof that is revoked.
pub(in crate::api) const REVOKED: Refusal = Refusal::unauthenticated(
    "PROOF_REVOKED",
    "your certificate or token was revoked; ask an administrator for a new one",
);

/// The answer to a proof that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// [`Code::Unauthenticated`], or [`Code::Unavailable`] if the authenticator cannot decide.
    pub code: Code,
    /// A stable reason for machines.
    pub reason: &'static str,
    /// The problem and the remedy, without the proof itself.
    pub message: Cow<'static, str>,
}

impl Refusal {
    /// Makes the refusal of a proof that the authenticator does not accept.
    pub const fn unauthenticated(reason: &'static str, message: &'static str) -> Self {
        Self { code: Code::Unauthenticated, reason, message: Cow::Borrowed(message) }
    }

    /// Converts the refusal into the status of the call.
    pub(in crate::api) fn to_status(&self) -> Status {
        plain(self.code, self.reason, &*self.message)
    }
}
