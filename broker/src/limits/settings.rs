//! Every limit, with its default.

use std::net::IpAddr;
use std::time::Duration;

use postern_core::SourcePrefix;
use postern_store::Reserve;

use super::owner::Owner;

/// Every limit, as in the section `[limits]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, handshakes included.
    pub connections: usize,
    /// Unfinished handshakes, in all.
    pub handshakes: usize,
    /// Handshakes of one address that wait for their peer.
    pub handshakes_per_address: usize,
    /// Connections without a certificate, in all.
    pub anonymous: usize,
    /// Connections without a certificate from one address.
    pub anonymous_per_address: usize,
    /// Connections of principals, in all.
    pub people: usize,
    /// Connections of one principal.
    pub per_principal: usize,
    /// Connections of one agent.
    pub per_agent: usize,
    /// The addresses of load balancers: connections from one belong to many callers, and no limit for an address applies.
    pub load_balancers: Vec<SourcePrefix>,
    /// The time from accepting a connection to its first byte.
    pub first_byte: Duration,
    /// The time from the first byte to the end of the TLS handshake.
    pub handshake: Duration,
    /// The time from the handshake to the end of the client's HTTP/2 preface and the head of its settings.
    pub preface: Duration,
    /// The time from the headers of a call with one request message to the end of that message.
    pub receive: Duration,
    /// The time from the headers of a call with one request and one answer to the answer.
    pub answer: Duration,
    /// The age at which a connection without a certificate is closed.
    pub anonymous_age: Duration,
    /// The bytes that a connection without a certificate may send after its handshake, frames that are no calls included.
    pub anonymous_bytes: usize,
    /// Calls at once on a connection without a certificate.
    pub anonymous_streams: u32,
    /// Calls at once on a connection of an agent.
    pub agent_streams: u32,
    /// Calls at once on a connection of a principal.
    pub streams: u32,
    /// Bytes of a message of a call that needs no certificate.
    pub anonymous_message: usize,
    /// Bytes of a message of an agent's call.
    pub agent_message: usize,
    /// Bytes of a message of a principal's call.
    pub message: usize,
    /// Records of refusals that all callers together leave in the audit log each minute.
    pub denials: u32,
    /// Records of refusals that one caller leaves in the audit log each minute.
    pub denials_per_caller: u32,
    /// The room of the store that is kept for revocations, bans and closes.
    pub store_reserve: Reserve,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 32_768,
            handshakes: 1_024,
            handshakes_per_address: 256,
            anonymous: 256,
            anonymous_per_address: 32,
            people: 2_048,
            per_principal: 256,
            per_agent: 8,
            load_balancers: Vec::new(),
            first_byte: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            preface: Duration::from_secs(5),
            receive: Duration::from_secs(10),
            answer: Duration::from_secs(120),
            anonymous_age: Duration::from_secs(60),
            anonymous_bytes: 256 * 1024,
            anonymous_streams: 8,
            agent_streams: 16,
            streams: 256,
            anonymous_message: 16 * 1024,
            agent_message: 64 * 1024,
            message: 1024 * 1024,
            denials: 1_200,
            denials_per_caller: 120,
            store_reserve: Reserve::default(),
        }
    }
}

impl Limits {
    /// Returns the limits that so many file descriptors allow: every share shrinks alike, so that agents keep their half.
    #[must_use]
    pub fn within(mut self, descriptors: usize) -> Self {
        /// Descriptors for files, the store, clouds and the metrics port.
        const RESERVE: usize = 256;
        let allowed = descriptors.saturating_sub(RESERVE).max(descriptors / 2).max(6);
        if allowed < self.connections {
            for share in [&mut self.handshakes, &mut self.anonymous, &mut self.people] {
                *share = (*share).min((allowed / 6).max(1));
            }
            self.connections = allowed;
        }
        self
    }

    /// Returns the number of connections that only agents can have.
    pub fn agents(&self) -> usize {
        self.connections.saturating_sub(self.handshakes + self.anonymous + self.people).max(1)
    }

    /// Returns the owner of an anonymous connection or a handshake: an address, an IPv6 network of 64 bits, or a balancer.
    pub(super) fn owner(&self, address: IpAddr) -> Owner {
        let address = address.to_canonical();
        if self.load_balancers.iter().any(|prefix| prefix.contains(address)) {
            return Owner::Balancer;
        }
        Owner::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & (u128::MAX << 64)).into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i10_agents_keep_a_share_however_few_descriptors_there_are() {
        for descriptors in [8, 64, 256, 1_024, 4_096, 65_536, 1_000_000] {
            let limits = Limits::default().within(descriptors);
            let others = limits.handshakes + limits.anonymous + limits.people;
            assert!(limits.agents() + others <= limits.connections, "{descriptors}: {limits:?}");
            assert!(limits.agents() * 2 >= limits.connections, "{descriptors}: {limits:?}");
            assert!(limits.connections < descriptors, "{descriptors}: {limits:?}");
        }
        assert_eq!(Limits::default().within(65_536), Limits::default());
    }

    #[test]
    fn an_owner_is_an_address_a_network_of_64_bits_or_a_balancer() {
        let limits = Limits { load_balancers: vec!["192.0.2.0/28".parse().unwrap()], ..Limits::default() };
        let owner = |text: &str| limits.owner(text.parse().unwrap());
        assert_eq!(owner("2001:db8::1"), owner("2001:db8::ffff:0:1"));
        assert_ne!(owner("2001:db8::1"), owner("2001:db8:0:1::1"));
        assert_eq!(owner("::ffff:192.0.2.20"), owner("192.0.2.20"));
        assert_ne!(owner("192.0.2.20"), owner("192.0.2.21"));
        assert_eq!(owner("192.0.2.3"), Owner::Balancer);
        assert_eq!(owner("::ffff:192.0.2.3"), Owner::Balancer);
    }
}
