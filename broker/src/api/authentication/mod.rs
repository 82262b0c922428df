//! Authentication: an authenticator turns the proof that a request shows into an [`Authenticated`] caller.
//!
//! **The problem.** Agents and people prove themselves by certificates, pipelines and people by tokens of issuers, browsers by
//! sessions. Everything behind the authentication (the permission table, the audit log, the use cases) must treat them alike,
//! and must never take one for another.
//!
//! **The words.**
//!
//! - A *proof* is a part of a request: the client certificate of its connection, or a header ([`PresentedProof`]).
//! - An *authenticator* ([`Authenticator`]) knows one kind of proof. It says who calls, in which role, and until when the proof
//!   holds. For a proof of another kind it has no answer, and for a bad proof of its own kind it has a [`Refusal`].
//! - A principal's *key* is its issuer and its subject there ([`postern_core::principal`]). Only the certificates of the
//!   deployment's own authority make local principals; every other authenticator names its issuer.
//!
//! **The rule.** The broker asks its [`Authenticators`] in order, for each request. The first answer counts: a request that
//! shows several proofs is made by the caller of the first, and a refused proof is never made good by another one (I7).
//!
//! A proof of a principal can be revoked by its *issuance*: the time at which it was issued, and its serial number
//! ([`crate::principals`]). An authenticator reports both, and knows no revocation.
//!
//! **On failure.** An authenticator that cannot decide, for instance because it cannot reach its issuer, refuses with
//! [`tonic::Code::Unavailable`]. It bounds the time that it takes; a stream of messages has no other deadline.

mod authenticated;
mod authenticator;
mod certificate;
mod client_certificate;
#[cfg(test)]
pub(in crate::api) mod fake;

use std::fmt;
use std::sync::Arc;

pub(in crate::api) use authenticated::REVOKED;
pub use authenticated::{Authenticated, Refusal};
pub use authenticator::{Authenticator, PresentedProof};
pub use certificate::CertificateAuthenticator;
pub use client_certificate::ClientCertificate;

/// The authenticators of a broker, in the order in which it asks them.
#[derive(Clone)]
pub struct Authenticators(Vec<Arc<dyn Authenticator>>);

impl Default for Authenticators {
    /// Makes a list that accepts certificates alone.
    fn default() -> Self {
        Self(vec![Arc::new(CertificateAuthenticator)])
    }
}

impl Authenticators {
    /// Adds an authenticator, which is asked after those before it.
    #[must_use]
    pub fn and(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.0.push(authenticator);
        self
    }

    /// Returns the caller that the first authenticator with an answer establishes; none if the request shows no proof.
    ///
    /// # Errors
    /// The first authenticator with an answer refuses the proof.
    pub(in crate::api) async fn authenticate(
        &self,
        shown: &PresentedProof<'_>,
    ) -> Result<Option<Arc<Authenticated>>, Refusal> {
        for authenticator in &self.0 {
            if let Some(caller) = authenticator.authenticate(shown).await? {
                return Ok(Some(caller));
            }
        }
        Ok(None)
    }
}

impl fmt::Debug for Authenticators {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authenticators({})", self.0.len())
    }
}
