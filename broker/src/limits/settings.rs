//! Numbers that follow from the limits: the shares within the process's file descriptors, and the owner of a connection.

use std::net::IpAddr;

use postern_store::Reserve;

use super::owner::Owner;
use super::table::Limits;

impl Limits {
    /// Returns the limits that so many file descriptors allow: every share shrinks alike, so that agents keep their half.
    #[must_use]
    pub fn within(mut self, descriptors: usize) -> Self {
        let allowed = descriptors.saturating_sub(self.descriptors).max(descriptors / 2).max(8);
        if allowed < self.connections {
            let shares =
                [&mut self.handshakes, &mut self.anonymous, &mut self.people, &mut self.administrators];
            for share in shares {
                *share = (*share).min((allowed / 8).max(1));
            }
            self.connections = allowed;
        }
        self
    }

    /// Returns the number of connections that only agents can have.
    pub fn agents(&self) -> usize {
        self.connections.saturating_sub(self.others()).max(1)
    }

    /// Returns the number of connections that have their shares beside those of agents.
    pub fn others(&self) -> usize {
        self.handshakes + self.anonymous + self.people + self.administrators
    }

    /// Returns the room of the store that is kept for revocations, bans and closes.
    pub fn store_reserve(&self) -> Reserve {
        Reserve { disk: self.store_disk_reserve, memory_percent: self.store_memory_reserve }
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
        for descriptors in [16, 64, 256, 1_024, 4_096, 65_536, 1_000_000] {
            let limits = Limits::default().within(descriptors);
            assert!(limits.agents() + limits.others() <= limits.connections, "{descriptors}: {limits:?}");
            assert!(limits.agents() * 2 >= limits.connections, "{descriptors}: {limits:?}");
            assert!(limits.connections < descriptors, "{descriptors}: {limits:?}");
        }
        assert_eq!(Limits::default().within(65_536), Limits::default());
    }

    #[test]
    fn i10_descriptors_are_kept_back_from_connections() {
        let kept_back = |descriptors: usize, kept: usize| {
            descriptors - Limits { descriptors: kept, ..Limits::default() }.within(descriptors).connections
        };
        assert_eq!(
            [kept_back(1_024, 256), kept_back(4_096, 256), kept_back(4_096, 1_000)],
            [256, 256, 1_000]
        );
        assert_eq!(kept_back(400, 256), 200, "connections have at least half");
    }

    #[test]
    fn the_reserve_of_the_store_has_its_own_defaults() {
        assert_eq!(Limits::default().store_reserve(), Reserve::default());
    }

    #[test]
    fn an_owner_is_an_address_a_network_of_64_bits_or_a_balancer() {
        let limits = Limits { load_balancers: vec!["192.0.2.0/28".parse().unwrap()], ..Limits::default() };
        let owner = |text: &str| limits.owner(text.parse().unwrap());
        assert_eq!(owner("2001:db8::1"), owner("2001:db8::ffff:0:1"));
        assert_ne!(owner("2001:db8::1"), owner("2001:db8:0:1::1"));
        assert_eq!(owner("2001:db8::1").network(), owner("2001:db8:0:1::1").network());
        assert_ne!(owner("2001:db8::1").network(), owner("2001:db8:1::1").network());
        assert_eq!(owner("::ffff:192.0.2.20"), owner("192.0.2.20"));
        assert_ne!(owner("192.0.2.20"), owner("192.0.2.21"));
        assert_eq!(owner("192.0.2.20").network(), None);
        assert_eq!(owner("192.0.2.3"), Owner::Balancer);
        assert_eq!(owner("::ffff:192.0.2.3"), Owner::Balancer);
    }
}
