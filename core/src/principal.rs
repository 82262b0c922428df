//! Principals: who asks, in which role, and how records, policies and people name them.
//!
//! **The problem.** The deployment's own authority names people with certificates, and other issuers name them with tokens. Two
//! issuers can give one name to two people, and an issuer may let people choose the name that others read. A grant must belong
//! to exactly one of them.
//!
//! **The words.**
//!
//! - An *issuer* vouches for principals. The deployment's certificate authority is the *local* one; every other is *foreign*.
//! - A *subject* is the name that an issuer never gives to another principal.
//! - The *key* ([`PrincipalKey`]) is both together. It has one text form ([`PrincipalKey::to_text`]), for indexes, filters
//!   and policies.
//! - The *display name* is for people. A local principal's is its name.
//! - The *role* comes from whatever established the caller. A principal that is known in several roles is one principal.
//!
//! **The rule.** Only keys are compared: who owns a grant, an idempotency key or a share of a limit, and who a policy names. No
//! decision reads a display name (I7). [`Principal`] is no key of a map, and [`PrincipalKey`] holds no display name.
//!
//! **How people read it.** A local principal is written `requester/alice`, a foreign one
//! `requester/Alice <https://issuer.example#alice@example.com>`. The last brackets hold the key, in which neither brackets nor
//! blanks nor letters outside ASCII occur, and a display name has no brackets. So no display name makes its principal read like
//! another one.
//!
//! **The stored form.** A local principal is `{"role", "name"}`, as it was before there were other issuers. A foreign one is
//! `{"role", "issuer", "subject", "display_name"}`, which a broker that knows no other issuer refuses to read.

mod key;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::text::{repeated, text_traits};
use crate::{Invalid, Name};
pub use key::{Issuer, PrincipalKey, Subject};

/// The rights of a principal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// May do everything: policies, agents, every grant.
    Administrator,
    /// Requests access within policy; sees and revokes its own grants.
    Requester,
    /// Sees everything, changes nothing.
    Reader,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Administrator, Self::Requester, Self::Reader];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Administrator => "administrator",
            Self::Requester => "requester",
            Self::Reader => "reader",
        })
    }
}

impl FromStr for Role {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|role| role.to_string() == text).ok_or_else(|| {
            let problem = format!("{} is not a role", repeated(text));
            Invalid::new("role", problem, "use administrator, requester or reader")
        })
    }
}

/// A human or a service, in a role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct Principal {
    role: Role,
    key: PrincipalKey,
    /// The display name; a local principal's is its name.
    display_name: DisplayName,
}

impl Principal {
    /// Makes a principal that the deployment's own authority names.
    pub fn local(role: Role, name: Name) -> Self {
        let display_name = DisplayName(name.to_string());
        Self { role, key: PrincipalKey::Local(name), display_name }
    }

    /// Makes a principal that another issuer vouches for.
    pub fn foreign(role: Role, issuer: Issuer, subject: Subject, display_name: DisplayName) -> Self {
        Self { role, key: PrincipalKey::Foreign { issuer, subject }, display_name }
    }

    /// Returns the role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Returns the key, by which principals are compared.
    pub fn key(&self) -> &PrincipalKey {
        &self.key
    }

    /// Returns the name for people, which another principal may have, too.
    pub fn display_name(&self) -> &str {
        self.display_name.as_str()
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (role, key, name) = (self.role, &self.key, self.display_name());
        match key {
            PrincipalKey::Local(_) => write!(f, "{role}/{name}"),
            PrincipalKey::Foreign { .. } => write!(f, "{role}/{name} <{key}>"),
        }
    }
}

/// The name by which people know a foreign principal: 1 to 255 characters, none of them invisible, no `<` and no `>`, no
/// leading or trailing blanks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DisplayName(String);

impl DisplayName {
    /// Parses a display name.
    ///
    /// # Errors
    /// Empty or blank text, too many characters, an invisible character, a bracket.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        key::check("display_name", text)?;
        if let Some(bracket) = text.chars().find(|c| matches!(c, '<' | '>')) {
            let problem = format!("contains {bracket:?}");
            return Err(Invalid::new("display_name", problem, "use a name without brackets"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
text_traits!(DisplayName);

/// A principal as records hold it.
#[derive(Serialize, Deserialize)]
struct Stored {
    role: Role,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issuer: Option<Issuer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Subject>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    display_name: Option<DisplayName>,
}

impl From<Principal> for Stored {
    fn from(principal: Principal) -> Self {
        let Principal { role, key, display_name } = principal;
        match key {
            PrincipalKey::Local(name) => {
                Self { role, name: Some(name), issuer: None, subject: None, display_name: None }
            }
            PrincipalKey::Foreign { issuer, subject } => {
                let (issuer, subject, display_name) = (Some(issuer), Some(subject), Some(display_name));
                Self { role, name: None, issuer, subject, display_name }
            }
        }
    }
}

impl TryFrom<Stored> for Principal {
    type Error = Invalid;
    fn try_from(stored: Stored) -> Result<Self, Invalid> {
        let Stored { role, name, issuer, subject, display_name } = stored;
        match (name, issuer, subject, display_name) {
            (Some(name), None, None, None) => Ok(Self::local(role, name)),
            (None, Some(issuer), Some(subject), Some(display_name)) => {
                Ok(Self::foreign(role, issuer, subject, display_name))
            }
            _ => Err(Invalid::new(
                "principal",
                "is neither a name nor an issuer with a subject and a display name",
                "write one of the two forms",
            )),
        }
    }
}

#[cfg(test)]
mod tests;
