//! Unfinished handshakes. A stranger can begin any number of them, so a handshake that waits for its peer gives way to a
//! newer one; a handshake that waits for the broker's own processor does not.
//!
//! An honest peer keeps the broker waiting for a few round trips in all. A peer that is silent, or that sends a byte from time to
//! time, makes it wait longer, and is the first to go: all waits of a handshake count together. An address that holds its share of
//! waiting handshakes loses its own oldest one, never that of another address.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::owner::{Owner, Tally};
use super::table::{Limit, Limits};

/// Handshakes in progress.
#[derive(Debug)]
pub(super) struct Handshakes {
    most: usize,
    per_address: usize,
    per_network: usize,
    next: u64,
    all: HashMap<u64, (Owner, Arc<Waiting>)>,
    counts: Tally,
}

/// The wait of a handshake for its peer.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// The time since which the broker waits for the peer, in microseconds of its count of time; 0 while it does not wait.
    since: AtomicU64,
    /// The earlier waits together, in microseconds.
    earlier: AtomicU64,
    evicted: Notify,
}

/// An admitted handshake.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) id: u64,
    pub(super) waiting: Arc<Waiting>,
    /// The limit for which another handshake had to go.
    pub(super) evicted: Option<Limit>,
}

impl Waiting {
    /// Starts the wait for the peer, if it has not started before.
    pub(crate) fn for_peer(&self, now: Duration) {
        let now = micros(now);
        // Only the handshake's own task writes it.
        if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(now, Ordering::Relaxed);
        }
    }

    /// Ends the wait: the peer has sent something.
    pub(crate) fn no_more(&self, now: Duration) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since != 0 {
            self.earlier.fetch_add(micros(now).saturating_sub(since), Ordering::Relaxed);
        }
    }

    /// Waits until the handshake has to end for a newer one.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Returns the time at which the wait would have started if it were one wait; none while it does not last.
    fn since(&self) -> Option<u64> {
        let since = Some(self.since.load(Ordering::Relaxed)).filter(|since| *since != 0)?;
        Some(since.saturating_sub(self.earlier.load(Ordering::Relaxed)))
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

impl Handshakes {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            most: limits.handshakes,
            per_address: limits.handshakes_per_address,
            per_network: limits.handshakes_per_network,
            next: 0,
            all: HashMap::new(),
            counts: Tally::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Admits a handshake, and evicts another one if there is no room. `None` if none can be evicted now.
    pub(super) fn admit(&mut self, owner: Owner, is_silent: bool, now: Duration) -> Option<Admitted> {
        let mut evicted = None;
        let is_over = owner != Owner::Balancer && self.counts.of(&owner) >= self.per_address;
        let is_network_over = self.counts.of_network(&owner) >= self.per_network;
        if is_over && let Some(longest) = self.longest(|other| *other == owner) {
            self.evict(longest);
            evicted = Some(Limit::HandshakesPerAddress);
        } else if is_network_over
            && let Some(longest) = self.longest(|other| other.network() == owner.network())
        {
            self.evict(longest);
            evicted = Some(Limit::HandshakesPerNetwork);
        } else if self.all.len() >= self.most {
            let longest = self.longest(|_| true)?;
            self.evict(longest);
            evicted = Some(Limit::Handshakes);
        }
        let (id, waiting) = (self.next, Arc::new(Waiting::default()));
        self.next += 1;
        if is_silent {
            waiting.for_peer(now);
        }
        self.counts.add(&owner);
        self.all.insert(id, (owner, Arc::clone(&waiting)));
        Some(Admitted { id, waiting, evicted })
    }

    pub(super) fn leave(&mut self, id: u64) {
        if let Some((owner, _)) = self.all.remove(&id) {
            self.counts.remove(&owner);
        }
    }

    fn evict(&mut self, id: u64) {
        if let Some((_, waiting)) = self.all.get(&id) {
            waiting.evicted.notify_one();
        }
        self.leave(id);
    }

    /// Finds the handshake that waits longest, of the address or wider network with the most.
    fn longest(&self, counts: impl Fn(&Owner) -> bool) -> Option<u64> {
        let waiting = self.all.iter().filter(|(_, (owner, _))| counts(owner));
        let waiting = waiting.filter_map(|(id, (owner, waiting))| {
            Some((self.counts.weight(owner), std::cmp::Reverse(waiting.since()?), *id))
        });
        waiting.max().map(|(_, _, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Owner {
        Owner::Address([192, 0, 2, last].into())
    }

    fn room(most: usize, per_address: usize) -> Handshakes {
        Handshakes::new(&Limits {
            handshakes: most,
            handshakes_per_address: per_address,
            handshakes_per_network: 3,
            ..Limits::default()
        })
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn i10_a_silent_peer_gives_way_and_the_address_with_most_goes_first() {
        let mut handshakes = room(4, 4);
        let alone = handshakes.admit(address(1), true, at(1)).unwrap();
        let first = handshakes.admit(address(2), true, at(2)).unwrap();
        handshakes.admit(address(2), true, at(3)).unwrap();
        let busy = handshakes.admit(address(2), false, at(4)).unwrap();
        let newest = handshakes.admit(address(3), true, at(5)).unwrap();
        assert_eq!(newest.evicted, Some(Limit::Handshakes));
        assert!(!handshakes.all.contains_key(&first.id), "it has waited longest of its address");
        assert!(handshakes.all.contains_key(&alone.id), "its address has no other");
        assert!(handshakes.all.contains_key(&busy.id), "it waits for the broker");
        assert_eq!(handshakes.len(), 4);
    }

    #[test]
    fn i10_an_address_past_its_share_loses_its_own() {
        let mut handshakes = room(100, 2);
        let other = handshakes.admit(address(1), true, at(1)).unwrap();
        let first = handshakes.admit(address(2), true, at(2)).unwrap();
        let second = handshakes.admit(address(2), true, at(3)).unwrap();
        let third = handshakes.admit(address(2), true, at(4)).unwrap();
        assert_eq!(third.evicted, Some(Limit::HandshakesPerAddress));
        let ids = [other.id, first.id, second.id, third.id];
        assert_eq!(ids.map(|id| handshakes.all.contains_key(&id)), [true, false, true, true]);
    }

    #[test]
    fn a_balancer_has_no_share_and_honest_peers_never_give_way() {
        let mut handshakes = room(3, 1);
        for _ in 0..3 {
            assert_eq!(handshakes.admit(Owner::Balancer, false, at(1)).unwrap().evicted, None);
        }
        assert!(handshakes.admit(address(1), true, at(2)).is_none(), "no peer is silent");
    }

    #[test]
    fn a_place_that_was_given_back_is_free_and_only_once() {
        let mut handshakes = room(1, 1);
        let one = handshakes.admit(address(1), false, at(1)).unwrap();
        handshakes.leave(one.id);
        handshakes.leave(one.id);
        assert_eq!((handshakes.len(), handshakes.counts.is_empty()), (0, true));
        assert_eq!(handshakes.admit(address(1), true, at(1)).unwrap().evicted, None);
    }

    #[test]
    fn i10_a_network_of_48_bits_has_a_share_however_many_of_64_bits_it_has() {
        let mut handshakes = room(100, 2);
        let of = |n: u16| Owner::Address(std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, n, 0, 0, 0, 0).into());
        let other = Owner::Address(std::net::Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0).into());
        let other = handshakes.admit(other, true, at(1)).unwrap();
        let first = handshakes.admit(of(0), true, at(2)).unwrap();
        (1..3).for_each(|n| assert_eq!(handshakes.admit(of(n), true, at(3)).unwrap().evicted, None));
        let fourth = handshakes.admit(of(3), true, at(4)).unwrap();
        assert_eq!(fourth.evicted, Some(Limit::HandshakesPerNetwork));
        let ids = [other.id, first.id, fourth.id];
        assert_eq!(ids.map(|id| handshakes.all.contains_key(&id)), [true, false, true]);
    }

    #[test]
    fn all_waits_of_a_peer_count_together() {
        let waiting = Waiting::default();
        assert_eq!(waiting.since(), None);
        waiting.for_peer(at(1));
        waiting.for_peer(at(2));
        assert_eq!(waiting.since(), Some(1_000_000));
        waiting.no_more(at(3));
        waiting.no_more(at(4));
        assert_eq!(waiting.since(), None, "the broker works");
        waiting.for_peer(at(10));
        assert_eq!(waiting.since(), Some(8_000_000), "two seconds before, and the broker's own do not count");
    }

    #[test]
    fn i10_a_peer_that_sends_a_byte_at_a_time_goes_before_one_that_is_far_away() {
        let mut handshakes = room(2, 2);
        let dripping = handshakes.admit(address(1), true, at(1)).unwrap();
        let far = handshakes.admit(address(2), true, at(5)).unwrap();
        dripping.waiting.no_more(at(6));
        dripping.waiting.for_peer(at(6));
        let newest = handshakes.admit(address(3), true, at(7)).unwrap();
        let ids = [dripping.id, far.id, newest.id];
        assert_eq!(ids.map(|id| handshakes.all.contains_key(&id)), [false, true, true]);
    }
}
