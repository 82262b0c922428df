//! Authentication: an authenticator turns the proof that a request shows into an [`Authenticated`] caller.
//!
//! **The problem.** Agents and people prove themselves by certificates, pipelines and people by tokens of issuers, browsers by
//! sessions. Everything behind the authentication (the permission table, the audit log, the use cases) must treat them alike,
//! and must never take one for another.
//!
//! **The words.**
//!
//! - A *proof* is a part of a request: the client certificate of its connection, or a header ([`Shown`]).
//! - An *authenticator* ([`Authenticator`]) knows one kind of proof. It says who calls, in which role, and until when the proof
//!   holds. For a proof of another kind it has no answer, and for a bad proof of its own kind it has a [`Refusal`].
//! - A principal's *key* is its issuer and its subject there ([`postern_core::principal`]). Only the certificates of the
//!   deployment's own authority make local principals; every other authenticator names its issuer.
//!
//! **The rule.** The broker asks its [`Authenticators`] in order, for each request. The first answer counts: a request that
//! shows several proofs is made by the caller of the first, and a refused proof is never made good by another one (I7).
//!
//! **On failure.** An authenticator that cannot decide, for instance because it cannot reach its issuer, refuses with
//! [`Code::Unavailable`]. It bounds the time that it takes; a stream of messages has no other deadline.

mod certificate;
#[cfg(test)]
pub(in crate::api) mod fake;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use http::HeaderMap;
use jiff::Timestamp;
use postern_core::CallerKind;
use postern_proto::status::plain;
use tonic::{Code, Status};

pub use certificate::{CertificateAuthenticator, ClientCertificate};

/// An authenticator: turns one kind of proof into a caller.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Returns the caller that the request proves; none if it shows no proof of this kind.
    ///
    /// # Errors
    /// The request shows a proof of this kind, and the authenticator does not accept it.
    async fn authenticate(&self, shown: &Shown<'_>) -> Result<Option<Arc<Authenticated>>, Refusal>;
}

/// The parts of a request in which it can show a proof.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The client certificate of the connection, which the handshake has verified.
    pub certificate: Option<&'a ClientCertificate>,
    /// The headers of the request.
    pub headers: &'a HeaderMap,
    /// The address that the broker sees.
    pub address: IpAddr,
}

/// A caller that an authenticator has established.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    /// The party that calls: a principal in a role, the agent of a target, or a broker.
    pub kind: CallerKind,
    /// The end of the proof, by the wall clock.
    pub not_after: Timestamp,
    /// The answer to a call after that end, and the last word of a stream that lasts until then.
    pub when_expired: Refusal,
}

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
        shown: &Shown<'_>,
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
