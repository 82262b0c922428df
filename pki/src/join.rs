//! Join tokens: a random secret, and the fingerprint of the root that the agent must trust at first contact.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use postern_core::Invalid;
use rand::TryRngCore as _;
use sha2::{Digest as _, Sha256};

use crate::PkiError;

/// The SHA-256 of a root certificate (DER).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Returns the fingerprint of a certificate (DER).
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

/// A token with which the agent of one target can enrol once. Its `Debug` shows no part of the secret.
pub struct JoinToken {
    secret: [u8; 32],
    fingerprint: Fingerprint,
}

const PREFIX: &str = "postern1";

impl JoinToken {
    /// The longest time for which a token may be valid.
    pub const MAX_VALIDITY: Duration = Duration::from_secs(600);

    /// Makes a token of 256 random bits for the authority with this root.
    ///
    /// # Errors
    /// The system returns no random bytes.
    pub fn generate(fingerprint: Fingerprint) -> Result<Self, PkiError> {
        let mut secret = [0; 32];
        rand::rngs::OsRng
            .try_fill_bytes(&mut secret)
            .map_err(|error| PkiError::Crypto { problem: error.to_string() })?;
        Ok(Self { secret, fingerprint })
    }

    /// Returns the token as text. The text is a secret: its holder can enrol.
    pub fn to_text(&self) -> String {
        let encode = |bytes: &[u8]| BASE32_NOPAD.encode(bytes).to_ascii_lowercase();
        format!("{PREFIX}.{}.{}", encode(&self.secret), encode(&self.fingerprint.0))
    }

    /// Returns the SHA-256 of the secret, which is all that the store keeps.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// Returns the fingerprint of the root to trust.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl FromStr for JoinToken {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            Invalid::new("token", "is not a join token", "paste the whole output of `postern agents token`")
        };
        let decode = |part: &str| {
            let bytes = BASE32_NOPAD.decode(part.to_ascii_uppercase().as_bytes()).map_err(|_| wrong())?;
            <[u8; 32]>::try_from(bytes).map_err(|_| wrong())
        };
        match text.trim().split('.').collect::<Vec<_>>()[..] {
            [PREFIX, secret, root] => {
                Ok(Self { secret: decode(secret)?, fingerprint: Fingerprint(decode(root)?) })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_and_hides_its_secret() {
        let token = JoinToken::generate(Fingerprint([7; 32])).unwrap();
        let text = token.to_text();
        let back: JoinToken = text.parse().unwrap();
        assert_eq!((back.hash(), back.fingerprint()), (token.hash(), Fingerprint([7; 32])));
        assert_eq!(format!("{token:?}"), "JoinToken(..)");
        for bad in [
            "",
            "postern1",
            &text[..text.len() - 1],
            &text.replace("postern1", "postern2"),
            &format!("{text}.x"),
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }
}
