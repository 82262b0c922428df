//! The JSON of principals and their revocations.

use jiff::Timestamp;
use postern_proto::v1;
use serde::Serialize;

use super::{PrincipalJson, time, words};

/// A list of principals, and the certificates that were revoked alone.
#[derive(Debug, Serialize)]
pub(crate) struct PrincipalsJson {
    pub principals: Vec<KnownPrincipalJson>,
    pub revoked_certificates: Vec<RevokedCertificateJson>,
}

/// A principal that the broker knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct KnownPrincipalJson {
    pub name: String,
    pub roles: Vec<&'static str>,
    pub certificates: Vec<PrincipalCertificateJson>,
    pub open_grants: u32,
    pub revoked: bool,
    pub revocation: Option<RevocationJson>,
}

/// The newest certificate of a principal in a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct PrincipalCertificateJson {
    pub role: &'static str,
    pub serial: String,
    pub issued_at: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
    pub revoked: bool,
}

/// A revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RevocationJson {
    pub by: Option<PrincipalJson>,
    pub at: Option<Timestamp>,
    pub reason: String,
}

/// A certificate that was revoked alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RevokedCertificateJson {
    pub serial: String,
    pub revocation: Option<RevocationJson>,
}

/// The answer to a revocation.
#[derive(Debug, Serialize)]
pub(crate) struct RevokedProofsJson {
    pub principal: Option<KnownPrincipalJson>,
    pub serial: Option<String>,
    pub revocation: Option<RevocationJson>,
    pub closed_grants: Vec<String>,
}

impl RevokedProofsJson {
    /// Reports whether the broker knows nothing of the principal or the certificate but this revocation.
    pub(crate) fn is_unknown(&self) -> bool {
        let is_known = |known: &KnownPrincipalJson| !known.certificates.is_empty() || known.open_grants > 0;
        !self.principal.as_ref().is_some_and(is_known)
    }
}

impl From<v1::KnownPrincipal> for KnownPrincipalJson {
    fn from(wire: v1::KnownPrincipal) -> Self {
        Self {
            roles: wire.roles().map(words::role).collect(),
            name: wire.name,
            certificates: wire.certificates.into_iter().map(PrincipalCertificateJson::from).collect(),
            open_grants: wire.open_grants,
            revoked: wire.revoked,
            revocation: wire.revocation.map(RevocationJson::from),
        }
    }
}

impl From<v1::PrincipalCertificate> for PrincipalCertificateJson {
    fn from(wire: v1::PrincipalCertificate) -> Self {
        Self {
            role: words::role(wire.role()),
            serial: wire.serial,
            issued_at: time(wire.issued_at),
            not_after: time(wire.not_after),
            revoked: wire.revoked,
        }
    }
}

impl From<v1::Revocation> for RevocationJson {
    fn from(wire: v1::Revocation) -> Self {
        Self { by: wire.by.map(PrincipalJson::from), at: time(wire.at), reason: wire.reason }
    }
}

impl From<v1::RevokedCertificate> for RevokedCertificateJson {
    fn from(wire: v1::RevokedCertificate) -> Self {
        Self { serial: wire.serial, revocation: wire.revocation.map(RevocationJson::from) }
    }
}

impl From<v1::RevokePrincipalResponse> for RevokedProofsJson {
    fn from(wire: v1::RevokePrincipalResponse) -> Self {
        Self {
            principal: wire.principal.map(KnownPrincipalJson::from),
            serial: Some(wire.serial).filter(|serial| !serial.is_empty()),
            revocation: wire.revocation.map(RevocationJson::from),
            closed_grants: wire.closed_grants,
        }
    }
}
