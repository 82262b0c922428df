//! The keys of an agent's certificates, and the rule for who may use them.
//!
//! **The problem.** A copy of an agent's state (a backup, a stolen disk, a cloned VM) holds a valid key. If every certificate of the
//! authority were enough, the copy could renew beside the machine for ever, and take its sessions.
//!
//! **The words.** A certificate is known by its *key*: the SHA-256 of its public key ([`KeyHash`]). The record of an agent holds the
//! *newest* key, which the broker signed last, and the one *before*, with which that was asked for.
//!
//! **The rule.**
//!
//! | shown key | session | renewal to a new key |
//! | --- | --- | --- |
//! | newest | admitted; from then on the key before is void | newest becomes before, the new one is the newest |
//! | before, while no session has used the newest | admitted | the repeat of a renewal whose answer was lost: the new one replaces the newest |
//! | before, after a session has used the newest | a clone | a clone |
//! | any other | a clone | a clone |
//!
//! Two holders of one key cannot both go on: each renewal voids what the other holds, at the latest when it is used. The one whose
//! renewed key is first used in a session, or renewed again, wins; the other is refused, and its next attempt is the alarm. The broker
//! cannot know which of them is the machine: an operator bans the agent or enrols it again, and either replaces both keys.
//!
//! **On failure.** A record of a version that did not keep keys has none, and adopts the key that it sees first. A store that lost
//! records may know neither key of a machine: a certificate that ends later than any that the record knows was signed after the
//! record was written, so the record adopts it ([`Claim::Adopted`]).

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of the public key of a certificate (its SubjectPublicKeyInfo, DER).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyHash([u8; 32]);

impl KeyHash {
    /// Returns the hash of a SubjectPublicKeyInfo (DER).
    pub fn of(public_key_info: &[u8]) -> Self {
        Self(Sha256::digest(public_key_info).into())
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl FromStr for KeyHash {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(Self).ok_or_else(|| "the hash of a key is 64 lower-case hexadecimal digits".to_owned())
    }
}

impl TryFrom<String> for KeyHash {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<KeyHash> for String {
    fn from(hash: KeyHash) -> String {
        hash.to_string()
    }
}

/// The keys that an agent may use. Without a newest key it may use none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentKeys {
    /// The key of the newest certificate.
    newest: Option<KeyHash>,
    /// The key with which that certificate was asked for.
    before: Option<KeyHash>,
    /// Set if a session has used the newest key: the one before is void.
    newest_used: bool,
}

/// A key as a caller shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShownKey {
    /// The key.
    pub key: KeyHash,
    /// Set if its certificate ends later than any that the record knows.
    pub is_later: bool,
}

/// The refusal of a key: two machines hold the identity of one agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Cloned {
    /// The record has the key as the one before, and its successor has been used.
    #[error("this key was renewed, and the renewed key has been used since")]
    Renewed,
    /// Another machine has a session with the same key.
    #[error("two machines use the key of this agent at the same time")]
    SameKey,
    /// The record does not know the key.
    #[error("the broker knows newer keys of this agent and not this one")]
    Unknown,
}

impl Cloned {
    /// Returns the word for machines.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Renewed => "renewed",
            Self::SameKey => "same_key",
            Self::Unknown => "unknown",
        }
    }
}

impl AgentKeys {
    /// Returns the keys of an agent that has enrolled with this one.
    pub fn enrolled(key: KeyHash) -> Self {
        Self { newest: Some(key), before: None, newest_used: true }
    }

    /// Returns the keys of an agent that may use none.
    pub fn none() -> Self {
        Self::default()
    }

    /// Returns the keys after a renewal from one key, which [`Self::check`] admits, to a new one.
    pub fn renewed(from: KeyHash, to: KeyHash) -> Self {
        // Whatever the claim of the key was, it is the one before from now on.
        Self { newest: Some(to), before: Some(from), newest_used: false }
    }

    /// Reports whether a key is that of the newest certificate.
    pub fn is_newest(&self, key: KeyHash) -> bool {
        self.newest == Some(key)
    }

    /// Reports whether a session has used the key of the newest certificate: the agent has received that one.
    pub fn is_newest_used(&self) -> bool {
        self.newest_used
    }

    /// Decides whether a key admits its holder.
    ///
    /// # Errors
    /// The key is a clone's.
    pub fn check(known: Option<Self>, shown: ShownKey) -> Result<Claim, Cloned> {
        let Some(keys) = known else { return Ok(Claim::Adopted) };
        if keys.newest == Some(shown.key) {
            Ok(Claim::Newest)
        } else if keys.before == Some(shown.key) {
            if keys.newest_used { Err(Cloned::Renewed) } else { Ok(Claim::Before) }
        } else if shown.is_later && keys.newest.is_some() {
            Ok(Claim::Adopted)
        } else {
            Err(Cloned::Unknown)
        }
    }

    /// Decides on a session with a key. Returns the change of the keys to record, if they change.
    ///
    /// # Errors
    /// The key is a clone's.
    pub fn session(known: Option<Self>, shown: ShownKey) -> Result<Option<FirstUse>, Cloned> {
        let claim = Self::check(known, shown)?;
        let keys = match (claim, known) {
            (Claim::Before, _) => return Ok(None),
            (Claim::Newest, Some(keys)) if keys.newest_used => return Ok(None),
            (Claim::Newest, Some(keys)) => Self { newest_used: true, ..keys },
            (Claim::Newest | Claim::Adopted, _) => Self::enrolled(shown.key),
        };
        Ok(Some(FirstUse { keys, adopted: claim == Claim::Adopted }))
    }
}

/// The claim of a key that is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The record has it as the newest.
    Newest,
    /// The record has it as the one before, and no session has used the newest.
    Before,
    /// The record does not know it, and adopts it: the record knows no key, or the store has lost the record of this one.
    Adopted,
}

/// The first session with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstUse {
    /// The keys to record.
    pub keys: AgentKeys,
    /// Set if the record did not know the key, and adopts it.
    pub adopted: bool,
}

#[cfg(test)]
mod tests;
