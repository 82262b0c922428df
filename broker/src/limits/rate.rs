//! The rate of handshakes: each costs the broker a signature and the check of a chain.
//!
//! A connection past the rate is closed before its handshake. The last part of a second's handshakes is kept for quiet peers,
//! those with few handshakes in that second, so that an address that makes many takes none from an address that makes one.

use std::time::Duration;

use super::owner::{Owner, Tally};
use super::table::{Limit, Limits};

/// The handshakes of a second up to which an address, or its wider network, is quiet.
const QUIET: usize = 4;

/// The handshakes that were begun in the present second.
#[derive(Debug)]
pub(super) struct HandshakeRate {
    most: usize,
    per_address: usize,
    per_network: usize,
    /// The second that is counted.
    second: u64,
    begun: usize,
    counts: Tally,
}

impl HandshakeRate {
    pub(super) fn new(limits: &Limits) -> Self {
        let [most, per_address, per_network] = [
            limits.handshakes_per_second,
            limits.handshakes_per_second_per_address,
            limits.handshakes_per_second_per_network,
        ]
        .map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        Self { most, per_address, per_network, second: 0, begun: 0, counts: Tally::default() }
    }

    /// Reports whether a peer may begin a handshake. `now` is a count of time that never steps.
    ///
    /// # Errors
    /// The limit that the peer has reached.
    pub(super) fn judge(&mut self, owner: &Owner, now: Duration) -> Result<(), Limit> {
        if self.second != now.as_secs() {
            (self.second, self.begun) = (now.as_secs(), 0);
            self.counts.clear();
        }
        if self.begun >= self.most {
            return Err(Limit::HandshakeRate);
        }
        // A balancer's handshakes belong to many peers.
        if *owner == Owner::Balancer {
            return Ok(());
        }
        if self.counts.of(owner) >= self.per_address {
            return Err(Limit::HandshakeRatePerAddress);
        }
        if self.counts.of_network(owner) >= self.per_network {
            return Err(Limit::HandshakeRatePerNetwork);
        }
        let is_quiet = self.counts.weight(owner) < QUIET;
        if !is_quiet && self.begun >= self.most - self.most / 4 { Err(Limit::HandshakeRate) } else { Ok(()) }
    }

    /// Counts a handshake that begins. The counts hold at most one second's.
    pub(super) fn count(&mut self, owner: &Owner) {
        self.begun += 1;
        self.counts.add(owner);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    fn rate(most: u32, per_address: u32, per_network: u32) -> HandshakeRate {
        HandshakeRate::new(&Limits {
            handshakes_per_second: most,
            handshakes_per_second_per_address: per_address,
            handshakes_per_second_per_network: per_network,
            ..Limits::default()
        })
    }

    fn begin(rate: &mut HandshakeRate, owner: &Owner, second: u64) -> Result<(), Limit> {
        rate.judge(owner, Duration::from_secs(second)).inspect(|()| rate.count(owner))
    }

    fn address(last: u8) -> Owner {
        Owner::Address([192, 0, 2, last].into())
    }

    #[test]
    fn i10_an_address_has_its_handshakes_of_each_second() {
        let mut rate = rate(100, 3, 100);
        let begun = |rate: &mut HandshakeRate, second| {
            (0..10).filter(|_| begin(rate, &address(1), second).is_ok()).count()
        };
        assert_eq!([begun(&mut rate, 5), begun(&mut rate, 5), begun(&mut rate, 6)], [3, 0, 3]);
        assert_eq!(begin(&mut rate, &address(1), 6), Err(Limit::HandshakeRatePerAddress));
        assert_eq!(begin(&mut rate, &address(2), 6), Ok(()));
    }

    #[test]
    fn i10_a_network_of_48_bits_has_its_handshakes_of_each_second() {
        let mut rate = rate(100, 3, 5);
        let of = |n: u16| Owner::Address(Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 0).into());
        assert_eq!((0..50).filter(|n| begin(&mut rate, &of(*n), 1).is_ok()).count(), 5);
        assert_eq!(begin(&mut rate, &of(60), 1), Err(Limit::HandshakeRatePerNetwork));
        assert_eq!(begin(&mut rate, &address(1), 1), Ok(()));
    }

    #[test]
    fn i10_the_last_quarter_is_for_quiet_addresses() {
        let mut rate = rate(40, 100, 100);
        assert_eq!((0..100).filter(|_| begin(&mut rate, &address(1), 1).is_ok()).count(), 30);
        assert_eq!(begin(&mut rate, &address(1), 1), Err(Limit::HandshakeRate));
        let quiet = (2..100).filter(|n| begin(&mut rate, &address(*n), 1).is_ok()).count();
        assert_eq!(quiet, 10, "a bound on all remains");
        assert_eq!(begin(&mut rate, &Owner::Balancer, 1), Err(Limit::HandshakeRate));
        assert!((0..40).all(|_| begin(&mut rate, &Owner::Balancer, 2).is_ok()), "a balancer is many peers");
    }

    #[test]
    fn i10_refused_handshakes_are_not_remembered() {
        let mut rate = rate(10, 10, 10);
        (0..=255).for_each(|n| {
            let _ = begin(&mut rate, &address(n), 1);
        });
        assert_eq!(rate.begun, 10);
        assert_eq!((0..=255).filter(|n| rate.counts.of(&address(*n)) > 0).count(), 10);
    }
}
