//! The sources that a policy allows, and the widest range that a requester may choose.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::{Invalid, SourcePrefix};

/// A source that a port may be opened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AllowedSource {
    /// `*`: the requester may choose any source, up to the rule's [`WidestPrefix`] in all.
    Any,
    /// `caller`: the address from which the requester calls the broker, and no other.
    Caller,
    /// A prefix: it allows itself and every part of it. `0.0.0.0/0` or `::/0` here also allows a request for
    /// exactly that.
    Prefix(SourcePrefix),
}

impl AllowedSource {
    /// Reports whether this names the source, for a requester who calls from this address. `*` names none.
    pub(super) fn names(&self, source: &SourcePrefix, caller: Option<IpAddr>) -> bool {
        match self {
            Self::Any => false,
            Self::Caller => caller.is_some_and(|address| SourcePrefix::single(address) == *source),
            Self::Prefix(prefix) => prefix.covers(source),
        }
    }

    /// Returns the source for a requester who calls from this address.
    pub(super) fn in_words(self, caller: Option<IpAddr>) -> String {
        match (self, caller) {
            (Self::Caller, Some(address)) => format!("your own address ({})", address.to_canonical()),
            (Self::Caller, None) => "your own address, which the broker does not know".to_owned(),
            (Self::Any | Self::Prefix(_), _) => self.to_string(),
        }
    }
}

impl fmt::Display for AllowedSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Caller => f.write_str("caller"),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl FromStr for AllowedSource {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "*" => Ok(Self::Any),
            "caller" => Ok(Self::Caller),
            prefix => prefix.parse().map(Self::Prefix),
        }
    }
}

impl TryFrom<String> for AllowedSource {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<AllowedSource> for String {
    fn from(source: AllowedSource) -> String {
        source.to_string()
    }
}

/// The most addresses that one principal may have open at once through `*`, on one port of one target: as many as a prefix
/// of this length holds, for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WidestPrefix {
    /// The length for IPv4, 1 to 32.
    pub ipv4: u8,
    /// The length for IPv6, 1 to 128.
    pub ipv6: u8,
}

impl Default for WidestPrefix {
    /// A /16, the widest network that one organisation is likely to have, and a /32, the smallest that a registry allocates
    /// to a provider (RIPE-738, 5.1.1).
    fn default() -> Self {
        Self { ipv4: 16, ipv6: 32 }
    }
}

impl WidestPrefix {
    /// Reports whether these are the lengths of a rule that names none.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the lengths.
    ///
    /// # Errors
    /// The first that is out of range.
    pub(super) fn checked(self) -> Result<(), Invalid> {
        for (field, length, most) in [("ipv4", self.ipv4, 32), ("ipv6", self.ipv6, 128)] {
            if !(1..=most).contains(&length) {
                let remedy =
                    format!("use 1 to {most}; name 0.0.0.0/0 or ::/0 in sources to allow every address");
                let problem = format!("{length} is out of range");
                return Err(Invalid::new(field, problem, remedy).within("widest"));
            }
        }
        Ok(())
    }

    /// Returns the prefix length that the union of the sources exceeds, if it does.
    pub(super) fn exceeded_by<'a>(self, sources: impl Iterator<Item = &'a SourcePrefix>) -> Option<u8> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for source in sources {
            match source.net() {
                IpNet::V4(net) => v4.push(net),
                IpNet::V6(net) => v6.push(net),
            }
        }
        // Aggregated networks do not overlap.
        let v4 = Ipv4Net::aggregate(&v4).into_iter().map(|net| 32 - net.prefix_len());
        let v6 = Ipv6Net::aggregate(&v6).into_iter().map(|net| 128 - net.prefix_len());
        if addresses(v4) > addresses([32u8.saturating_sub(self.ipv4)].into_iter()) {
            return Some(self.ipv4);
        }
        let is_wider = addresses(v6) > addresses([128u8.saturating_sub(self.ipv6)].into_iter());
        is_wider.then_some(self.ipv6)
    }
}

/// Returns the number of addresses in networks with so many host bits each; every IPv6 address there is counts one less.
fn addresses(host_bits: impl Iterator<Item = u8>) -> u128 {
    host_bits.fold(0, |sum, bits| sum.saturating_add(1u128.checked_shl(bits.into()).unwrap_or(u128::MAX)))
}
