//! The check of an identity that a broker has sent, before its receiver takes it up.
//!
//! **The problem.** A receiver that saves whatever a broker answers loses its identity to a wrong answer: a certificate of another
//! machine, of another authority, or one that has ended. From then on it can reach no broker, and an operator must enrol it again.
//!
//! **The rule.** A renewed identity names the same party in the same trust domain, is valid now, leads to a root that the receiver
//! trusts already, and comes with roots that contain one of the old ones. A first identity leads to the root that the join token
//! names.
//!
//! **On failure.** The receiver keeps what it has.

use std::time::Duration;

use jiff::Timestamp;

use crate::credentials::Credentials;
use crate::identity::{self, SpiffeIdError};
use crate::{Fingerprint, tls};

/// The time by which the given time may be behind the signer's: a certificate that begins within it counts as valid.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);

/// An identity that must not be taken up.
#[derive(Debug, thiserror::Error)]
pub enum SuccessionError {
    /// The certificate carries no id.
    #[error("the new certificate carries no id of Postern")]
    NoId(#[from] SpiffeIdError),
    /// The certificate names another party.
    #[error("the new certificate names {found}, and this host is {expected}")]
    OtherParty {
        /// The id of the new certificate.
        found: String,
        /// The id of the old one.
        expected: String,
    },
    /// The certificate is not valid now.
    #[error(
        "the new certificate is valid from {not_before:.0} to {not_after:.0}, and not now; check the clocks of this host and of the broker"
    )]
    NotValid {
        /// The first moment at which it is valid.
        not_before: Timestamp,
        /// Its end.
        not_after: Timestamp,
    },
    /// None of the old roots is among the new ones.
    #[error("none of the roots that this host trusts is among the new ones")]
    OtherRoots,
    /// The roots do not contain the one that the join token names.
    #[error("the root that the join token names is not among the roots that the broker sent")]
    NotPinned,
    /// The chain leads to no root that the receiver trusts.
    #[error("the new certificate does not lead to a root that this host trusts")]
    Untrusted(#[source] Box<crate::PkiError>),
}

impl Credentials {
    /// Checks that these credentials may take the place of `old` ones at `now`: the broker's time, because a new certificate is valid
    /// by the clock that signed it.
    ///
    /// # Errors
    /// See [`SuccessionError`].
    pub fn check_successor_of(&self, old: &Self, now: Timestamp) -> Result<(), SuccessionError> {
        let (found, expected) = (identity::uri_of(self.leaf())?, identity::uri_of(old.leaf())?);
        if found != expected {
            return Err(SuccessionError::OtherParty { found, expected });
        }
        if !self.roots().iter().any(|root| old.roots().contains(root)) {
            return Err(SuccessionError::OtherRoots);
        }
        self.check_chain(old.roots(), now)?;
        // The roots replace the old ones: with roots that do not lead to its certificate, the next connection would be the last.
        self.check_chain(self.roots(), now)
    }

    /// Checks that these credentials are a first identity under the root that a join token names, at the broker's time.
    ///
    /// # Errors
    /// See [`SuccessionError`].
    pub fn check_first_under(&self, pinned: Fingerprint, now: Timestamp) -> Result<(), SuccessionError> {
        let is_pinned = |root: &&Vec<u8>| Fingerprint::of(root) == pinned;
        let root = self.roots().iter().find(is_pinned).ok_or(SuccessionError::NotPinned)?;
        self.check_chain(std::slice::from_ref(root), now)
    }

    fn check_chain(&self, roots: &[Vec<u8>], now: Timestamp) -> Result<(), SuccessionError> {
        let (not_before, not_after) = (self.not_before(), self.not_after());
        let early = Duration::try_from(not_before.duration_since(now)).unwrap_or_default();
        if early > CLOCK_TOLERANCE || now >= not_after {
            return Err(SuccessionError::NotValid { not_before, not_after });
        }
        let untrusted = |error| SuccessionError::Untrusted(Box::new(error));
        tls::verify_client(&self.tls_chain(), roots, now.max(not_before)).map_err(untrusted)
    }
}
