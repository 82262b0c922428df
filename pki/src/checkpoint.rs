//! Signed checkpoints of the audit log (I9).
//!
//! **The problem.** A checkpoint ([`Checkpoint`]) proves something only if the store that holds the log could not have made
//! it, and only if a reader can check it years later, without the broker.
//!
//! **The rule.** The authority's intermediate signs the text of the checkpoint (ECDSA with P-256 and SHA-256), and its
//! certificate travels with the signature. So a reader needs the root alone, as for every other certificate. An intermediate
//! is replaced each year: a checkpoint is good if its own time lies within the life of the certificate, whatever the time is
//! now. The certificate must be one of a certificate authority, so that no agent and no person can sign one, and its mark must allow
//! it to sign for agents and brokers ([`crate::purpose`]), so that the holder of the key for people can sign none either.
//!
//! A checkpoint by a revoked intermediate proves nothing, whenever it says that it was made: a thief writes any time into it. Only a broker
//! knows which intermediates are revoked ([`CheckpointTrust::revoked`]).
//!
//! **The form.** A checkpoint is one line of JSON: the fields of [`Checkpoint`], then `signature` (ASN.1, in base64) and
//! `certificate` (DER, in base64). `docs/operations.md` shows how to verify one with openssl.
//!
//! [`LogVerifier`] verifies the lines of a log together with the checkpoints in them.

mod log;

use std::collections::HashSet;
use std::fmt;

use data_encoding::BASE64;
use jiff::Timestamp;
use postern_core::KeyHash;
use postern_core::checkpoint::Checkpoint;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use self::log::{Coverage, LogVerifier};
use crate::authority::{CaCertificate, is_signed_by};
use crate::life::Life;
use crate::purpose::{self, Purpose};
use crate::{PkiError, identity};

/// The longest line of a signed checkpoint that is read, in bytes.
pub const MAX_LINE_BYTES: usize = 8192;

/// A checkpoint with the signature of a broker. [`Self::verify`] tells whether the signature is good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line", into = "Line")]
pub struct SignedCheckpoint {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    signature: Vec<u8>,
    certificate: Vec<u8>,
}

/// A checkpoint as its line of JSON.
#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    checkpoint: Checkpoint,
    signature: String,
    certificate: String,
}

/// A checkpoint that is not good.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The text is not a checkpoint.
    #[error("it is not a signed checkpoint: {problem}")]
    Malformed {
        /// The problem.
        problem: String,
    },
    /// The certificate is not that of an authority's intermediate under a trusted root.
    #[error("no trusted root has signed the certificate in it as that of an authority")]
    Untrusted,
    /// The certificate is that of an intermediate for people.
    #[error("the intermediate that signed it is not for {}, and only such a one signs checkpoints", Purpose::Agents.parties())]
    OtherPurpose,
    /// The intermediate that signed it is revoked.
    #[error("the intermediate {key} that signed it is revoked")]
    Revoked {
        /// The hash of the intermediate's public key.
        key: KeyHash,
    },
    /// The checkpoint was made outside the life of the certificate.
    #[error("it was made at {at}, when the certificate in it was not valid ({valid})")]
    NotValid {
        /// The time of the checkpoint.
        at: Timestamp,
        /// The time for which the certificate is valid.
        valid: String,
    },
    /// The checkpoint is of another trust domain.
    #[error("it is of the trust domain {found}, not of {expected}")]
    OtherTrustDomain {
        /// The trust domain in the checkpoint.
        found: String,
        /// The expected one.
        expected: String,
    },
    /// The signature is not that of the certificate's key over this checkpoint.
    #[error("its signature does not match")]
    BadSignature,
}

/// The intermediates that a reader trusts to sign checkpoints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointTrust {
    /// The roots that vouch for intermediates, DER.
    pub roots: Vec<Vec<u8>>,
    /// The intermediates that are revoked, by the hashes of their public keys. Only a broker knows them.
    pub revoked: HashSet<KeyHash>,
}

impl CheckpointTrust {
    /// Verifies a checkpoint as [`SignedCheckpoint::verify`] does, and that its signer is not revoked.
    ///
    /// # Errors
    /// The checkpoint is not good.
    pub fn verify(
        &self,
        signed: &SignedCheckpoint,
        trust_domain: Option<&str>,
    ) -> Result<(), CheckpointError> {
        signed.verify(&self.roots, trust_domain)?;
        let key = identity::key_hash(&signed.certificate).map_err(|_| CheckpointError::Untrusted)?;
        if self.revoked.contains(&key) { Err(CheckpointError::Revoked { key }) } else { Ok(()) }
    }
}

impl From<Vec<Vec<u8>>> for CheckpointTrust {
    /// Trusts every intermediate for agents under these roots (DER).
    fn from(roots: Vec<Vec<u8>>) -> Self {
        Self { roots, revoked: HashSet::new() }
    }
}

impl SignedCheckpoint {
    pub(crate) fn new(checkpoint: Checkpoint, signature: Vec<u8>, certificate: Vec<u8>) -> Self {
        Self { checkpoint, signature, certificate }
    }

    /// Reads a checkpoint from its line. Its signature may be any.
    ///
    /// # Errors
    /// The text is longer than [`MAX_LINE_BYTES`], or not a checkpoint.
    pub fn parse(line: &str) -> Result<Self, CheckpointError> {
        let malformed = |problem: String| CheckpointError::Malformed { problem };
        let line = line.trim();
        if line.len() > MAX_LINE_BYTES {
            return Err(malformed(format!("it is longer than {MAX_LINE_BYTES} bytes")));
        }
        serde_json::from_str(line).map_err(|error| malformed(error.to_string()))
    }

    /// Verifies the signature at the checkpoint's own time, under one of these roots (DER). A trust domain is compared if it
    /// is given.
    ///
    /// # Errors
    /// The checkpoint is not good.
    pub fn verify(&self, roots: &[Vec<u8>], trust_domain: Option<&str>) -> Result<(), CheckpointError> {
        let Self { checkpoint, signature, certificate } = self;
        if let Some(expected) = trust_domain.filter(|expected| *expected != checkpoint.trust_domain) {
            let (found, expected) = (checkpoint.trust_domain.clone(), expected.to_owned());
            return Err(CheckpointError::OtherTrustDomain { found, expected });
        }
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CheckpointError::Untrusted)?;
        let signs_certificates =
            parsed.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign());
        if !parsed.is_ca() || !signs_certificates || !roots.iter().any(|root| is_signed_by(certificate, root))
        {
            return Err(CheckpointError::Untrusted);
        }
        let marks = purpose::marks(certificate).map_err(|_| CheckpointError::Untrusted)?;
        if !purpose::may_sign(&marks, Purpose::Agents) {
            return Err(CheckpointError::OtherPurpose);
        }
        let life = self.life().ok_or(CheckpointError::Untrusted)?;
        if !life.holds(checkpoint.at) {
            let valid = format!("{:.0} to {:.0}", life.not_before, life.not_after);
            return Err(CheckpointError::NotValid { at: checkpoint.at, valid });
        }
        let key =
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &parsed.public_key().subject_public_key.data);
        key.verify(checkpoint.to_text().as_bytes(), signature).map_err(|_| CheckpointError::BadSignature)
    }

    /// Returns the facts of the certificate that signed.
    ///
    /// # Errors
    /// The certificate cannot be read.
    pub fn signer(&self) -> Result<CaCertificate, PkiError> {
        CaCertificate::read("the certificate of the checkpoint", &self.certificate)
    }

    /// Returns the certificate that signed, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    fn life(&self) -> Option<Life> {
        let (not_before, not_after) = identity::validity(&self.certificate).ok()?;
        Some(Life { not_before, not_after })
    }
}

impl fmt::Display for SignedCheckpoint {
    /// Writes the checkpoint as its line of JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl From<SignedCheckpoint> for Line {
    fn from(signed: SignedCheckpoint) -> Self {
        Self {
            checkpoint: signed.checkpoint,
            signature: BASE64.encode(&signed.signature),
            certificate: BASE64.encode(&signed.certificate),
        }
    }
}

impl TryFrom<Line> for SignedCheckpoint {
    type Error = String;

    fn try_from(line: Line) -> Result<Self, String> {
        let bytes = |name: &str, text: &str| {
            BASE64.decode(text.as_bytes()).map_err(|error| format!("{name} is not base64: {error}"))
        };
        Ok(Self {
            signature: bytes("signature", &line.signature)?,
            certificate: bytes("certificate", &line.certificate)?,
            checkpoint: line.checkpoint,
        })
    }
}
