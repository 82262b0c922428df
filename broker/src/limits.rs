//! Limits on what peers may hold of a broker (I10). One place has every number, and one place counts what they refuse.
//!
//! A connection goes through three stages, and each has a share of its own, so that one that is used up takes nothing
//! from the next:
//!
//! 1. **Handshake** ([`handshakes`]): a TCP connection whose peer is not known yet. Connections that wait for their peer
//!    give way to newer ones, first those of the address that holds most.
//! 2. **Seat** ([`seats`]): after the handshake a connection belongs to a class: anonymous (no certificate), people, or
//!    agents. Anonymous connections and people have a fixed number of seats; agents have all that is left. Within a
//!    class, whichever address or identity holds most seats gives up its oldest one.
//! 3. **Call** (`api/bounded.rs`): each message has a size, receiving a request and answering it have a deadline.
//!
//! HTTP/2's own limits bound one connection (`api/connection.rs`): streams, windows and headers.

mod descriptors;
mod handshakes;
mod report;
mod seats;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_core::{Principal, SourcePrefix, TargetId};
use postern_pki::Identity;
use tokio::sync::Notify;

use crate::clock::boottime;
use crate::measure;
pub use descriptors::descriptors;
use handshakes::Handshakes;
pub(crate) use handshakes::Waiting;
pub use report::Limit;
pub(crate) use report::Report;
use seats::Seats;

/// Every limit, as the section `[limits]` of the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections in all, handshakes included.
    pub connections: usize,
    /// Handshakes that are not done, in all.
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
    /// The addresses of load balancers: what comes from one is many callers' and has no limit for the address.
    pub load_balancers: Vec<SourcePrefix>,
    /// From accepting a connection to its first byte.
    pub first_byte: Duration,
    /// From the first byte to the end of the TLS handshake.
    pub handshake: Duration,
    /// From the handshake to the end of the client's HTTP/2 preface and the head of its settings.
    pub preface: Duration,
    /// From the headers of a call with one request message to the end of that message.
    pub receive: Duration,
    /// From the headers of a call with one request and one answer to the answer.
    pub answer: Duration,
    /// The age at which a connection without a certificate is closed.
    pub anonymous_age: Duration,
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
            anonymous_streams: 8,
            agent_streams: 16,
            streams: 256,
            anonymous_message: 16 * 1024,
            agent_message: 64 * 1024,
            message: 1024 * 1024,
        }
    }
}

impl Limits {
    /// The limits that so many file descriptors allow: every share shrinks alike, so that agents keep theirs.
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

    /// Connections that only agents can have.
    pub fn agents(&self) -> usize {
        self.connections.saturating_sub(self.handshakes + self.anonymous + self.people).max(1)
    }

    /// The owner of an anonymous connection or a handshake: its address, an IPv6 network of 64 bits, or a balancer.
    fn owner(&self, address: IpAddr) -> Owner {
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

/// The class of a connection whose handshake is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// No certificate was shown.
    Anonymous,
    /// A principal's certificate was shown.
    People,
    /// An agent's certificate was shown.
    Agents,
}

impl Class {
    const ALL: [Self; 3] = [Self::Anonymous, Self::People, Self::Agents];

    /// The class of a peer with this identity, if it has one.
    pub fn of(identity: Option<&Identity>) -> Self {
        match identity {
            None => Self::Anonymous,
            Some(Identity::Agent(_)) => Self::Agents,
            Some(Identity::Principal(_) | Identity::Broker) => Self::People,
        }
    }

    /// The word in the metric's label.
    pub fn word(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::People => "people",
            Self::Agents => "agents",
        }
    }
}

/// The party to which a connection is counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Owner {
    Address(IpAddr),
    Balancer,
    Principal(Principal),
    Agent(TargetId),
    Broker,
}

/// Admits connections to a broker within its limits.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) limits: Limits,
    pub(crate) report: Report,
    handshakes: Mutex<Handshakes>,
    seats: Mutex<Seats<Arc<Notify>>>,
}

/// A handshake's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    id: u64,
    /// The state that shows that the handshake waits for its peer, and that ends it.
    pub(crate) waiting: Arc<Waiting>,
}

/// A connection's seat, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    admission: Arc<Admission>,
    class: Class,
    id: u64,
    evicted: Arc<Notify>,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            handshakes: Mutex::new(Handshakes::new(limits.handshakes, limits.handshakes_per_address)),
            seats: Mutex::new(Seats::new(&limits)),
            report: Report::default(),
            limits,
        })
    }

    /// Takes a place for a handshake with `peer`. The one that has waited longest for its peer may lose its own.
    ///
    /// Returns `None` where every place is taken and none waits for its peer: then the broker's processor is what is
    /// short, and the caller asks again in a moment.
    pub(crate) fn place(self: &Arc<Self>, peer: SocketAddr, is_silent: bool) -> Option<Place> {
        let owner = self.limits.owner(peer.ip());
        let mut handshakes = lock(&self.handshakes);
        let admitted = handshakes.admit(owner, is_silent, boottime())?;
        measure::handshakes(handshakes.len());
        drop(handshakes);
        if let Some(limit) = admitted.evicted {
            self.report.hit(limit, &peer);
        }
        Some(Place { admission: Arc::clone(self), id: admitted.id, waiting: admitted.waiting })
    }

    /// Takes a seat for a connection. Another one of its class may lose its own.
    ///
    /// # Errors
    /// Every seat of the class is taken, and none of them is a second one.
    pub(crate) fn seat(
        self: &Arc<Self>,
        peer: SocketAddr,
        identity: Option<&Identity>,
    ) -> Result<Seat, Limit> {
        let class = Class::of(identity);
        let owner = match identity {
            None => self.limits.owner(peer.ip()),
            Some(Identity::Principal(principal)) => Owner::Principal(principal.clone()),
            Some(Identity::Agent(target)) => Owner::Agent(target.clone()),
            Some(Identity::Broker) => Owner::Broker,
        };
        let evicted = Arc::new(Notify::new());
        let mut seats = lock(&self.seats);
        let taken = seats.take(class, owner, Arc::clone(&evicted));
        measure::connections(class.word(), seats.len(class));
        drop(seats);
        let taken = taken.inspect_err(|limit| self.report.hit(*limit, &peer))?;
        if let Some((limit, other)) = taken.evicted {
            other.notify_one();
            self.report.hit(limit, &peer);
        }
        Ok(Seat { admission: Arc::clone(self), class, id: taken.id, evicted })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut handshakes = lock(&self.admission.handshakes);
        handshakes.leave(self.id);
        measure::handshakes(handshakes.len());
    }
}

impl Seat {
    /// The connection's class.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// The limits under which it was taken.
    pub(crate) fn limits(&self) -> &Limits {
        &self.admission.limits
    }

    /// The count of refusals.
    pub(crate) fn report(&self) -> &Report {
        &self.admission.report
    }

    /// Waits until another connection has taken the seat.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = lock(&self.admission.seats);
        seats.leave(self.class, self.id);
        measure::connections(self.class.word(), seats.len(self.class));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
