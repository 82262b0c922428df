//! The key of a principal: its issuer, and its subject there.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use crate::text::{MAX_REPEATED, clipped, free_text, is_variation_selector, text_traits};
use crate::{Invalid, Name};

/// The longest issuer, subject and display name, in characters.
const MAX_CHARS: usize = 255;
/// The character between an issuer and a subject in the text form. An issuer of OpenID Connect has no fragment, so that the
/// text reads like a URL with one.
const SEPARATOR: char = '#';
/// The ASCII characters that are percent-encoded in the text form, with everything outside ASCII.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b':')
    .remove(b'/')
    .remove(b'@')
    .remove(b'+')
    .remove(b'=');

/// The key of a principal. Two principals are the same exactly if their keys are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PrincipalKey {
    /// A principal of the deployment's own certificate authority, by its name.
    Local(Name),
    /// A principal of another issuer.
    Foreign {
        /// The issuer.
        issuer: Issuer,
        /// The name that the issuer gives to this principal alone.
        subject: Subject,
    },
}

impl PrincipalKey {
    /// Returns the text form, which indexes, filters and policies use: `alice` for a local principal, and
    /// `https://issuer.example#alice@example.com` for a foreign one.
    ///
    /// Different keys have different texts. A foreign key's text has one `#`, which no name contains, and percent-encodes in
    /// both of its parts every character but `a-z A-Z 0-9 - . _ ~ : / @ + =`.
    pub fn to_text(&self) -> String {
        match self {
            Self::Local(name) => name.to_string(),
            Self::Foreign { issuer, subject } => {
                let encoded = |text| utf8_percent_encode(text, ENCODED);
                format!("{}{SEPARATOR}{}", encoded(issuer.as_str()), encoded(subject.as_str()))
            }
        }
    }

    /// Parses the text form.
    ///
    /// # Errors
    /// The text is neither a name nor an issuer and a subject, or [`Self::to_text`] writes that key in another way.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let Some((issuer, subject)) = text.split_once(SEPARATOR) else {
            return Name::new(text).map(Self::Local).map_err(|error| {
                let remedy = format!("{}, or <issuer>#<subject>", error.remedy);
                Invalid { remedy, ..error.named("principal") }
            });
        };
        let issuer = Issuer::new(&decoded(issuer)?)?;
        let subject = Subject::new(&decoded(subject)?)?;
        let key = Self::Foreign { issuer, subject };
        let canonical = key.to_text();
        if canonical == text {
            Ok(key)
        } else {
            let problem = "is not percent-encoded as Postern writes it";
            Err(Invalid::new("principal", problem, format!("use {}", clipped(&canonical, MAX_REPEATED))))
        }
    }
}

fn decoded(text: &str) -> Result<String, Invalid> {
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| {
        Invalid::new("principal", "is not UTF-8 where it is percent-encoded", "use <issuer>#<subject>")
    })?;
    Ok(decoded.into_owned())
}

impl fmt::Display for PrincipalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl FromStr for PrincipalKey {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::parse(text)
    }
}

impl TryFrom<String> for PrincipalKey {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        Self::parse(&text)
    }
}

impl From<PrincipalKey> for String {
    fn from(key: PrincipalKey) -> String {
        key.to_text()
    }
}

impl From<Name> for PrincipalKey {
    fn from(name: Name) -> Self {
        Self::Local(name)
    }
}

/// A foreign issuer, such as the URL of an OpenID provider: 1 to 255 characters, none of them invisible.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Issuer(String);

/// The name of a principal at its issuer, such as `repo:org/x:ref:refs/heads/main`: 1 to 255 characters, none of them
/// invisible. It is compared character by character, with no folding of case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subject(String);

impl Issuer {
    /// Parses an issuer.
    ///
    /// # Errors
    /// Empty text, too many characters, an invisible character.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check("issuer", text).map(|()| Self(text.to_owned()))
    }

    /// Returns the issuer.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Subject {
    /// Parses a subject.
    ///
    /// # Errors
    /// Empty text, too many characters, an invisible character.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        check("subject", text).map(|()| Self(text.to_owned()))
    }

    /// Returns the subject.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_traits!(Issuer);
text_traits!(Subject);

/// Checks a text of an issuer: its length, and that people can see every character.
///
/// # Errors
/// Empty text, too many characters, an invisible character. A variation selector is one here: two names could look alike.
pub(super) fn check(field: &str, text: &str) -> Result<(), Invalid> {
    let remedy = format!("use 1 to {MAX_CHARS} visible characters");
    if text.is_empty() {
        return Err(Invalid::new(field, "is empty", remedy));
    }
    free_text(field, text, MAX_CHARS).map_err(|error| Invalid { remedy: remedy.clone(), ..error })?;
    match text.chars().find(|c| is_variation_selector(*c)) {
        Some(bad) => {
            let problem = format!("contains the invisible character {}", bad.escape_unicode());
            Err(Invalid::new(field, problem, remedy))
        }
        None => Ok(()),
    }
}
