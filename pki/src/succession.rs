//! The check of an identity that a broker has sent, before its receiver takes it up.
//!
//! **The problem.** A receiver that saves whatever a broker answers loses its identity to a wrong answer: a certificate of another
//! machine, of another authority, or one that has ended. From then on it can reach no broker, and an operator must enrol it again.
//!
//! **The rule.** A renewed identity names the same party in the same trust domain, is valid now, and leads to a root that the receiver
//! trusts already. A first identity leads to the root that the join token names. Each root that the receiver takes up is one that it
//! trusts, or one for which such a root *vouches*: the chain has a certificate of the new root's name and key that the old
//! root signed, and that may sign intermediates. So the holder of an intermediate's key can name no root.
//!
//! A root that comes without a voucher is left out, and the identity is taken up without it. Several brokers end the replacement of a
//! root one after the other: an agent that has learned from one of them that the old root is gone may renew at another that still
//! sends it, and nothing vouches for an old root.
//!
//! The same rule lets a command learn the next root from the chain that the broker shows ([`crate::vouching`]).
//!
//! **On failure.** The receiver keeps what it has.

use std::time::Duration;

use jiff::Timestamp;

use crate::credentials::Credentials;
use crate::identity::{self, SpiffeIdError};
use crate::vouching::is_vouched_for;
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
    /// The receiver trusts none of the new roots, and none of the old ones vouches for one of them.
    #[error("none of the new roots is one that this host trusts, or that such a root vouches for")]
    UnknownRoot,
    /// The roots do not contain the one that the join token names.
    #[error("the root that the join token names is not among the roots that the broker sent")]
    NotPinned,
    /// The chain leads to no root that the receiver trusts.
    #[error("the new certificate does not lead to a root that this host trusts")]
    Untrusted(#[source] Box<crate::PkiError>),
}

impl Credentials {
    /// Returns these credentials as they may take the place of `old` ones at `now`, without the roots that nothing vouches for. `now` is
    /// the broker's time, because a new certificate is valid by the clock that signed it.
    ///
    /// # Errors
    /// See [`SuccessionError`].
    pub fn into_successor_of(self, old: &Self, now: Timestamp) -> Result<Self, SuccessionError> {
        let (found, expected) = (identity::uri_of(self.leaf())?, identity::uri_of(old.leaf())?);
        if found != expected {
            return Err(SuccessionError::OtherParty { found, expected });
        }
        self.check_chain(old.roots(), now)?;
        let new = self.with_known_roots(old.roots(), now)?;
        // The roots replace the old ones: with roots that do not lead to its certificate, the next connection would be the last.
        new.check_chain(new.roots(), now)?;
        Ok(new)
    }

    /// Returns these credentials as a first identity under the root that a join token names, at the broker's time, without the roots
    /// that nothing vouches for.
    ///
    /// # Errors
    /// See [`SuccessionError`].
    pub fn into_first_under(self, pinned: Fingerprint, now: Timestamp) -> Result<Self, SuccessionError> {
        let is_pinned = |root: &&Vec<u8>| Fingerprint::of(root) == pinned;
        let root = self.roots().iter().find(is_pinned).ok_or(SuccessionError::NotPinned)?.clone();
        let root = std::slice::from_ref(&root);
        self.check_chain(root, now)?;
        self.with_known_roots(root, now)
    }

    /// Keeps those of the roots that are trusted, or for which a trusted one vouches.
    fn with_known_roots(mut self, trusted: &[Vec<u8>], now: Timestamp) -> Result<Self, SuccessionError> {
        let is_known =
            |root: &Vec<u8>| trusted.contains(root) || is_vouched_for(root, trusted, &self.chain, now);
        self.roots.retain(is_known);
        if self.roots.is_empty() { Err(SuccessionError::UnknownRoot) } else { Ok(self) }
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
