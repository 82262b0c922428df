//! The purpose of an intermediate: the parties for which it may sign.
//!
//! **The problem.** The key of the intermediate that signs for agents lies on every broker's machine. If its certificates could
//! name people, a copy of a broker's disk could make an administrator.
//!
//! **The words.** The root marks each intermediate with a *purpose*, as a certificate policy: one signs for agents and brokers,
//! the other for people. An intermediate of an earlier version has no mark, and signs for every party until it is renewed.
//!
//! **The rule.** A certificate counts only if the intermediate that signed it may sign for the party that it names. Brokers, agents
//! and commands all check it here, after the chain itself ([`crate::tls`]).
//!
//! The signer is found by the signature. A peer may present further certificates besides: each one with the signer's name whose key
//! verifies the signature must be fit, so that a certificate that a thief made of a stolen key hides no mark. The signer's path
//! length is 0, so that it cannot sign another intermediate.
//!
//! **On failure.** The handshake fails. A certificate without its intermediate, or with too many that could be, is refused, too.

use postern_core::KeyHash;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::{self, SpiffeId, SpiffeIdError};

/// The content of the object identifier 2.25.253398655019114296137411635879562198150, DER.
const AGENTS: [u8; 20] = [
    0x69, 0x82, 0xfd, 0xa2, 0xe7, 0x91, 0xc2, 0xd2, 0xc2, 0xb7, 0xbd, 0x96, 0x9f, 0x97, 0x94, 0x97, 0x8d,
    0x80, 0xf9, 0x06,
];
/// The content of the object identifier 2.25.5066905392059839057318794779519774604, DER.
const PEOPLE: [u8; 19] = [
    0x69, 0x87, 0xcf, 0xec, 0xee, 0xa6, 0x82, 0x82, 0xaf, 0xd1, 0xb9, 0x86, 0x81, 0x95, 0xe3, 0xa1, 0xa9,
    0xdf, 0x0c,
];
/// The extension for certificate policies (RFC 5280, 4.2.1.4).
pub(crate) const POLICIES: [u64; 4] = [2, 5, 29, 32];
/// The most certificates of a chain that may have the signer's name.
const MAX_CANDIDATES: usize = 8;

/// The parties for which an intermediate signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Agents and brokers.
    Agents,
    /// People and services, which are principals.
    People,
}

/// A certificate whose signer may not sign for the party that it names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PurposeError {
    /// The certificate or its signer cannot be read, or the certificate names no party.
    #[error(transparent)]
    Unreadable(#[from] SpiffeIdError),
    /// The chain has no intermediate that signed the certificate, or too many that could have.
    #[error("the certificate does not come with the one intermediate that signed it")]
    NoSigner,
    /// The signer is for other parties.
    #[error("the intermediate that signed the certificate is not for {}", .0.parties())]
    OtherPurpose(Purpose),
}

impl Purpose {
    /// Returns the purpose of an intermediate that may sign for this party.
    pub fn of_party(id: &SpiffeId) -> Self {
        match id {
            SpiffeId::Broker | SpiffeId::Agent(_) => Self::Agents,
            SpiffeId::Principal { .. } => Self::People,
        }
    }

    /// Names the parties.
    pub fn parties(self) -> &'static str {
        match self {
            Self::Agents => "agents and brokers",
            Self::People => "people",
        }
    }

    /// Returns the content of the extension that marks an intermediate, DER: one policy without qualifiers.
    pub(crate) fn policies(self) -> Vec<u8> {
        let policy = tagged(0x06, self.oid().to_vec());
        tagged(0x30, tagged(0x30, policy))
    }

    fn oid(self) -> &'static [u8] {
        match self {
            Self::Agents => &AGENTS,
            Self::People => &PEOPLE,
        }
    }
}

/// Returns the purposes with which an intermediate (DER) is marked; none is the mark of an earlier version.
///
/// # Errors
/// The certificate cannot be read.
pub fn marks(intermediate: &[u8]) -> Result<Vec<Purpose>, SpiffeIdError> {
    let (_, certificate) = X509Certificate::from_der(intermediate).map_err(|_| SpiffeIdError::Unreadable)?;
    let mut marks = Vec::new();
    for extension in certificate.extensions() {
        let parsed = extension.parsed_extension();
        if let ParsedExtension::CertificatePolicies(policies) = parsed {
            let is_marked = |purpose: &Purpose| {
                policies.iter().any(|policy| policy.policy_id.as_bytes() == purpose.oid())
            };
            marks.extend([Purpose::Agents, Purpose::People].into_iter().filter(is_marked));
        } else if let ParsedExtension::ParseError { .. } = parsed {
            return Err(SpiffeIdError::Unreadable);
        }
    }
    Ok(marks)
}

/// Reports whether an intermediate with these marks may sign for this purpose.
pub(crate) fn may_sign(marks: &[Purpose], purpose: Purpose) -> bool {
    marks.iter().all(|mark| *mark == purpose)
}

/// Checks that the signer of a certificate (DER) may sign for the party that the certificate names. The chain itself is verified
/// elsewhere. `others` are the certificates that came with it.
///
/// # Errors
/// See [`PurposeError`].
pub fn check<C: AsRef<[u8]>>(leaf: &[u8], others: &[C]) -> Result<(), PurposeError> {
    let id = SpiffeId::of_certificate(leaf, &identity::trust_domain_of(leaf)?)?;
    let purpose = Purpose::of_party(&id);
    for signer in signers(leaf, others)? {
        if !may_sign(&marks(signer)?, purpose) {
            return Err(PurposeError::OtherPurpose(purpose));
        }
    }
    Ok(())
}

/// Returns the keys of the intermediates that signed a certificate (DER): one, unless the peer presents copies.
///
/// # Errors
/// The chain has no signer, or a certificate cannot be read.
pub fn signer_keys<C: AsRef<[u8]>>(leaf: &[u8], others: &[C]) -> Result<Vec<KeyHash>, PurposeError> {
    let signers = signers(leaf, others)?;
    signers.into_iter().map(|signer| identity::key_hash(signer).map_err(PurposeError::from)).collect()
}

/// Returns the certificates with the signer's name whose key verifies the signature of the leaf.
fn signers<'a, C: AsRef<[u8]>>(leaf: &[u8], others: &'a [C]) -> Result<Vec<&'a [u8]>, PurposeError> {
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| SpiffeIdError::Unreadable)?;
    let (mut signers, mut candidates) = (Vec::new(), 0);
    for other in others {
        let other = other.as_ref();
        let Ok((_, certificate)) = X509Certificate::from_der(other) else { continue };
        if certificate.subject().as_raw() != leaf.issuer().as_raw() {
            continue;
        }
        candidates += 1;
        if candidates > MAX_CANDIDATES {
            return Err(PurposeError::NoSigner);
        }
        if leaf.verify_signature(Some(certificate.public_key())).is_ok() {
            signers.push(other);
        }
    }
    if signers.is_empty() { Err(PurposeError::NoSigner) } else { Ok(signers) }
}

/// Encodes a value of fewer than 128 bytes under a tag, DER.
fn tagged(tag: u8, content: Vec<u8>) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap_or_default();
    [vec![tag, length], content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_one_policy_in_der() {
        let der = Purpose::People.policies();
        assert_eq!(der.len(), 25);
        assert_eq!(der[..6], [0x30, 23, 0x30, 21, 0x06, 19]);
        assert_eq!(Purpose::Agents.policies()[..6], [0x30, 24, 0x30, 22, 0x06, 20]);
    }

    #[test]
    fn an_intermediate_without_a_mark_signs_for_every_party_and_one_with_both_for_none() {
        let (agents, people) = (Purpose::Agents, Purpose::People);
        assert!(may_sign(&[], agents) && may_sign(&[], people));
        assert!(may_sign(&[agents], agents) && !may_sign(&[agents], people));
        assert!(!may_sign(&[agents, people], agents) && !may_sign(&[agents, people], people));
    }
}
