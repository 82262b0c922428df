//! SPIFFE ids: the identity that a certificate carries as its one URI name.
//!
//! ```text
//! spiffe://<trust domain>/broker
//! spiffe://<trust domain>/agent/host/web-1
//! spiffe://<trust domain>/agent/aws/<account>/<region>/<instance>
//! spiffe://<trust domain>/principal/<role>/<name>
//! ```

use std::fmt;

use jiff::Timestamp;
use postern_core::text::repeated;
use postern_core::{Invalid, KeyHash, Name, Role, TargetId};
use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The name of the domain in which identities are valid: 1 to 255 of `a-z 0-9 . _ -` (SPIFFE-ID, 2.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Parses the name of a trust domain.
    ///
    /// # Errors
    /// The name is empty or too long, or has another character.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if text.is_empty() || text.len() > 255 || !text.bytes().all(plain) {
            let problem = format!("{} is not a trust domain", repeated(text));
            return Err(Invalid::new("trust_domain", problem, "use 1 to 255 of a-z 0-9 . _ -"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl Default for TrustDomain {
    fn default() -> Self {
        Self("postern".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::new(&text)
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> String {
        domain.0
    }
}

/// The id that a certificate carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpiffeId {
    /// A broker.
    Broker,
    /// The agent of a target.
    Agent(TargetId),
    /// A person or a service.
    Principal {
        /// The role that the certificate carries.
        role: Role,
        /// The name, unique whatever the role.
        name: Name,
    },
}

/// A certificate that carries no id of Postern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// The bytes are not a certificate.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// The certificate has no URI name, or more than one.
    #[error("the certificate carries {count} URI names instead of one")]
    NotOneUri {
        /// The number of URI names.
        count: usize,
    },
    /// The id belongs to another trust domain, or is no SPIFFE id at all.
    #[error("{uri:?} is not an id of the trust domain {domain}")]
    Foreign {
        /// The id.
        uri: String,
        /// The trust domain that was expected.
        domain: TrustDomain,
    },
    /// The id names nothing that Postern knows.
    #[error("{uri:?} names no broker, agent or principal")]
    Unknown {
        /// The id.
        uri: String,
    },
}

impl SpiffeId {
    /// Returns the id as a certificate carries it.
    pub fn to_uri(&self, domain: &TrustDomain) -> String {
        let path = match self {
            Self::Broker => "broker".to_owned(),
            Self::Agent(target) => format!("agent/{}", target.segments().join("/")),
            Self::Principal { role, name } => format!("principal/{role}/{name}"),
        };
        format!("spiffe://{domain}/{path}")
    }

    /// Parses an id that [`Self::to_uri`] wrote.
    ///
    /// # Errors
    /// The id is of another trust domain, or its path names no party of Postern.
    pub fn from_uri(uri: &str, domain: &TrustDomain) -> Result<Self, SpiffeIdError> {
        let foreign = || SpiffeIdError::Foreign { uri: uri.to_owned(), domain: domain.clone() };
        let unknown = || SpiffeIdError::Unknown { uri: uri.to_owned() };
        let path = uri
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(&domain.0))
            .ok_or_else(foreign)?;
        let path = path.strip_prefix('/').ok_or_else(foreign)?;
        match path.split('/').collect::<Vec<_>>().as_slice() {
            ["broker"] => Ok(Self::Broker),
            ["agent", target @ ..] => TargetId::from_segments(target).map(Self::Agent).map_err(|_| unknown()),
            ["principal", role, name] => {
                let role = role.parse().map_err(|_| unknown())?;
                let name = Name::new(name).map_err(|_| unknown())?;
                Ok(Self::Principal { role, name })
            }
            _ => Err(unknown()),
        }
    }

    /// Returns the id that a certificate (DER) carries. Only the handshake verifies that the certificate is genuine.
    ///
    /// # Errors
    /// The certificate has not exactly one URI name, or the name is no id of Postern in this trust domain.
    pub fn of_certificate(der: &[u8], domain: &TrustDomain) -> Result<Self, SpiffeIdError> {
        Self::from_uri(&uri_of(der)?, domain)
    }
}

/// Returns the one URI name of a certificate.
pub(crate) fn uri_of(der: &[u8]) -> Result<String, SpiffeIdError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| SpiffeIdError::Unreadable)?;
    let names = certificate.subject_alternative_name().map_err(|_| SpiffeIdError::Unreadable)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let uris: Vec<&str> = names
        .iter()
        .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
        .collect();
    match uris[..] {
        [uri] => Ok(uri.to_owned()),
        _ => Err(SpiffeIdError::NotOneUri { count: uris.len() }),
    }
}

/// Returns the trust domain that a certificate itself names.
pub(crate) fn trust_domain_of(der: &[u8]) -> Result<TrustDomain, SpiffeIdError> {
    let uri = uri_of(der)?;
    let domain = uri.strip_prefix("spiffe://").and_then(|rest| rest.split('/').next());
    let domain = domain.and_then(|domain| TrustDomain::new(domain).ok());
    domain.ok_or(SpiffeIdError::Unknown { uri })
}

/// Returns the end of a certificate (DER).
///
/// # Errors
/// The certificate cannot be read.
pub fn not_after(der: &[u8]) -> Result<Timestamp, SpiffeIdError> {
    validity(der).map(|(_, not_after)| not_after)
}

/// Returns the hash of the public key of a certificate (DER).
///
/// # Errors
/// The certificate cannot be read.
pub fn key_hash(der: &[u8]) -> Result<KeyHash, SpiffeIdError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| SpiffeIdError::Unreadable)?;
    Ok(KeyHash::of(certificate.public_key().raw))
}

/// Returns the first moment at which a certificate (DER) is valid, and its end.
pub(crate) fn validity(der: &[u8]) -> Result<(Timestamp, Timestamp), SpiffeIdError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| SpiffeIdError::Unreadable)?;
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|_| SpiffeIdError::Unreadable)
    };
    Ok((at(certificate.validity().not_before)?, at(certificate.validity().not_after)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_id_reads_back_from_its_uri() {
        let azure = "azure:/subscriptions/00000000-0000-0000-0000-00000000000a/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm";
        let agent = |text: &str| SpiffeId::Agent(text.parse().unwrap());
        let domain = TrustDomain::default();
        for identity in [
            SpiffeId::Broker,
            agent("host:web-1"),
            agent("aws:123456789012/eu-central-1/i-0123456789abcdef0"),
            agent(azure),
            SpiffeId::Principal { role: Role::Requester, name: Name::new("alice").unwrap() },
        ] {
            assert_eq!(SpiffeId::from_uri(&identity.to_uri(&domain), &domain).unwrap(), identity);
        }
    }

    #[test]
    fn i7_other_ids_name_no_identity() {
        let domain = TrustDomain::default();
        for uri in [
            "spiffe://other/broker",
            "spiffe://posternx/broker",
            "spiffe://postern",
            "spiffe://postern/",
            "spiffe://postern/broker/",
            "spiffe://postern/agent/host",
            "spiffe://postern/agent/host/a/b",
            "spiffe://postern/principal/root/alice",
            "spiffe://postern/principal/reader/",
            "https://postern/broker",
        ] {
            assert!(SpiffeId::from_uri(uri, &domain).is_err(), "{uri}");
        }
    }
}
