//! Authentication: an authenticator turns the proof that a caller shows into an [`Authenticated`] caller.
//!
//! Everything behind it (the limits, the permission table, the audit log, the use cases) works with the authenticated caller
//! and does not know its proof. Today there is one authenticator: [`CertificateAuthenticator`] reads the SPIFFE id of a
//! client certificate, which the TLS handshake has verified. An authenticator of another kind makes the same type, with an
//! issuer of its own.
//!
//! A caller is keyed by its issuer and its subject there. The key is never shown; people and the audit log see the display
//! name. The records of the store name a principal by its name alone, which is unambiguous because one issuer makes every
//! principal. A second issuer needs records that hold the key before its principals are admitted (I7).

use jiff::Timestamp;
use postern_pki::identity::{Identity, TrustDomain};

use crate::app::PrincipalKey;

/// A caller that an authenticator has established.
#[derive(Debug)]
pub(super) struct Authenticated {
    /// The identity: a principal in a role, the agent of a target, or a broker.
    pub(super) identity: Identity,
    /// The issuer of the identity, and its subject there.
    pub(super) key: PrincipalKey,
    /// The name for people, logs and the audit log.
    pub(super) display_name: String,
    /// The end of the proof.
    pub(super) not_after: Timestamp,
}

/// Authenticates callers by their client certificates.
pub(super) struct CertificateAuthenticator {
    trust_domain: TrustDomain,
}

impl CertificateAuthenticator {
    pub(super) fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain }
    }

    /// Reads the caller from a certificate (DER) that the handshake has verified.
    ///
    /// # Errors
    /// The certificate has no SPIFFE id of the trust domain.
    pub(super) fn authenticate(&self, leaf: &[u8]) -> anyhow::Result<Authenticated> {
        let identity = Identity::of_certificate(leaf, &self.trust_domain)?;
        Ok(self.authenticated(identity, postern_pki::identity::not_after(leaf)?))
    }

    /// Returns the caller with this identity, as this authenticator keys and names it.
    pub(super) fn authenticated(&self, identity: Identity, not_after: Timestamp) -> Authenticated {
        let display_name = match &identity {
            Identity::Principal(principal) => principal.to_string(),
            Identity::Agent(target) => format!("agent/{target}"),
            Identity::Broker => "broker".into(),
        };
        // A principal that has certificates in several roles is one principal.
        let subject = match &identity {
            Identity::Principal(principal) => format!("principal/{}", principal.name),
            Identity::Agent(_) | Identity::Broker => display_name.clone(),
        };
        let key = PrincipalKey { issuer: format!("spiffe://{}", self.trust_domain), subject };
        Authenticated { identity, key, display_name, not_after }
    }
}

#[cfg(test)]
mod tests {
    use postern_core::{Principal, Role};

    use super::*;
    use crate::testing::builders::{name, start};

    #[test]
    fn a_principal_has_one_key_in_every_role_and_a_display_name_with_its_role() {
        let authenticator = CertificateAuthenticator::new(TrustDomain::new("example").unwrap());
        let caller = |role| {
            let identity = Identity::Principal(Principal { role, name: name("alice") });
            authenticator.authenticated(identity, start())
        };
        let (requester, reader) = (caller(Role::Requester), caller(Role::Reader));
        assert_eq!(requester.key, reader.key);
        assert_eq!(
            (&*requester.key.issuer, &*requester.key.subject),
            ("spiffe://example", "principal/alice")
        );
        assert_eq!((&*requester.display_name, &*reader.display_name), ("requester/alice", "reader/alice"));
    }

    #[test]
    fn a_principal_whose_name_is_that_of_another_identity_has_another_key() {
        let authenticator = CertificateAuthenticator::new(TrustDomain::new("example").unwrap());
        let key = |identity| authenticator.authenticated(identity, start()).key;
        let principal = Principal { role: Role::Requester, name: name("broker") };
        assert_ne!(key(Identity::Principal(principal)), key(Identity::Broker));
    }
}
