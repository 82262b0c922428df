//! Seats: connections after their handshake, by class and owner.
//!
//! A new connection is admitted while an older one can go for it: the oldest of its own owner if that has its share,
//! otherwise the oldest of the owner that has most. So an identity or an address that opens connections without end closes
//! only its own. Administrators have seats that none but they can take.

use std::collections::{BTreeSet, HashMap};

use super::owner::{Class, Owner, Tally};
use super::table::{Limit, Limits};

/// The seats of every class.
#[derive(Debug)]
pub(super) struct Seats<T> {
    next: u64,
    anonymous: ClassSeats<T>,
    people: ClassSeats<T>,
    administrators: ClassSeats<T>,
    agents: ClassSeats<T>,
}

/// The seats of one class. `T` ends a connection.
#[derive(Debug)]
struct ClassSeats<T> {
    most: usize,
    per_owner: usize,
    per_network: usize,
    counts: Tally,
    seats: HashMap<u64, (Owner, T)>,
    by_owner: HashMap<Owner, BTreeSet<u64>>,
}

/// A seat that a connection has just taken.
#[derive(Debug)]
pub(super) struct TakenSeat<T> {
    pub(super) id: u64,
    /// The connection that has to go, with the limit for which it goes.
    pub(super) evicted: Option<(Limit, T)>,
}

impl<T> Seats<T> {
    pub(super) fn new(limits: &Limits) -> Self {
        let [anonymous, people, administrators, agents] = Class::ALL.map(|class| {
            let (most, per_owner) = match class {
                Class::Anonymous => (limits.anonymous, limits.anonymous_per_address),
                Class::People => (limits.people, limits.per_principal),
                Class::Administrators => (limits.administrators, limits.per_principal),
                Class::Agents => (limits.agents(), limits.per_agent),
            };
            ClassSeats {
                most,
                per_owner,
                per_network: limits.anonymous_per_network,
                counts: Tally::default(),
                seats: HashMap::new(),
                by_owner: HashMap::new(),
            }
        });
        Self { next: 0, anonymous, people, administrators, agents }
    }

    pub(super) fn len(&self, class: Class) -> usize {
        match class {
            Class::Anonymous => self.anonymous.seats.len(),
            Class::People => self.people.seats.len(),
            Class::Administrators => self.administrators.seats.len(),
            Class::Agents => self.agents.seats.len(),
        }
    }

    /// Takes a seat, and evicts another connection if none is free.
    ///
    /// # Errors
    /// The class is full of connections of known owners that have one each.
    pub(super) fn take(&mut self, class: Class, owner: Owner, end: T) -> Result<TakenSeat<T>, Limit> {
        let id = self.next;
        self.next += 1;
        let room = self.room(class);
        let (own, all) = match class {
            Class::Anonymous => (Limit::AnonymousPerAddress, Limit::Anonymous),
            Class::People => (Limit::PerPrincipal, Limit::People),
            Class::Administrators => (Limit::PerPrincipal, Limit::Administrators),
            Class::Agents => (Limit::PerAgent, Limit::Connections),
        };
        let mut evicted = None;
        if owner != Owner::Balancer && room.counts.of(&owner) >= room.per_owner {
            evicted = room.oldest_of(&owner).and_then(|oldest| Some((own, room.leave(oldest)?)));
        } else if room.counts.of_network(&owner) >= room.per_network {
            let oldest = room.oldest_of_network(&owner);
            evicted = oldest.and_then(|oldest| Some((Limit::AnonymousPerNetwork, room.leave(oldest)?)));
        } else if room.seats.len() >= room.most {
            let oldest = room.oldest_of_most(class == Class::Anonymous).ok_or(all)?;
            evicted = room.leave(oldest).map(|end| (all, end));
        }
        room.counts.add(&owner);
        room.by_owner.entry(owner.clone()).or_default().insert(id);
        room.seats.insert(id, (owner, end));
        Ok(TakenSeat { id, evicted })
    }

    /// Gives a seat back, unless another connection has taken it.
    pub(super) fn leave(&mut self, class: Class, id: u64) {
        self.room(class).leave(id);
    }

    fn room(&mut self, class: Class) -> &mut ClassSeats<T> {
        match class {
            Class::Anonymous => &mut self.anonymous,
            Class::People => &mut self.people,
            Class::Administrators => &mut self.administrators,
            Class::Agents => &mut self.agents,
        }
    }
}

impl<T> ClassSeats<T> {
    fn oldest_of(&self, owner: &Owner) -> Option<u64> {
        self.by_owner.get(owner)?.first().copied()
    }

    fn oldest_of_network(&self, owner: &Owner) -> Option<u64> {
        let network = self.by_owner.iter().filter(|(other, _)| other.network() == owner.network());
        network.filter_map(|(_, seats)| seats.first().copied()).min()
    }

    /// Finds the oldest seat of the owner, or the wider network, with the most. If each owner has one, the oldest of all, if `any` may go.
    fn oldest_of_most(&self, any: bool) -> Option<u64> {
        let owners = self.by_owner.iter().filter_map(|(owner, seats)| {
            Some((self.counts.weight(owner), std::cmp::Reverse(*seats.first()?)))
        });
        let (weight, oldest) = owners.max()?;
        (any || weight > 1).then_some(oldest.0)
    }

    fn leave(&mut self, id: u64) -> Option<T> {
        let (owner, end) = self.seats.remove(&id)?;
        self.counts.remove(&owner);
        if let Some(seats) = self.by_owner.get_mut(&owner) {
            seats.remove(&id);
            if seats.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        Some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::builders::key;

    /// Four seats for strangers, three for people, two for administrators and five for agents, and two of them for each owner.
    fn seats() -> Seats<&'static str> {
        Seats::new(&Limits {
            connections: 16,
            handshakes: 2,
            anonymous: 4,
            anonymous_per_address: 2,
            people: 3,
            administrators: 2,
            per_principal: 2,
            per_agent: 2,
            ..Limits::default()
        })
    }

    fn address(last: u8) -> Owner {
        Owner::Address([192, 0, 2, last].into())
    }

    fn principal(who: &str) -> Owner {
        Owner::Principal(key(who))
    }

    fn agent(number: usize) -> Owner {
        Owner::Agent(format!("host:vm-{number}").parse().unwrap())
    }

    #[test]
    fn i10_an_address_past_its_share_loses_its_oldest() {
        let mut seats = seats();
        for word in ["first", "second"] {
            assert!(seats.take(Class::Anonymous, address(1), word).unwrap().evicted.is_none());
        }
        let third = seats.take(Class::Anonymous, address(1), "third").unwrap();
        assert_eq!(third.evicted, Some((Limit::AnonymousPerAddress, "first")));
        assert_eq!(seats.len(Class::Anonymous), 2);
    }

    #[test]
    fn i10_strangers_displace_only_strangers_and_those_with_most_first() {
        let mut seats = seats();
        seats.take(Class::Anonymous, address(1), "alone").unwrap();
        seats.take(Class::Anonymous, address(2), "pair").unwrap();
        seats.take(Class::Anonymous, address(2), "pair'").unwrap();
        seats.take(Class::Anonymous, address(3), "newer").unwrap();
        let more = seats.take(Class::Anonymous, address(4), "newest").unwrap();
        assert_eq!(more.evicted, Some((Limit::Anonymous, "pair")));
        let more = seats.take(Class::Anonymous, address(5), "last").unwrap();
        assert_eq!(more.evicted, Some((Limit::Anonymous, "alone")), "each has one: the oldest goes");
        assert!(seats.take(Class::Agents, agent(1), "agent").unwrap().evicted.is_none());
    }

    #[test]
    fn i10_a_network_of_48_bits_has_a_share_and_the_one_with_most_gives_way_first() {
        let limits =
            Limits { anonymous: 6, anonymous_per_address: 2, anonymous_per_network: 3, ..Limits::default() };
        let mut seats = Seats::new(&limits);
        let of = |site: u16, n: u16| {
            Owner::Address(std::net::Ipv6Addr::new(0x2001, 0xdb8, site, n, 0, 0, 0, 0).into())
        };
        seats.take(Class::Anonymous, of(2, 0), "other").unwrap();
        for (n, word) in ["a", "b", "c"].into_iter().enumerate() {
            let n = u16::try_from(n).unwrap();
            assert!(seats.take(Class::Anonymous, of(1, n), word).unwrap().evicted.is_none());
        }
        let more = seats.take(Class::Anonymous, of(1, 9), "d").unwrap();
        assert_eq!(more.evicted, Some((Limit::AnonymousPerNetwork, "a")));
        seats.take(Class::Anonymous, address(1), "e").unwrap();
        seats.take(Class::Anonymous, address(2), "f").unwrap();
        let more = seats.take(Class::Anonymous, address(3), "g").unwrap();
        assert_eq!(
            more.evicted,
            Some((Limit::Anonymous, "b")),
            "each address has one, and one network three"
        );
    }

    #[test]
    fn i10_a_balancer_may_have_every_seat_and_gives_way_when_they_are_all_taken() {
        let mut seats = seats();
        for word in ["a", "b", "c", "d"] {
            assert!(seats.take(Class::Anonymous, Owner::Balancer, word).unwrap().evicted.is_none());
        }
        let more = seats.take(Class::Anonymous, Owner::Balancer, "e").unwrap();
        assert_eq!(more.evicted, Some((Limit::Anonymous, "a")));
        seats.take(Class::Anonymous, address(1), "f").unwrap();
        seats.take(Class::Anonymous, address(1), "g").unwrap();
        let more = seats.take(Class::Anonymous, Owner::Balancer, "h").unwrap();
        assert_eq!(more.evicted, Some((Limit::Anonymous, "f")), "an address with two goes first");
    }

    #[test]
    fn i10_a_person_gets_in_while_another_identity_holds_every_seat() {
        let mut seats = seats();
        seats.take(Class::People, principal("mallory"), "m1").unwrap();
        seats.take(Class::People, principal("mallory"), "m2").unwrap();
        seats.take(Class::People, principal("eve"), "e").unwrap();
        let more = seats.take(Class::People, principal("rita"), "rita").unwrap();
        assert_eq!(more.evicted, Some((Limit::People, "m1")));
    }

    #[test]
    fn i10_an_administrator_gets_in_while_every_other_principal_has_a_seat() {
        let mut seats = seats();
        for who in ["a", "b", "c"] {
            seats.take(Class::People, principal(who), who).unwrap();
        }
        assert_eq!(seats.take(Class::People, principal("d"), "d").unwrap_err(), Limit::People);
        for word in ["one", "two"] {
            assert!(seats.take(Class::Administrators, principal("root"), word).unwrap().evicted.is_none());
        }
        let other = seats.take(Class::Administrators, principal("other"), "other").unwrap();
        assert_eq!(other.evicted, Some((Limit::Administrators, "one")));
    }

    #[test]
    fn i10_agents_displace_their_own_and_never_another_agent() {
        let mut seats = seats();
        for number in 0..5 {
            seats.take(Class::Agents, agent(number), "once").unwrap();
        }
        assert_eq!(seats.take(Class::Agents, agent(9), "new").unwrap_err(), Limit::Connections);
        seats.leave(Class::Agents, 0);
        seats.take(Class::Agents, agent(1), "twice").unwrap();
        let third = seats.take(Class::Agents, agent(1), "thrice").unwrap();
        assert_eq!(third.evicted, Some((Limit::PerAgent, "once")));
        let new = seats.take(Class::Agents, agent(9), "new").unwrap();
        assert_eq!(new.evicted, Some((Limit::Connections, "twice")), "a second connection goes for a first");
    }

    #[test]
    fn a_seat_is_given_back_once() {
        let mut seats = seats();
        let one = seats.take(Class::People, principal("a"), "a").unwrap().id;
        seats.leave(Class::People, one);
        seats.leave(Class::People, one);
        assert_eq!((seats.len(Class::People), seats.people.by_owner.len()), (0, 0));
    }
}
