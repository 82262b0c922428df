//! The certificates of the authority itself: the root, and the intermediates that it signs.

use std::time::Duration;

use jiff::Timestamp;
use postern_core::KeyHash;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyUsagePurpose,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::PkiError;
use crate::credentials::KeyPair;
use crate::identity::{self, TrustDomain};
use crate::life::{BACKDATE, Life, ROOT_LIFETIME, intermediate_end};
use crate::purpose::{self, Purpose};

/// The name of every root. The certificate by which one root vouches for the next has the same name as its signer: such a
/// certificate counts in no path length (RFC 5280, 4.2.1.9).
const ROOT: &str = "Postern root";

/// The facts of one of the authority's own certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaCertificate {
    /// The name that the certificate carries.
    pub subject: String,
    /// The serial number, in hexadecimal digits.
    pub serial: String,
    /// The time for which the certificate is valid.
    pub life: Life,
    /// The hash of its public key.
    pub key: KeyHash,
    /// The parties for which it signs; none for a root, and for an intermediate of an earlier version, which signs for every party.
    pub purpose: Option<Purpose>,
}

impl CaCertificate {
    /// Returns the moment at which the certificate was made, in whole seconds.
    pub fn made_at(&self) -> Timestamp {
        later(self.life.not_before, BACKDATE)
    }

    /// Reads a certificate (DER).
    pub(crate) fn read(what: &str, der: &[u8]) -> Result<Self, PkiError> {
        let unreadable = |error: &dyn std::fmt::Display| PkiError::malformed(what, error);
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(&error))?;
        let (not_before, not_after) = identity::validity(der).map_err(|error| unreadable(&error))?;
        let common_name = certificate.subject().iter_common_name().next();
        let subject = common_name.and_then(|name| name.as_str().ok()).unwrap_or_default();
        let serial = data_encoding::HEXLOWER.encode(certificate.raw_serial());
        let key = identity::key_hash(der).map_err(|error| unreadable(&error))?;
        let purpose = match purpose::marks(der).map_err(|error| unreadable(&error))?[..] {
            [] => None,
            [purpose] => Some(purpose),
            _ => return Err(PkiError::malformed(what, "it is marked for agents and for people")),
        };
        let life = Life { not_before, not_after };
        Ok(Self { subject: subject.to_owned(), serial, life, key, purpose })
    }
}

/// Makes a root (DER).
pub(super) fn root(key: &KeyPair, domain: &TrustDomain, now: Timestamp) -> Result<Vec<u8>, PkiError> {
    let params = params(ROOT, domain, 1, later(now, ROOT_LIFETIME), now)?;
    Ok(params.self_signed(&key.0)?.der().to_vec())
}

/// Makes the root (DER) that takes the place of an `old` one. It begins at least a second after the old one, also where the clock of
/// this machine is behind the one that made the old root: a client drops the root that began first ([`crate::vouching`]).
pub(super) fn next_root(
    key: &KeyPair,
    domain: &TrustDomain,
    old: &CaCertificate,
    now: Timestamp,
) -> Result<Vec<u8>, PkiError> {
    let mut params = params(ROOT, domain, 1, later(now, ROOT_LIFETIME), now)?;
    let from = earlier(now, BACKDATE).max(later(old.life.not_before, Duration::from_secs(1)));
    set_validity(&mut params, from, later(now, ROOT_LIFETIME))?;
    Ok(params.self_signed(&key.0)?.der().to_vec())
}

/// Makes the certificate by which a root (DER) vouches for the key of the next one. It ends with the root.
pub(super) fn voucher(
    next_key: &KeyPair,
    domain: &TrustDomain,
    root: &[u8],
    root_key: KeyPair,
    now: Timestamp,
) -> Result<Vec<u8>, PkiError> {
    let life = valid_root(root, now)?;
    let params = params(ROOT, domain, 1, life.not_after, now)?;
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(root), root_key.0)?;
    let made = params.signed_by(&next_key.0, &issuer)?.der().to_vec();
    if is_self_issued(&made) {
        return Ok(made);
    }
    let problem = format!("its name is not \"{ROOT} ({domain})\"; check trust_domain in the configuration");
    Err(PkiError::malformed("the root certificate", problem))
}

/// Reports whether a certificate has the name of its signer.
pub(crate) fn is_self_issued(der: &[u8]) -> bool {
    X509Certificate::from_der(der)
        .is_ok_and(|(_, certificate)| certificate.subject().as_raw() == certificate.issuer().as_raw())
}

fn valid_root(root: &[u8], now: Timestamp) -> Result<Life, PkiError> {
    let life = CaCertificate::read("the root certificate", root)?.life;
    if life.holds(now) {
        return Ok(life);
    }
    let Life { not_before, not_after } = life;
    Err(PkiError::RootNotValid { valid: format!("{not_before:.0} to {not_after:.0}") })
}

/// Makes an intermediate under a root (DER) that is valid at `now`.
pub(super) fn intermediate(
    key: &KeyPair,
    purpose: Purpose,
    domain: &TrustDomain,
    root: &[u8],
    root_key: KeyPair,
    now: Timestamp,
) -> Result<Vec<u8>, PkiError> {
    let life = valid_root(root, now)?;
    let (name, usages) = match purpose {
        Purpose::Agents => (
            "Postern intermediate",
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        ),
        // So that also a peer that knows no mark refuses it for a broker.
        Purpose::People => ("Postern people's intermediate", vec![ExtendedKeyUsagePurpose::ClientAuth]),
    };
    let mut params = params(name, domain, 0, intermediate_end(&life, now), now)?;
    params.extended_key_usages = usages;
    let mark = CustomExtension::from_oid_content(&purpose::POLICIES, purpose.policies());
    params.custom_extensions.push(mark);
    let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(root), root_key.0)?;
    Ok(params.signed_by(&key.0, &issuer)?.der().to_vec())
}

/// Reports whether a certificate is signed by the key of another.
pub(crate) fn is_signed_by(certificate: &[u8], issuer: &[u8]) -> bool {
    match (X509Certificate::from_der(certificate), X509Certificate::from_der(issuer)) {
        (Ok((_, certificate)), Ok((_, issuer))) => {
            certificate.verify_signature(Some(issuer.public_key())).is_ok()
        }
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    }
}

/// Reports whether a certificate is of this key.
pub(super) fn is_of_key(certificate: &[u8], key: &KeyPair) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| {
        certificate.public_key().subject_public_key.as_ref() == key.0.public_key_raw()
    })
}

fn params(
    name: &str,
    domain: &TrustDomain,
    path_length: u8,
    until: Timestamp,
    now: Timestamp,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{name} ({domain})"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, earlier(now, BACKDATE), until)?;
    Ok(params)
}

/// Sets the time for which a certificate is valid, in whole seconds.
pub(super) fn set_validity(
    params: &mut CertificateParams,
    from: Timestamp,
    until: Timestamp,
) -> Result<(), PkiError> {
    let date = |at: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(at.as_second())
            .map_err(|error| PkiError::Crypto { problem: error.to_string() })
    };
    params.not_before = date(from)?;
    params.not_after = date(until)?;
    Ok(())
}

pub(super) fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

pub(super) fn earlier(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_sub(span).unwrap_or(Timestamp::MIN)
}
