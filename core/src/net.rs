//! Ports, protocols and source prefixes.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::Invalid;
use crate::text::repeated;

/// A transport protocol that Postern can protect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Returns the number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            _ => Err(Invalid::new("protocol", format!("{} is not known", repeated(text)), "use tcp or udp")),
        }
    }
}

/// A port number, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Port(NonZeroU16);

impl Port {
    /// Makes a port from its number.
    ///
    /// # Errors
    /// 0, or a number past 65535.
    pub fn new(number: u32) -> Result<Self, Invalid> {
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        port.map(Self)
            .ok_or_else(|| Invalid::new("port", format!("{number} is not a port"), "use 1 to 65535"))
    }

    /// Returns the number.
    pub fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A (protocol, port) that is closed on a target unless a window is open. Written `tcp/22`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProtectedPort {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The destination port on the target.
    pub port: Port,
}

impl fmt::Display for ProtectedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.port)
    }
}

impl FromStr for ProtectedPort {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = || {
            let problem = format!("{} is not a protocol and port", repeated(text));
            Invalid::new("port", problem, "write it like tcp/22")
        };
        let (protocol, number) = text.split_once('/').ok_or_else(wrong)?;
        let number: u32 = number.parse().map_err(|_| wrong())?;
        Ok(Self { protocol: protocol.parse()?, port: Port::new(number)? })
    }
}

impl TryFrom<String> for ProtectedPort {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<ProtectedPort> for String {
    fn from(port: ProtectedPort) -> String {
        port.to_string()
    }
}

/// A source address range in CIDR form, canonical: no host bits, no IPv4-mapped IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SourcePrefix(IpNet);

impl SourcePrefix {
    /// Makes the prefix that contains exactly one address. An IPv4-mapped IPv6 address becomes its IPv4 address:
    /// a dual-stack socket reports IPv4 peers so (RFC 4291, 2.5.5.2).
    pub fn single(address: IpAddr) -> Self {
        Self(IpNet::from(address.to_canonical()))
    }

    /// Reports whether the prefix contains exactly one address.
    pub fn is_single(&self) -> bool {
        self.0.prefix_len() == self.0.max_prefix_len()
    }

    /// Reports whether the prefix contains every address of its family.
    pub fn is_any(&self) -> bool {
        self.0.prefix_len() == 0
    }

    /// Reports whether every address of `other` is in this prefix.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// Returns this prefix and every wider one that covers it, the widest last.
    pub fn widening(self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self), |prefix| prefix.0.supernet().map(Self))
    }

    /// Reports whether the address is in this prefix.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Returns the first and the last address.
    pub fn bounds(&self) -> (IpAddr, IpAddr) {
        (self.0.network(), self.0.broadcast())
    }

    /// Reports whether the prefix is IPv4.
    pub fn is_ipv4(&self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }

    /// Returns the prefix as the `ipnet` type.
    pub fn net(&self) -> IpNet {
        self.0
    }
}

impl fmt::Display for SourcePrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for SourcePrefix {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = |problem: String, remedy: &str| Invalid::new("source", problem, remedy);
        let net =
            text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
                bad(
                    format!("{} is not an address or a CIDR range", repeated(text)),
                    "write it like 203.0.113.7 or 2001:db8::/64",
                )
            })?;
        if let IpNet::V6(v6) = net
            && let Some(v4) = v6.addr().to_ipv4_mapped()
        {
            let len = v6.prefix_len().checked_sub(96);
            let plain = len.map_or_else(|| v4.to_string(), |len| format!("{v4}/{len}"));
            return Err(bad(format!("{net} is an IPv4-mapped IPv6 address"), &format!("write {plain}")));
        }
        if net.addr() != net.network() {
            return Err(bad(format!("{net} has host bits set"), &format!("write {}", net.trunc())));
        }
        Ok(Self(net))
    }
}

impl TryFrom<String> for SourcePrefix {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<SourcePrefix> for String {
    fn from(prefix: SourcePrefix) -> String {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_canonical_or_refused_with_the_canonical_form() {
        assert_eq!("203.0.113.7".parse::<SourcePrefix>().unwrap().to_string(), "203.0.113.7/32");
        let error = "10.1.2.3/8".parse::<SourcePrefix>().unwrap_err();
        assert_eq!(error.remedy, "write 10.0.0.0/8");
        let error = "::ffff:10.0.0.0/104".parse::<SourcePrefix>().unwrap_err();
        assert_eq!(error.remedy, "write 10.0.0.0/8");
        for bad in ["", "10.0.0", "10.0.0.0/33", "fe80::1%eth0", "0/0", "example.org"] {
            assert!(bad.parse::<SourcePrefix>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_widens_to_every_address_of_its_family() {
        let prefix: SourcePrefix = "192.0.2.128/25".parse().unwrap();
        let wider: Vec<_> = prefix.widening().collect();
        assert_eq!((wider.len(), wider[1].to_string().as_str()), (26, "192.0.2.0/24"));
        assert!(wider.last().unwrap().is_any() && wider.iter().all(|wider| wider.covers(&prefix)));
    }

    #[test]
    fn a_dual_stack_peer_is_its_ipv4_address() {
        let peer: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(SourcePrefix::single(peer).to_string(), "192.0.2.1/32");
    }

    #[test]
    fn a_protected_port_has_one_written_form() {
        assert_eq!("TCP/22".parse::<ProtectedPort>().unwrap().to_string(), "tcp/22");
        for bad in ["22", "tcp/0", "tcp/65536", "icmp/1", "tcp/-1", "tcp/"] {
            assert!(bad.parse::<ProtectedPort>().is_err(), "{bad}");
        }
    }
}
