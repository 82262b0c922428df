//! A client certificate as the broker has read it: its SPIFFE id names the caller.
//!
//! The TLS handshake verifies the certificate, and the broker reads it once for each connection. Each request of the connection
//! then shares the caller that was read.

use std::sync::Arc;

use jiff::Timestamp;
use postern_core::{CallerKind, KeyHash, Principal};
use postern_pki::identity::{SpiffeId, SpiffeIdError, TrustDomain, key_hash, not_after};

use super::authenticated::{Authenticated, Refusal};

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
    /// Reads a certificate (DER) that the handshake has verified.
    ///
    /// # Errors
    /// The certificate has no SPIFFE id of the trust domain.
    pub(in crate::api) fn read(leaf: &[u8], trust_domain: &TrustDomain) -> Result<Self, SpiffeIdError> {
        let (id, key) = (SpiffeId::of_certificate(leaf, trust_domain)?, key_hash(leaf)?);
        Ok(Self::with_key(id, Some(key), not_after(leaf)?))
    }

    /// Makes the certificate with this id, which is valid until then.
    #[cfg(test)]
    pub(in crate::api) fn of(id: SpiffeId, not_after: Timestamp) -> Self {
        Self::with_key(id, None, not_after)
    }

    fn with_key(id: SpiffeId, certificate_key: Option<KeyHash>, not_after: Timestamp) -> Self {
        let kind = match id {
            SpiffeId::Principal { role, name } => CallerKind::Principal(Principal::local(role, name)),
            SpiffeId::Agent(target) => CallerKind::Agent(target),
            SpiffeId::Broker => CallerKind::Broker,
        };
        Self { caller: Arc::new(Authenticated { kind, certificate_key, not_after, when_expired: EXPIRED }) }
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
        ClientCertificate::of(id, start()).caller().kind.clone()
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
