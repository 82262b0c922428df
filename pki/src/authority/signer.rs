//! An intermediate in use, with its key.

use jiff::Timestamp;
use postern_core::KeyHash;
use postern_core::checkpoint::Checkpoint;
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, SigningKey as _};
use rustls::pki_types::CertificateDer;

use super::certificate;
use super::certificate::{CaCertificate, earlier, is_of_key, later};
use super::disk::{Intermediate, Paths, Slot};
use super::roots::Roots;
use crate::checkpoint::SignedCheckpoint;
use crate::life::{BACKDATE, Life};
use crate::{PkiError, identity};

/// A fresh certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The certificate and the intermediate that signed it, DER, leaf first. While a root is being replaced, the certificate by which
    /// the old root vouches for the next one follows.
    pub chain: Vec<Vec<u8>>,
    /// The end of the certificate.
    pub not_after: Timestamp,
    /// The root that it leads to without the voucher, by the hash of its public key.
    pub root: KeyHash,
}

/// An intermediate that signs.
pub(super) struct Signer {
    pub(super) certificate: Vec<u8>,
    pub(super) facts: CaCertificate,
    /// The key of the root that signed the intermediate.
    root: KeyHash,
    /// The certificate by which the old root vouches for the next one, while a root is being replaced.
    voucher: Option<Vec<u8>>,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Signer {
    /// Reads the intermediate for agents from disk.
    pub(super) fn on_disk(paths: &Paths, roots: &Roots) -> Result<Self, PkiError> {
        let found = paths.agents.read().and_then(|found| Self::of(found, &paths.agents, roots));
        // A key that may have leaked keeps its own error: an operator must know before another takes its place.
        let is_leak =
            |error: &PkiError| matches!(error, PkiError::ExposedKey { .. } | PkiError::ForeignKey(_));
        found.map_err(|error| if is_leak(&error) { error } else { PkiError::NoIntermediate(Box::new(error)) })
    }

    /// Makes a signer of an intermediate from this place.
    pub(super) fn of(found: Intermediate, slot: &Slot, roots: &Roots) -> Result<Self, PkiError> {
        let Intermediate { key, certificate, from } = found;
        let from = from.display().to_string();
        let facts = CaCertificate::read(&from, &certificate)?;
        if !is_of_key(&certificate, &key) {
            return Err(PkiError::KeyMismatch);
        }
        // Otherwise the authority would sign certificates that no peer trusts.
        let Some(root) = roots.signer_of(&certificate).map(|root| root.facts.key) else {
            let problem = format!("{} did not sign it; put back the two that belong together", roots.file());
            return Err(PkiError::malformed(from, problem));
        };
        if facts.purpose.is_some_and(|purpose| purpose != slot.purpose) {
            let problem = format!("it is not the intermediate for {}", slot.purpose.parties());
            return Err(PkiError::malformed(from, problem));
        }
        let issuer = Issuer::from_ca_cert_der(&CertificateDer::from(certificate.as_slice()), key.0)?;
        let voucher = roots.next.as_ref().map(|next| next.voucher.clone());
        Ok(Self { certificate, facts, root, voucher, issuer })
    }

    pub(super) fn check_valid(&self, now: Timestamp) -> Result<(), PkiError> {
        let Life { not_before, not_after } = self.facts.life;
        if self.facts.life.holds(now) {
            return Ok(());
        }
        Err(PkiError::AuthorityNotValid { valid: format!("{not_before:.0} to {not_after:.0}") })
    }

    /// Returns the life of a certificate that is signed at `now`: no longer than the intermediate's own.
    pub(super) fn leaf_life(&self, lifetime: std::time::Duration, now: Timestamp) -> Life {
        let not_after = later(now, lifetime).min(self.facts.life.not_after);
        Life { not_before: earlier(now, BACKDATE), not_after }
    }

    /// Signs a checkpoint of the audit log, and adds the certificate of this intermediate.
    pub(super) fn sign_checkpoint(&self, checkpoint: Checkpoint) -> Result<SignedCheckpoint, PkiError> {
        self.check_valid(checkpoint.at)?;
        let signature = self.issuer.key().sign(checkpoint.to_text().as_bytes())?;
        Ok(SignedCheckpoint::new(checkpoint, signature, self.certificate.clone()))
    }

    /// Signs the key of a request for these names.
    pub(super) fn sign(
        &self,
        mut params: CertificateParams,
        life: Life,
        csr: &[u8],
    ) -> Result<Issued, PkiError> {
        certificate::set_validity(&mut params, life.not_before, life.not_after)?;
        let bad = |error: rcgen::Error| PkiError::BadRequest { problem: error.to_string() };
        // Checks the signature of the request, which proves that its sender has the key.
        let request = CertificateSigningRequestParams::from_der(&csr.into()).map_err(bad)?;
        let signed = params.signed_by(&request.public_key, &self.issuer)?;
        let not_after = identity::not_after(signed.der())
            .map_err(|error| PkiError::Crypto { problem: error.to_string() })?;
        let leaf = [signed.der().to_vec(), self.certificate.clone()];
        let chain = leaf.into_iter().chain(self.voucher.clone()).collect();
        Ok(Issued { chain, not_after, root: self.root })
    }
}
