//! The certificate authority: a root that can be kept offline, and an intermediate (path length 0) that signs.
//!
//! Whatever a signing request asks for, the certificate carries the names written here.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::credentials::{self, KeyPair};
use crate::identity::{self, Identity, TrustDomain};
use crate::{Fingerprint, PkiError, files};

/// The life of an agent's certificate.
pub const AGENT_LIFETIME: Duration = Duration::from_secs(3600);
/// How far certificates are backdated, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(60);

const DAY: Duration = Duration::from_secs(24 * 3600);
const ROOT_LIFETIME: Duration = DAY.saturating_mul(3650);
const INTERMEDIATE_LIFETIME: Duration = DAY.saturating_mul(365);

/// Signs certificates.
pub struct Authority {
    trust_domain: TrustDomain,
    root: Vec<u8>,
    intermediate: Vec<u8>,
    valid: (Timestamp, Timestamp),
    issuer: Issuer<'static, rcgen::KeyPair>,
}

/// A fresh certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate and the intermediate that signed it, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// When the certificate ends.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes `root.key`, `root.pem`, `intermediate.key` and `intermediate.pem` in the directory.
    ///
    /// # Errors
    /// One of them is there already, or cannot be written.
    pub fn init(dir: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Self, PkiError> {
        let paths = Paths::of(dir);
        for path in paths.all() {
            if path.symlink_metadata().is_ok() {
                return Err(PkiError::Exists { path: path.clone() });
            }
        }
        let (root_key, intermediate_key) = (KeyPair::generate()?, KeyPair::generate()?);
        let root = ca_params(
            "Postern root",
            trust_domain,
            IsCa::Ca(BasicConstraints::Constrained(1)),
            ROOT_LIFETIME,
            now,
        )?;
        let root_certificate = root.self_signed(&root_key.0)?;
        let intermediate = ca_params(
            "Postern intermediate",
            trust_domain,
            IsCa::Ca(BasicConstraints::Constrained(0)),
            INTERMEDIATE_LIFETIME,
            now,
        )?;
        let root_issuer = Issuer::from_params(&root, &root_key.0);
        let intermediate_certificate = intermediate.signed_by(&intermediate_key.0, &root_issuer)?;

        files::make_dir(dir)?;
        let root_pem = credentials::to_pem(&[root_certificate.der().to_vec()]);
        let intermediate_pem = credentials::to_pem(&[intermediate_certificate.der().to_vec()]);
        files::write(&paths.root_key, &root_key.0.serialize_pem(), 0o600)?;
        files::write(&paths.root, &root_pem, 0o644)?;
        files::write(&paths.intermediate_key, &intermediate_key.0.serialize_pem(), 0o600)?;
        files::write(&paths.intermediate, &intermediate_pem, 0o644)?;
        Self::load(dir, trust_domain, now)
    }

    /// Reads what [`Self::init`] made. `root.key` may have been taken offline.
    ///
    /// # Errors
    /// A file that is missing or malformed, a key that others can read, an intermediate that the root did not sign or
    /// that is not valid at `now`.
    pub fn load(dir: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Self, PkiError> {
        let paths = Paths::of(dir);
        if paths.root_key.symlink_metadata().is_ok() {
            credentials::load_key(&paths.root_key)?;
        }
        let key = credentials::load_key(&paths.intermediate_key)?.0;
        let one = |path: &Path| match credentials::load_certificates(path)?.as_slice() {
            [one] => Ok(one.clone()),
            _ => Err(PkiError::malformed(path.display().to_string(), "it holds more than one certificate")),
        };
        let (root, intermediate) = (one(&paths.root)?, one(&paths.intermediate)?);
        let valid = identity::validity(&intermediate)
            .map_err(|error| PkiError::malformed(paths.intermediate.display().to_string(), error))?;
        // Also checks that key and certificate belong together.
        let own =
            credentials::Credentials::new(KeyPair(key), vec![intermediate.clone()], vec![root.clone()])?;
        drop(own);
        // Or it would sign certificates that nobody trusts.
        if !is_signed_by(&intermediate, &root) {
            let problem =
                format!("{} did not sign it; put back the two that belong together", paths.root.display());
            return Err(PkiError::malformed(paths.intermediate.display().to_string(), problem));
        }
        let key = credentials::load_key(&paths.intermediate_key)?.0;
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(intermediate.as_slice()), key)?;
        let authority = Self { trust_domain: trust_domain.clone(), root, intermediate, valid, issuer };
        authority.check_valid(now)?;
        Ok(authority)
    }

    /// Signs a certificate for an identity.
    ///
    /// # Errors
    /// The request is malformed or not signed by its own key, or the intermediate is not valid.
    pub fn issue(
        &self,
        csr: &[u8],
        identity: &Identity,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let params = self.leaf_params(identity, &[], lifetime, now)?;
        self.sign(params, csr)
    }

    /// Signs the certificate with which a broker serves under these DNS names and addresses.
    ///
    /// # Errors
    /// As [`Self::issue`], and a name that is neither a DNS name nor an address.
    pub fn issue_server(
        &self,
        csr: &[u8],
        names: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let params = self.leaf_params(&Identity::Broker, names, lifetime, now)?;
        self.sign(params, csr)
    }

    /// The roots that whoever talks to this authority's certificates must trust, DER.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.root.clone()]
    }

    /// The root's fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.root)
    }

    fn check_valid(&self, now: Timestamp) -> Result<(), PkiError> {
        let (from, until) = self.valid;
        if (from..until).contains(&now) {
            return Ok(());
        }
        Err(PkiError::AuthorityNotValid { valid: format!("{from:.0} to {until:.0}") })
    }

    fn leaf_params(
        &self,
        identity: &Identity,
        names: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<CertificateParams, PkiError> {
        self.check_valid(now)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let uri = identity.to_uri(&self.trust_domain);
        let uri = uri.try_into().map_err(|error: rcgen::Error| PkiError::from(error))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match identity {
            Identity::Broker => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            Identity::Agent(_) | Identity::Principal(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let until = later(now, lifetime).min(self.valid.1);
        set_validity(&mut params, earlier(now, BACKDATE), until)?;
        Ok(params)
    }

    fn sign(&self, params: CertificateParams, csr: &[u8]) -> Result<Issued, PkiError> {
        let bad = |error: rcgen::Error| PkiError::BadRequest { problem: error.to_string() };
        // Checks the signature of the request, which proves that its sender has the key.
        let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(bad)?;
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        let not_after = identity::not_after(certificate.der())
            .map_err(|error| PkiError::Crypto { problem: error.to_string() })?;
        Ok(Issued { chain: vec![certificate.der().to_vec(), self.intermediate.clone()], not_after })
    }
}

struct Paths {
    root_key: PathBuf,
    root: PathBuf,
    intermediate_key: PathBuf,
    intermediate: PathBuf,
}

impl Paths {
    fn of(dir: &Path) -> Self {
        Self {
            root_key: dir.join("root.key"),
            root: dir.join("root.pem"),
            intermediate_key: dir.join("intermediate.key"),
            intermediate: dir.join("intermediate.pem"),
        }
    }

    fn all(&self) -> [&PathBuf; 4] {
        [&self.root_key, &self.root, &self.intermediate_key, &self.intermediate]
    }
}

fn is_signed_by(certificate: &[u8], issuer: &[u8]) -> bool {
    match (X509Certificate::from_der(certificate), X509Certificate::from_der(issuer)) {
        (Ok((_, certificate)), Ok((_, issuer))) => {
            certificate.verify_signature(Some(issuer.public_key())).is_ok()
        }
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    }
}

fn ca_params(
    name: &str,
    domain: &TrustDomain,
    is_ca: IsCa,
    lifetime: Duration,
    now: Timestamp,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("{name} ({domain})"));
    params.is_ca = is_ca;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, earlier(now, BACKDATE), later(now, lifetime))?;
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, from: Timestamp, until: Timestamp) -> Result<(), PkiError> {
    let date = |at: Timestamp| {
        time::OffsetDateTime::from_unix_timestamp(at.as_second())
            .map_err(|error| PkiError::Crypto { problem: error.to_string() })
    };
    params.not_before = date(from)?;
    params.not_after = date(until)?;
    Ok(())
}

fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

fn earlier(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_sub(span).unwrap_or(Timestamp::MIN)
}
