//! Seals: the proof that a broker wrote a record, so that a database can lose and replay records, but neither make nor change one.
//!
//! **The problem.** Who can write the database could write an agent, a grant or a policy of their own, and a broker would act on
//! it.
//!
//! **The words.** The *records key* is 32 random bytes of the data directory, which no database has. A *seal* is an HMAC-SHA-256 with
//! that key over the tenant, the kind, the key, the version and the text of a record. A kind says whether its records are sealed
//! ([`Kind::sealed`](crate::Kind::sealed)); every kind that gives or takes rights is. A record whose seal does not fit is *forged*.
//!
//! **The rule.** [`Store`](crate::Store) seals what it writes and checks what it reads, whatever the database is. A forged
//! record gives no right: it is an error where one record is read ([`StoreError::Forged`]), and is left out of lists. A list of
//! a kind of which no record may be left out ([`Kind::sealed_whole`](crate::Kind::sealed_whole)) is that error. An entry of an index counts only
//! if the record itself says that it belongs there.
//!
//! **Existing stores.** A store of a schema without seals is sealed once, by a data directory that has no key yet
//! ([`Sealing::first`]). A data directory that has a key seals no record that another program wrote, whatever the schema says.
//!
//! **On failure.** A store that was sealed with another key is refused as a whole ([`StoreError::OtherKey`]): it is the mistake of an
//! operator who set up a further broker. What a broker found forged is in [`Forgeries`](crate::Forgeries).

use std::fmt;
use std::sync::Arc;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest as hash, hmac};

use crate::error::StoreError;
use crate::kind::Version;

/// The first word of a sealed text.
const PREFIX: &str = "hmac1 ";
/// The purposes of the key, so that no seal is good for another one.
const RECORD: &str = "postern/record/1";
const KEY_ID: &str = "postern/records-key-id/1";
/// The length of a key, in bytes.
const KEY_BYTES: usize = 32;

/// The key with which records are sealed. Its `Debug` shows no part of it.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordsKey([u8; KEY_BYTES]);

impl RecordsKey {
    /// Makes a key of random bytes.
    ///
    /// # Errors
    /// The system returns no random bytes.
    pub fn generate() -> Result<Self, StoreError> {
        let mut bytes = [0; KEY_BYTES];
        let no_random = |_| StoreError::Unavailable { source: "the system returns no random bytes".into() };
        SystemRandom::new().fill(&mut bytes).map_err(no_random)?;
        Ok(Self(bytes))
    }

    /// Makes a key of these bytes.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Reads the text that [`Self::to_text`] makes; none if it is not such a text.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = HEXLOWER.decode(text.trim().as_bytes()).ok()?;
        bytes.try_into().ok().map(Self)
    }

    /// Returns the key as text, for its file: 64 hexadecimal digits and a line break.
    pub fn to_text(&self) -> String {
        format!("{}\n", HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for RecordsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordsKey(..)")
    }
}

/// The key of a data directory, and whether that directory has sealed a store before.
#[derive(Debug, Clone)]
pub struct Sealing {
    key: RecordsKey,
    is_first: bool,
}

impl Sealing {
    /// Seals with the key of a data directory that has sealed its store: records without a seal are forged.
    pub fn with(key: RecordsKey) -> Self {
        Self { key, is_first: false }
    }

    /// Seals with a key that a data directory has just got: records of a schema without seals are sealed as they are.
    pub fn first(key: RecordsKey) -> Self {
        Self { key, is_first: true }
    }

    /// Reports whether records of a schema without seals are sealed.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }

    /// Returns the maker and checker of the seals of one tenant; the embedded store has the tenant ``.
    pub fn sealer(&self, tenant: &str) -> Sealer {
        Sealer { key: hmac::Key::new(hmac::HMAC_SHA256, &self.key.0), tenant: tenant.into() }
    }
}

/// Makes and checks the seals of one store. Cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    key: hmac::Key,
    tenant: Arc<str>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// The record that a seal is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sealed<'a> {
    pub(crate) kind: &'a str,
    pub(crate) key: &'a str,
    pub(crate) version: Version,
}

impl Sealer {
    /// Returns the text of a record with its seal before it.
    pub(crate) fn seal(&self, of: Sealed<'_>, body: &str) -> String {
        let tag = self.context(of, body).sign();
        let mut text = String::with_capacity(PREFIX.len() + 44 + body.len());
        text.push_str(PREFIX);
        BASE64URL_NOPAD.encode_append(tag.as_ref(), &mut text);
        text.push(' ');
        text.push_str(body);
        text
    }

    /// Returns the text of a record without its seal; none if the seal does not fit.
    pub(crate) fn open<'a>(&self, of: Sealed<'_>, text: &'a str) -> Option<&'a str> {
        let (tag, body) = parts(text)?;
        let tag = BASE64URL_NOPAD.decode(tag.as_bytes()).ok()?;
        hmac::verify(&self.key, &self.message(of, body), &tag).ok()?;
        Some(body)
    }

    /// Returns the text that names the key in a store, and tells nothing of it.
    pub(crate) fn key_id(&self) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        field(KEY_ID, |bytes| context.update(bytes));
        field(&self.tenant, |bytes| context.update(bytes));
        let tag = context.sign();
        HEXLOWER.encode(tag.as_ref().get(..16).unwrap_or_default())
    }

    fn context(&self, of: Sealed<'_>, body: &str) -> hmac::Context {
        let mut context = hmac::Context::with_key(&self.key);
        self.fields(of, body, |bytes| context.update(bytes));
        context
    }

    fn message(&self, of: Sealed<'_>, body: &str) -> Vec<u8> {
        let mut message = Vec::with_capacity(body.len() + 160);
        self.fields(of, body, |bytes| message.extend_from_slice(bytes));
        message
    }

    fn fields(&self, of: Sealed<'_>, body: &str, mut update: impl FnMut(&[u8])) {
        let version = of.version.to_string();
        for text in [RECORD, &self.tenant, of.kind, of.key, &version, body] {
            field(text, &mut update);
        }
    }
}

/// Adds a text with its length before it: no two lists of texts are the same bytes.
fn field(text: &str, mut update: impl FnMut(&[u8])) {
    update(&(text.len() as u64).to_be_bytes());
    update(text.as_bytes());
}

/// Reports whether a text has a seal, which may not fit.
pub(crate) fn has_seal(text: &str) -> bool {
    parts(text).is_some()
}

/// Returns the record's text without a check of its seal, for an upgrade that seals it again.
pub(crate) fn without_seal(text: &str) -> &str {
    parts(text).map_or(text, |(_, body)| body)
}

/// Returns the SHA-256 of a record's text without its seal, in hexadecimal: the same in every store, as a migration changes seals alone.
pub(crate) fn digest(text: &str) -> String {
    HEXLOWER.encode(hash::digest(&hash::SHA256, without_seal(text).as_bytes()).as_ref())
}

fn parts(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix(PREFIX)?.split_once(' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANT: Sealed<'static> = Sealed { kind: "grants", key: "01", version: 3 };

    fn sealer(byte: u8, tenant: &str) -> Sealer {
        Sealing::with(RecordsKey::from_bytes([byte; 32])).sealer(tenant)
    }

    #[test]
    fn i4_a_seal_fits_one_record_of_one_store_and_no_other() {
        let here = sealer(1, "a");
        let text = here.seal(GRANT, "{}");
        assert_eq!(here.open(GRANT, &text), Some("{}"));
        for other in [
            Sealed { kind: "agents", ..GRANT },
            Sealed { key: "02", ..GRANT },
            Sealed { version: 4, ..GRANT },
            // The same bytes, cut elsewhere.
            Sealed { kind: "grants0", key: "1", ..GRANT },
        ] {
            assert_eq!(here.open(other, &text), None, "{other:?}");
        }
        assert_eq!(sealer(1, "b").open(GRANT, &text), None, "another tenant");
        assert_eq!(sealer(2, "a").open(GRANT, &text), None, "another key");
        for forged in
            ["{}", "", "hmac1 ", "hmac1  {}", "hmac1 AAAA {}", &text.replace("{}", "[]"), &format!("{text} ")]
        {
            assert_eq!(here.open(GRANT, forged), None, "{forged}");
        }
    }

    #[test]
    fn a_key_is_kept_as_text_and_shown_nowhere() {
        let key = RecordsKey::generate().unwrap();
        assert_eq!(RecordsKey::from_text(&key.to_text()).unwrap(), key);
        for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
            assert!(RecordsKey::from_text(bad).is_none());
        }
        let sealing = Sealing::with(key.clone());
        let shown = format!("{key:?} {sealing:?} {:?} {}", sealing.sealer("t"), sealing.sealer("t").key_id());
        assert!(!shown.contains(key.to_text().trim()), "{shown}");
        assert_ne!(sealer(1, "a").key_id(), sealer(2, "a").key_id());
    }
}
