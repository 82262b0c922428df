//! Limits on what peers may use of a broker (I10). `settings.rs` has every number, and [`RefusalReport`] counts every refusal.
//!
//! **The problem.** The broker's port is open to strangers: agents enrol there without a certificate. Any address can open
//! connections without end, and a stolen certificate can, too. The broker must still let an administrator in to revoke a
//! grant, and must keep the sessions of its agents.
//!
//! **The words.** A connection goes through three stages, and each has a share of its own, so that a stage that is used up
//! takes nothing from the next:
//!
//! 1. **Handshake** ([`handshakes`]): a TCP connection whose peer is not known yet. It holds a [`HandshakePermit`].
//!    Connections that wait for their peer give way to newer ones, first those of the address that holds most.
//! 2. **Seat** ([`seats`]): after the handshake a connection belongs to a class: anonymous (no certificate), people, or
//!    agents. Anonymous connections and people have a fixed number of seats; agents have all that is left. Within a class,
//!    the address or identity that holds most seats gives up its oldest one.
//! 3. **Call** (`api/bounded.rs`): each message has a size, and receiving a request and answering it have a deadline.
//!
//! HTTP/2's own limits bound one connection (`api/connection.rs`): streams, windows and headers. The *owner* of a connection
//! is the identity in its certificate, or without one its address (an IPv6 network of 64 bits).
//!
//! **The rule.** A peer that opens connections without end closes only its own, or those of peers of its class that hold
//! more. Agents always keep half of all connections.
//!
//! **On failure.** If every handshake waits for the broker's own processor, the broker accepts no more for a moment. If every
//! seat of people or agents belongs to a different identity, the next connection of that class is refused. If the process may
//! open fewer files than the configuration needs, all shares shrink alike ([`Limits::within`]). Each refusal counts in a
//! metric, and the log has a line for each limit at a bounded rate.

mod buckets;
mod descriptors;
mod handshakes;
mod limit;
mod owner;
mod quotas;
mod report;
mod seats;
mod settings;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postern_core::CallerKind;
use tokio::sync::Notify;

use crate::clock::boottime;
use crate::telemetry;
pub(crate) use buckets::{Buckets, MAX_OWNERS, bucket};
pub use descriptors::descriptors;
use handshakes::Handshakes;
pub(crate) use handshakes::Waiting;
pub use limit::Limit;
pub use owner::{Class, Owner};
pub use quotas::Quotas;
pub(crate) use quotas::RENEWALS_PER_MINUTE;
pub(crate) use report::{RefusalReport, log_due};
use seats::Seats;
pub use settings::Limits;

/// Admits connections to a broker within its limits.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) limits: Limits,
    pub(crate) report: RefusalReport,
    handshakes: Mutex<Handshakes>,
    seats: Mutex<Seats<Arc<Notify>>>,
}

/// A handshake's permit, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    admission: Arc<Admission>,
    id: u64,
    /// The state that shows whether the handshake waits for its peer, and that ends it.
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
            report: RefusalReport::default(),
            limits,
        })
    }

    /// Admits a handshake with `peer`. The handshake that has waited longest for its peer may lose its permit for it.
    ///
    /// Returns `None` if every permit is taken and no handshake waits for its peer: then the broker's processor is the
    /// bottleneck, and the caller asks again in a moment.
    pub(crate) fn admit_handshake(
        self: &Arc<Self>,
        peer: SocketAddr,
        is_silent: bool,
    ) -> Option<HandshakePermit> {
        let owner = self.limits.owner(peer.ip());
        let mut handshakes = lock(&self.handshakes);
        let admitted = handshakes.admit(owner, is_silent, boottime())?;
        telemetry::handshakes(handshakes.len());
        drop(handshakes);
        if let Some(limit) = admitted.evicted {
            self.report.hit(limit, &peer);
        }
        Some(HandshakePermit { admission: Arc::clone(self), id: admitted.id, waiting: admitted.waiting })
    }

    /// Takes a seat for a connection. Another connection of its class may lose its seat for it.
    ///
    /// # Errors
    /// Every seat of the class is taken, and no owner has two.
    pub(crate) fn seat(self: &Arc<Self>, peer: SocketAddr, kind: Option<&CallerKind>) -> Result<Seat, Limit> {
        let class = Class::of(kind);
        let owner = match kind {
            None => self.limits.owner(peer.ip()),
            Some(kind) => Owner::from(kind),
        };
        let evicted = Arc::new(Notify::new());
        let mut seats = lock(&self.seats);
        let taken = seats.take(class, owner, Arc::clone(&evicted));
        telemetry::connections(class.word(), seats.len(class));
        drop(seats);
        let taken = taken.inspect_err(|limit| self.report.hit(*limit, &peer))?;
        if let Some((limit, other)) = taken.evicted {
            other.notify_one();
            self.report.hit(limit, &peer);
        }
        Ok(Seat { admission: Arc::clone(self), class, id: taken.id, evicted })
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut handshakes = lock(&self.admission.handshakes);
        handshakes.leave(self.id);
        telemetry::handshakes(handshakes.len());
    }
}

impl Seat {
    /// Returns the connection's class.
    pub(crate) fn class(&self) -> Class {
        self.class
    }

    /// Returns the limits under which the seat was taken.
    pub(crate) fn limits(&self) -> &Limits {
        &self.admission.limits
    }

    /// Returns the count of refusals.
    pub(crate) fn report(&self) -> &RefusalReport {
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
        telemetry::connections(self.class.word(), seats.len(self.class));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
