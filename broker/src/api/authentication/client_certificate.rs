//! A client certificate as the broker has read it: its SPIFFE id names the caller.
//!
//! The TLS handshake verifies the certificate, and the broker reads it once for each connection. Each request of the connection
//! then shares the caller that was read.

use std::sync::Arc;

use postern_core::{CallerKind, KeyHash, Principal};
use postern_pki::CertificateFacts;
use postern_pki::identity::{SpiffeId, TrustDomain, key_hash};
use postern_pki::purpose::{self, PurposeError};

use super::authenticated::{Authenticated, Refusal};
use crate::principals::Issuance;

/// The answer to a call with a certificate past its end.
const EXPIRED: Refusal = Refusal::unauthenticated(
    "CERTIFICATE_EXPIRED",
    "your certificate has expired; renew it and connect again",
);

/// A client certificate that the handshake has verified, as the broker has read it.
#[derive(Debug)]
pub struct ClientCertificate {
    caller: Arc<Authenticated>,
}

impl ClientCertificate {
    /// Reads a certificate (DER) that the handshake has verified, with those that came with it.
    ///
    /// # Errors
    /// The certificate has no SPIFFE id of the trust domain.
    pub(in crate::api) fn read<C: AsRef<[u8]>>(
        leaf: &[u8],
        others: &[C],
        trust_domain: &TrustDomain,
    ) -> Result<Self, PurposeError> {
        let id = SpiffeId::of_certificate(leaf, trust_domain)?;
        let signers = purpose::signer_keys(leaf, others)?;
        Ok(Self::with_key(id, CertificateFacts::read(leaf)?, Some(key_hash(leaf)?), signers))
    }

    /// Makes the certificate with this id and these facts, and without a key, for tests.
    #[cfg(test)]
    pub(in crate::api) fn of(id: SpiffeId, facts: CertificateFacts) -> Self {
        Self::with_key(id, facts, None, Vec::new())
    }

    fn with_key(
        id: SpiffeId,
        facts: CertificateFacts,
        certificate_key: Option<KeyHash>,
        signers: Vec<KeyHash>,
    ) -> Self {
        let kind = match id {
            SpiffeId::Principal { role, name } => CallerKind::Principal(Principal::local(role, name)),
            SpiffeId::Agent(target) => CallerKind::Agent(target),
            SpiffeId::Broker => CallerKind::Broker,
        };
        let CertificateFacts { serial, issued_at, not_after } = facts;
        let issuance = Issuance { at: issued_at, serial: Some(serial) };
        let when_expired = EXPIRED;
        let caller = Authenticated { kind, issuance, certificate_key, signers, not_after, when_expired };
        Self { caller: Arc::new(caller) }
    }

    /// Makes the certificate with this id that was issued just now and is valid until then, for tests.
    #[cfg(test)]
    pub(in crate::api) fn valid_until(id: SpiffeId, not_after: jiff::Timestamp) -> Self {
        let serial = postern_core::CertificateSerial::new("0a").unwrap();
        Self::of(id, CertificateFacts { serial, issued_at: crate::clock::wall(), not_after })
    }

    /// Returns the caller that the certificate names.
    pub(in crate::api) fn caller(&self) -> &Arc<Authenticated> {
        &self.caller
    }
}

#[cfg(test)]
mod tests {
    use postern_core::{PrincipalKey, Role};

    use super::*;
    use crate::testing::builders::{name, start};

    fn kind(id: SpiffeId) -> CallerKind {
        ClientCertificate::valid_until(id, start()).caller().kind.clone()
    }

    #[test]
    fn a_principal_has_one_key_in_every_role_and_is_shown_with_its_role() {
        let alice = |role| match kind(SpiffeId::Principal { role, name: name("alice") }) {
            CallerKind::Principal(principal) => principal,
            CallerKind::Agent(_) | CallerKind::Broker => panic!("alice is a principal"),
        };
        let (requester, reader) = (alice(Role::Requester), alice(Role::Reader));
        assert_eq!(requester.key(), reader.key());
        assert_eq!(*requester.key(), PrincipalKey::Local(name("alice")));
        assert_eq!(
            (requester.to_string(), reader.to_string()),
            ("requester/alice".into(), "reader/alice".into())
        );
    }

    #[test]
    fn i7_a_principal_that_is_named_like_another_party_is_not_that_party() {
        let principal = kind(SpiffeId::Principal { role: Role::Requester, name: name("broker") });
        assert_ne!(principal, kind(SpiffeId::Broker));
        assert_ne!(principal.to_string(), kind(SpiffeId::Broker).to_string());
    }
}
