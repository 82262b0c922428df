//! The authority's files.
//!
//! `intermediate.key` holds the intermediate's private key **and** its certificate, so that one rename replaces both: after
//! a crash at any step key and certificate belong together. `intermediate.pem` is a copy of that certificate for people and
//! tools, written afterwards; the authority reads it only where `intermediate.key` has no certificate, as `init` once made
//! it. `previous.pem` lists the intermediates that were replaced and have not ended.
//!
//! Where `intermediate.key` is lost, `root.pem` and the root's key make another: a renewal reads the old intermediate only to
//! list it. Where the copy for people is stale, it is written again from `intermediate.key`.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::certificate::{self, CaCertificate, is_of_key};
use crate::credentials::{self, KeyPair};
use crate::{PkiError, TrustDomain, files, identity};

/// The most replaced intermediates that are remembered; the oldest are forgotten first.
const MAX_PREVIOUS: usize = 16;

/// The paths of the files.
pub(super) struct Paths {
    dir: PathBuf,
    pub(super) root_key: PathBuf,
    pub(super) root: PathBuf,
    pub(super) intermediate_key: PathBuf,
    pub(super) intermediate: PathBuf,
    pub(super) previous: PathBuf,
}

/// An intermediate with its key, as read from disk.
pub(super) struct Intermediate {
    pub(super) key: KeyPair,
    pub(super) certificate: Vec<u8>,
    /// The file that the certificate came from.
    pub(super) from: PathBuf,
}

impl Paths {
    pub(super) fn of(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            root_key: dir.join("root.key"),
            root: dir.join("root.pem"),
            intermediate_key: dir.join("intermediate.key"),
            intermediate: dir.join("intermediate.pem"),
            previous: dir.join("previous.pem"),
        }
    }

    /// The files that `init` makes.
    pub(super) fn all(&self) -> [&PathBuf; 4] {
        [&self.root_key, &self.root, &self.intermediate_key, &self.intermediate]
    }

    /// Reads the root's certificate.
    pub(super) fn read_root(&self) -> Result<Vec<u8>, PkiError> {
        only(&self.root, credentials::load_certificates(&self.root)?)
    }

    /// Reads the root's key from a file.
    pub(super) fn read_root_key(&self, path: &Path, root: &[u8]) -> Result<KeyPair, PkiError> {
        let key = credentials::load_key(path)?;
        if is_of_key(root, &key) {
            return Ok(key);
        }
        Err(PkiError::WrongRootKey { path: path.to_owned(), root: self.root.clone() })
    }

    /// Reads the intermediate and its key.
    pub(super) fn read_intermediate(&self) -> Result<Intermediate, PkiError> {
        let text = files::read_private(&self.intermediate_key)?;
        let key = credentials::parse_key(&self.intermediate_key, &text)?;
        let beside_the_key = credentials::parse_certificates(&self.intermediate_key, &text)?;
        let (from, certificates) = if beside_the_key.is_empty() {
            (&self.intermediate, credentials::load_certificates(&self.intermediate)?)
        } else {
            (&self.intermediate_key, beside_the_key)
        };
        Ok(Intermediate { key, certificate: only(from, certificates)?, from: from.clone() })
    }

    /// Writes the intermediate and its key; the rename of `intermediate.key` is what counts.
    pub(super) fn write_intermediate(&self, key: &KeyPair, certificate: &[u8]) -> Result<(), PkiError> {
        let pem = credentials::to_pem(&[certificate.to_vec()]);
        files::write_beside(&self.intermediate_key, &format!("{}{pem}", key.0.serialize_pem()), 0o600)?;
        files::write_beside(&self.intermediate, &pem, 0o644)
    }

    /// Replaces the intermediate, and returns the new certificate. The caller holds the lock.
    pub(super) fn replace_intermediate(
        &self,
        trust_domain: &TrustDomain,
        root: &[u8],
        root_key: KeyPair,
        now: Timestamp,
    ) -> Result<Vec<u8>, PkiError> {
        let key = KeyPair::generate()?;
        let made = certificate::intermediate(&key, trust_domain, root, root_key, now)?;
        if let Some(replaced) = self.read_replaced() {
            self.remember(&replaced, now)?;
        }
        self.write_intermediate(&key, &made)?;
        Ok(made)
    }

    /// Reads the certificate of the intermediate that is about to be replaced; none if no file holds it.
    fn read_replaced(&self) -> Option<Vec<u8>> {
        if let Ok(found) = self.read_intermediate() {
            return Some(found.certificate);
        }
        let copy = credentials::load_certificates(&self.intermediate).ok()?;
        let [copy] = <[Vec<u8>; 1]>::try_from(copy).ok()?;
        CaCertificate::read("the copy", &copy).is_ok().then_some(copy)
    }

    /// Reports whether `intermediate.pem` holds this intermediate's certificate and nothing else.
    pub(super) fn is_copied(&self, intermediate: &Intermediate) -> bool {
        credentials::load_certificates(&self.intermediate)
            .is_ok_and(|copy| copy == std::slice::from_ref(&intermediate.certificate))
    }

    /// Writes `intermediate.pem` again if it is not a copy. Returns whether it wrote. The caller holds the lock.
    pub(super) fn mend_copy(&self) -> Result<bool, PkiError> {
        let found = self.read_intermediate()?;
        let stale = !self.is_copied(&found);
        if stale {
            files::write_beside(&self.intermediate, &credentials::to_pem(&[found.certificate]), 0o644)?;
        }
        Ok(stale)
    }

    /// Reads the replaced intermediates that are valid at `now`, the newest last.
    pub(super) fn read_previous(&self, now: Timestamp) -> Result<Vec<Vec<u8>>, PkiError> {
        if self.previous.symlink_metadata().is_err() {
            return Ok(Vec::new());
        }
        let mut certificates = credentials::load_certificates(&self.previous)?;
        certificates.retain(|der| identity::not_after(der).is_ok_and(|end| end > now));
        Ok(certificates)
    }

    /// Remembers an intermediate that is about to be replaced.
    pub(super) fn remember(&self, certificate: &[u8], now: Timestamp) -> Result<(), PkiError> {
        // The list is for people alone: an unreadable one must not keep the authority from its renewal.
        let mut certificates = self.read_previous(now).unwrap_or_default();
        certificates.retain(|known| known != certificate);
        certificates.push(certificate.to_vec());
        let newest = certificates.split_off(certificates.len().saturating_sub(MAX_PREVIOUS));
        files::write_beside(&self.previous, &credentials::to_pem(&newest), 0o644)
    }

    /// Keeps other programs from renewing until the returned file is dropped.
    pub(super) fn lock(&self) -> Result<File, PkiError> {
        let failed = |source| PkiError::File { path: self.dir.clone(), source };
        let dir = File::open(&self.dir).map_err(failed)?;
        match dir.try_lock() {
            Ok(()) => Ok(dir),
            Err(TryLockError::WouldBlock) => Err(PkiError::RenewalUnderWay { path: self.dir.clone() }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

fn only(path: &Path, certificates: Vec<Vec<u8>>) -> Result<Vec<u8>, PkiError> {
    match <[Vec<u8>; 1]>::try_from(certificates) {
        Ok([one]) => Ok(one),
        Err(_) => Err(PkiError::malformed(path.display().to_string(), "it holds more than one certificate")),
    }
}
