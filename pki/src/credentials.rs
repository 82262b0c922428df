//! Credentials: a private key with its certificate chain and the roots to trust.

use std::fmt;
use std::path::Path;

use jiff::Timestamp;
use postern_core::KeyHash;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::{self, SpiffeId, SpiffeIdError, TrustDomain};
use crate::{PkiError, files};

/// An ECDSA P-256 key. Its `Debug` shows no part of the key.
pub struct KeyPair(pub(crate) rcgen::KeyPair);

impl KeyPair {
    /// Makes a key.
    ///
    /// # Errors
    /// The system returns no random bytes.
    pub fn generate() -> Result<Self, PkiError> {
        Ok(Self(rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?))
    }

    /// Returns a certificate signing request (PKCS #10, DER) that proves possession of the key and asks for no name.
    ///
    /// # Errors
    /// The request cannot be signed.
    pub fn csr(&self) -> Result<Vec<u8>, PkiError> {
        let request = rcgen::CertificateParams::default().serialize_request(&self.0)?;
        Ok(request.der().to_vec())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(..)")
    }
}

/// A private key, its certificate chain (leaf first, DER), and the roots to trust (DER).
#[derive(Debug)]
pub struct Credentials {
    key: KeyPair,
    pub(crate) chain: Vec<Vec<u8>>,
    pub(crate) roots: Vec<Vec<u8>>,
    valid: (Timestamp, Timestamp),
}

impl Credentials {
    /// Makes credentials of a key and its certificates.
    ///
    /// # Errors
    /// An empty chain or no root, a certificate that cannot be read, or the certificate of another key.
    pub fn new(key: KeyPair, chain: Vec<Vec<u8>>, roots: Vec<Vec<u8>>) -> Result<Self, PkiError> {
        let leaf =
            chain.first().ok_or_else(|| PkiError::malformed("the certificate chain", "it is empty"))?;
        if roots.is_empty() {
            return Err(PkiError::malformed("the list of roots", "it is empty"));
        }
        let unreadable = |error: &dyn fmt::Display| PkiError::malformed("the certificate", error);
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| unreadable(&error))?;
        if parsed.public_key().subject_public_key.as_ref() != key.0.public_key_raw() {
            return Err(PkiError::KeyMismatch);
        }
        let valid = identity::validity(leaf).map_err(|error| unreadable(&error))?;
        Ok(Self { key, chain, roots, valid })
    }

    /// Reports whether a directory has an identity, also one that cannot be read. The key makes it one: [`Self::save`] writes it with
    /// its certificates, after the roots. A crash before it has left none, and a crash after it has left a whole one.
    pub fn exist(dir: &Path) -> bool {
        let found = std::fs::symlink_metadata(dir.join("key.pem"));
        !found.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    /// Reads `key.pem` and `roots.pem`, and `cert.pem` if the certificates do not stand beside the key.
    ///
    /// # Errors
    /// A file is missing or malformed, or other users can read the key.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join("key.pem");
        let text = files::read_private(&path)?;
        let mut chain = parse_certificates(&path, &text)?;
        if chain.is_empty() {
            chain = load_certificates(&dir.join("cert.pem"))?;
        }
        Self::new(parse_key(&path, &text)?, chain, load_certificates(&dir.join("roots.pem"))?)
    }

    /// Writes the three files, each whole, into a directory that only its owner can enter. The certificates stand beside the key
    /// as well: a crash between two files must not leave a key without its certificate. The roots come first: the new ones lead to the
    /// broker's certificate whichever of the two identities is there, because the broker that sent them is under one of them.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, dir: &Path) -> Result<(), PkiError> {
        files::make_dir(dir)?;
        let chain = to_pem(&self.chain);
        files::write(&dir.join("roots.pem"), &to_pem(&self.roots), 0o644)?;
        files::write(&dir.join("key.pem"), &format!("{}{chain}", self.key.0.serialize_pem()), 0o600)?;
        files::write(&dir.join("cert.pem"), &chain, 0o644)
    }

    /// Returns the first moment at which the certificate is valid.
    pub fn not_before(&self) -> Timestamp {
        self.valid.0
    }

    /// Returns the moment at which the certificate ends.
    pub fn not_after(&self) -> Timestamp {
        self.valid.1
    }

    /// Returns the identity that the certificate names.
    ///
    /// # Errors
    /// The certificate names no identity of the trust domain.
    pub fn identity(&self, domain: &TrustDomain) -> Result<SpiffeId, SpiffeIdError> {
        SpiffeId::of_certificate(self.leaf(), domain)
    }

    /// Returns the hash of the certificate's public key.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn key_hash(&self) -> Result<KeyHash, SpiffeIdError> {
        identity::key_hash(self.leaf())
    }

    /// Returns the trust domain that the certificate itself names.
    ///
    /// # Errors
    /// The certificate carries no SPIFFE id.
    pub fn trust_domain(&self) -> Result<TrustDomain, SpiffeIdError> {
        identity::trust_domain_of(self.leaf())
    }

    /// Returns the roots to trust, DER.
    pub fn roots(&self) -> &[Vec<u8>] {
        &self.roots
    }

    /// Returns the hashes of the public keys of those roots, without the ones that cannot be read.
    pub fn root_keys(&self) -> Vec<KeyHash> {
        self.roots.iter().filter_map(|root| identity::key_hash(root).ok()).collect()
    }

    /// Returns the certificate chain, leaf first, DER.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// Replaces the roots of the credentials in a directory, durably.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_roots(dir: &Path, roots: &[Vec<u8>]) -> Result<(), PkiError> {
        files::write(&dir.join("roots.pem"), &to_pem(roots), 0o644)
    }

    pub(crate) fn tls_chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.iter().cloned().map(CertificateDer::from).collect()
    }

    pub(crate) fn tls_roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.iter().cloned().map(CertificateDer::from).collect()
    }

    pub(crate) fn tls_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.0.serialize_der()))
    }

    pub(crate) fn leaf(&self) -> &[u8] {
        self.chain.first().map(Vec::as_slice).unwrap_or_default()
    }
}

pub(crate) fn load_key(path: &Path) -> Result<KeyPair, PkiError> {
    parse_key(path, &files::read_private(path)?)
}

/// Reads the private key of a file's text; certificates may stand beside it.
pub(crate) fn parse_key(path: &Path, text: &str) -> Result<KeyPair, PkiError> {
    // The parsers' own messages could quote the key.
    let malformed =
        || PkiError::malformed(path.display().to_string(), "it holds no PKCS #8 private key in PEM form");
    let blocks = pem::parse_many(text).map_err(|_| malformed())?;
    let key = blocks.into_iter().find(|block| block.tag() == "PRIVATE KEY").ok_or_else(malformed)?;
    rcgen::KeyPair::from_pem(&pem::encode(&key)).map(KeyPair).map_err(|_| malformed())
}

/// Reads the certificates (DER) of a PEM file, in order.
///
/// # Errors
/// The file is missing or malformed, or holds none.
pub fn load_certificates(path: &Path) -> Result<Vec<Vec<u8>>, PkiError> {
    let certificates = parse_certificates(path, &files::read(path)?)?;
    if certificates.is_empty() {
        return Err(PkiError::malformed(path.display().to_string(), "it holds no certificate in PEM form"));
    }
    Ok(certificates)
}

/// Reads the certificates of a file's text, in order; there may be none.
pub(crate) fn parse_certificates(path: &Path, text: &str) -> Result<Vec<Vec<u8>>, PkiError> {
    let malformed = |_| PkiError::malformed(path.display().to_string(), "it is not in PEM form");
    let blocks = pem::parse_many(text).map_err(malformed)?;
    Ok(blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE").map(pem::Pem::into_contents).collect())
}

pub(crate) fn to_pem(certificates: &[Vec<u8>]) -> String {
    let blocks: Vec<pem::Pem> =
        certificates.iter().map(|der| pem::Pem::new("CERTIFICATE", der.clone())).collect();
    pem::encode_many_config(&blocks, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}
