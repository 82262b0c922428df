//! Principals and their roles.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Invalid, Name};

/// The rights of a principal. A certificate carries one role.
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
            Invalid::new("role", format!("{text:?} is not a role"), "use administrator, requester or reader")
        })
    }
}

/// A human or a service, proven by a client certificate. Written `requester/alice`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Principal {
    /// The role that the certificate carries.
    pub role: Role,
    /// The principal's name, unique whatever the role.
    pub name: Name,
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}
