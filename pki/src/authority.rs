//! The certificate authority: a root that can be kept offline, and an intermediate (path length 0) that signs.
//!
//! A certificate carries the names that the authority writes, whatever the signing request asks for.
//!
//! An intermediate lives for a year, and a new one takes its place while the authority signs: by
//! [`Authority::renew_if_due`], or by [`Authority::reload`] where [`Authority::renew`] made it on disk. Every peer trusts the root, and every certificate
//! travels with the intermediate that signed it. So certificates of the old intermediate are good until their own ends,
//! beside those of the new one, and brokers that share a root need not know each other's intermediates.

mod certificate;
mod disk;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;

pub use self::certificate::CaCertificate;
use self::certificate::{earlier, is_of_key, is_signed_by, later, set_validity};
use self::disk::{Intermediate, Paths};
use crate::credentials::{self, KeyPair};
use crate::identity::{self, SpiffeId, TrustDomain};
use crate::life::{BACKDATE, Life, is_renewal_due};
use crate::{Fingerprint, PkiError, files};

/// The life of an agent's certificate.
pub const AGENT_LIFETIME: Duration = Duration::from_secs(3600);

/// Signs certificates.
pub struct Authority {
    trust_domain: TrustDomain,
    paths: Paths,
    root: Vec<u8>,
    root_facts: CaCertificate,
    signer: RwLock<Arc<Signer>>,
}

/// The intermediate in use, with its key.
struct Signer {
    certificate: Vec<u8>,
    facts: CaCertificate,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

/// A fresh certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate and the intermediate that signed it, DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// The end of the certificate.
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
    /// A file exists already, or cannot be written.
    pub fn init(dir: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Self, PkiError> {
        let paths = Paths::of(dir);
        for path in paths.all() {
            if path.symlink_metadata().is_ok() {
                return Err(PkiError::Exists { path: path.clone() });
            }
        }
        let (root_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
        let root = certificate::root(&root_key, trust_domain, now)?.der().to_vec();
        let (root_pem, root_key_pem) =
            (credentials::to_pem(std::slice::from_ref(&root)), root_key.0.serialize_pem());
        let intermediate = certificate::intermediate(&key, trust_domain, &root, root_key, now)?;
        files::make_dir(dir)?;
        files::write(&paths.root_key, &root_key_pem, 0o600)?;
        files::write(&paths.root, &root_pem, 0o644)?;
        paths.write_intermediate(&key, &intermediate)?;
        Self::load(dir, trust_domain)
    }

    /// Reads what [`Self::init`] made. `root.key` may have been taken offline. An intermediate that has ended is loaded,
    /// too: the authority signs nothing with it, and waits for the next.
    ///
    /// # Errors
    /// A file that is missing or malformed, a key that others can read, or an intermediate that the root did not sign.
    pub fn load(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, PkiError> {
        let paths = Paths::of(dir);
        if paths.root_key.symlink_metadata().is_ok() {
            credentials::load_key(&paths.root_key)?;
        }
        let root = paths.read_root()?;
        let root_facts = CaCertificate::read(&paths.root.display().to_string(), &root)?;
        let signer = RwLock::new(Arc::new(Signer::on_disk(&paths, &root)?));
        Ok(Self { trust_domain: trust_domain.clone(), paths, root, root_facts, signer })
    }

    /// Takes up the intermediate on disk, if it is another one. Returns whether it is.
    ///
    /// # Errors
    /// As [`Self::load`]; the authority keeps the intermediate that it has.
    pub fn reload(&self) -> Result<bool, PkiError> {
        let found = Signer::on_disk(&self.paths, &self.root)?;
        let is_another = found.certificate != self.signer().certificate;
        if is_another {
            self.set(found);
        }
        Ok(is_another)
    }

    /// Makes a new intermediate with the root's key, and writes it durably. It needs `root.pem` and the key alone: the old
    /// intermediate may be missing or damaged. A crash at any moment leaves the old one or the new one, each whole. An
    /// authority that is loaded takes the new one up with [`Self::reload`].
    ///
    /// # Errors
    /// The key cannot be read, can be read by other users, or is not the root's; the root is not valid at `now`; another
    /// program is renewing; a file cannot be written. Nothing changes then, unless the file is `intermediate.pem`, the copy
    /// for people.
    pub fn renew(
        dir: &Path,
        trust_domain: &TrustDomain,
        root_key: &Path,
        now: Timestamp,
    ) -> Result<CaCertificate, PkiError> {
        let paths = Paths::of(dir);
        let root = paths.read_root()?;
        let root_key = paths.read_root_key(root_key, &root)?;
        let _lock = paths.lock()?;
        let made = paths.replace_intermediate(trust_domain, &root, root_key, now)?;
        CaCertificate::read("the new intermediate", &made)
    }

    /// Renews the intermediate as [`Self::renew`] does, if the one on disk is due at `now`: another program may have
    /// renewed it just before. Returns whether this call renewed it.
    ///
    /// # Errors
    /// As [`Self::renew`], and as [`Self::reload`].
    pub fn renew_if_due(&self, root_key: &Path, now: Timestamp) -> Result<bool, PkiError> {
        let root_key = self.paths.read_root_key(root_key, &self.root)?;
        let _lock = self.paths.lock()?;
        self.reload()?;
        let due = self.is_renewal_due(now);
        if due {
            let made = self.paths.replace_intermediate(&self.trust_domain, &self.root, root_key, now);
            self.reload()?;
            made?;
        }
        Ok(due)
    }

    /// Returns `intermediate.pem` if it is not a copy of the intermediate on disk: a renewal was killed between the two
    /// files, or the copy was removed or edited.
    pub fn stale_copy(&self) -> Option<&Path> {
        let found = self.paths.read_intermediate().ok()?;
        (!self.paths.is_copied(&found)).then_some(self.paths.intermediate.as_path())
    }

    /// Writes `intermediate.pem` again if it is not a copy of the intermediate on disk. Returns whether it wrote.
    ///
    /// # Errors
    /// The intermediate cannot be read, the copy cannot be written, or another program is renewing.
    pub fn mend_copy(&self) -> Result<bool, PkiError> {
        if self.stale_copy().is_none() {
            return Ok(false);
        }
        let _lock = self.paths.lock()?;
        self.paths.mend_copy()
    }

    /// Checks that a file holds the root's key and that only its owner can read it.
    ///
    /// # Errors
    /// As [`Self::renew`] says of the key.
    pub fn check_root_key(&self, root_key: &Path) -> Result<(), PkiError> {
        self.paths.read_root_key(root_key, &self.root).map(drop)
    }

    /// Reports whether the intermediate should be renewed at `now`: see [`is_renewal_due`].
    pub fn is_renewal_due(&self, now: Timestamp) -> bool {
        is_renewal_due(&self.signer().facts.life, &self.root_facts.life, now)
    }

    /// Returns the root's certificate.
    pub fn root(&self) -> &CaCertificate {
        &self.root_facts
    }

    /// Returns the certificate of the intermediate in use.
    pub fn intermediate(&self) -> CaCertificate {
        self.signer().facts.clone()
    }

    /// Returns the intermediates that were replaced and are valid at `now`, the newest last: certificates that they
    /// signed are good until their own ends.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn previous(&self, now: Timestamp) -> Result<Vec<CaCertificate>, PkiError> {
        let what = self.paths.previous.display().to_string();
        self.paths.read_previous(now)?.iter().map(|der| CaCertificate::read(&what, der)).collect()
    }

    /// Signs a certificate for an identity.
    ///
    /// # Errors
    /// The request is malformed or not signed by its own key, or the intermediate is not valid.
    pub fn issue(
        &self,
        csr: &[u8],
        identity: &SpiffeId,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let signer = self.signer();
        signer.check_valid(now)?;
        let life = signer.leaf_life(lifetime, now);
        signer.sign(self.leaf_params(identity, &[], life)?, csr)
    }

    /// Signs the certificate with which a broker serves under these DNS names and addresses. Where the intermediate is
    /// not valid at `now`, the certificate is valid exactly when the intermediate is: a client then learns that it has
    /// ended, and not only that the handshake failed.
    ///
    /// # Errors
    /// The request is malformed or not signed by its own key, or a name is neither a DNS name nor an address.
    pub fn issue_server(
        &self,
        csr: &[u8],
        names: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let signer = self.signer();
        let own = signer.facts.life;
        let life = if own.holds(now) { signer.leaf_life(lifetime, now) } else { own };
        signer.sign(self.leaf_params(&SpiffeId::Broker, names, life)?, csr)
    }

    /// Returns the roots that a peer of this authority's certificates must trust, DER.
    pub fn roots(&self) -> Vec<Vec<u8>> {
        vec![self.root.clone()]
    }

    /// Returns the root's fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.root)
    }

    fn signer(&self) -> Arc<Signer> {
        Arc::clone(&self.signer.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, signer: Signer) {
        *self.signer.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(signer);
    }

    fn leaf_params(
        &self,
        identity: &SpiffeId,
        names: &[String],
        life: Life,
    ) -> Result<CertificateParams, PkiError> {
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
            SpiffeId::Broker => {
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth]
            }
            SpiffeId::Agent(_) | SpiffeId::Principal { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, life.not_before, life.not_after)?;
        Ok(params)
    }
}

impl Signer {
    /// Reads the intermediate on disk.
    fn on_disk(paths: &Paths, root: &[u8]) -> Result<Self, PkiError> {
        let found = paths.read_intermediate().and_then(|found| Self::of(found, root, paths));
        // A key that may have leaked keeps its own error: an operator must know before another takes its place.
        let is_leak =
            |error: &PkiError| matches!(error, PkiError::ExposedKey { .. } | PkiError::ForeignKey(_));
        found.map_err(|error| if is_leak(&error) { error } else { PkiError::NoIntermediate(Box::new(error)) })
    }

    /// Makes a signer of an intermediate.
    fn of(found: Intermediate, root: &[u8], paths: &Paths) -> Result<Self, PkiError> {
        let Intermediate { key, certificate, from } = found;
        let from = from.display().to_string();
        let facts = CaCertificate::read(&from, &certificate)?;
        if !is_of_key(&certificate, &key) {
            return Err(PkiError::KeyMismatch);
        }
        // Otherwise the authority would sign certificates that no peer trusts.
        if !is_signed_by(&certificate, root) {
            let problem =
                format!("{} did not sign it; put back the two that belong together", paths.root.display());
            return Err(PkiError::malformed(from, problem));
        }
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(certificate.as_slice()), key.0)?;
        Ok(Self { certificate, facts, issuer })
    }

    fn check_valid(&self, now: Timestamp) -> Result<(), PkiError> {
        let Life { not_before, not_after } = self.facts.life;
        if self.facts.life.holds(now) {
            return Ok(());
        }
        Err(PkiError::AuthorityNotValid { valid: format!("{not_before:.0} to {not_after:.0}") })
    }

    /// Returns the life of a certificate that is signed at `now`: no longer than the intermediate's own.
    fn leaf_life(&self, lifetime: Duration, now: Timestamp) -> Life {
        let not_after = later(now, lifetime).min(self.facts.life.not_after);
        Life { not_before: earlier(now, BACKDATE), not_after }
    }

    fn sign(&self, params: CertificateParams, csr: &[u8]) -> Result<Issued, PkiError> {
        let bad = |error: rcgen::Error| PkiError::BadRequest { problem: error.to_string() };
        // Checks the signature of the request, which proves that its sender has the key.
        let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(bad)?;
        let certificate = params.signed_by(&request.public_key, &self.issuer)?;
        let not_after = identity::not_after(certificate.der())
            .map_err(|error| PkiError::Crypto { problem: error.to_string() })?;
        Ok(Issued { chain: vec![certificate.der().to_vec(), self.certificate.clone()], not_after })
    }
}
