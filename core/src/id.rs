//! Identifiers.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::Invalid;
use crate::text::repeated;

/// A grant's identifier: a ULID in lower case, 26 characters, which sorts by the time of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrantId(Ulid);

impl GrantId {
    /// Builds an id from the time of the request and 80 random bits (the high bits of `random` are ignored).
    pub fn from_parts(at: Timestamp, random: u128) -> Self {
        Self(Ulid::from_parts(u64::try_from(at.as_millisecond()).unwrap_or(0), random))
    }
}

impl GrantId {
    /// Returns the time of the request, as the id has it, in whole milliseconds.
    pub fn requested_at(&self) -> Timestamp {
        let milliseconds = i64::try_from(self.0.timestamp_ms()).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
    }
}

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string().to_ascii_lowercase())
    }
}

impl FromStr for GrantId {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Ulid::from_string(text).map(Self).map_err(|_| {
            Invalid::new(
                "grant",
                format!("{} is not a grant id", repeated(text)),
                "use the 26 characters that `postern grants` shows",
            )
        })
    }
}

impl TryFrom<String> for GrantId {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<GrantId> for String {
    fn from(id: GrantId) -> String {
        id.to_string()
    }
}
