//! Limits on what peers may use of a broker (I10). `table.rs` has every number, and [`RefusalReport`] counts every refusal.
//!
//! **The problem.** The broker's port is open to strangers: agents enrol there without a certificate. Any address can open
//! connections without end, and a stolen certificate can, too. The broker must still let an administrator in to revoke a
//! grant, and must keep the sessions of its agents.
//!
//! **The words.** A connection goes through three stages, and each has a share of its own, so that a stage that is used up
//! takes nothing from the next:
//!
//! 1. **Handshake** ([`handshakes`]): a TCP connection whose peer is not known yet. It holds a [`HandshakePermit`]. A connection
//!    past the [`rate`] of handshakes is closed before it costs the broker a signature. Connections that wait for their peer give way to newer ones, first those of the address that holds most.
//! 2. **Seat** ([`seats`]): after the handshake a connection belongs to a class: anonymous (no certificate), people,
//!    administrators, or agents. The first three have a fixed number of seats; agents have all that is left. Within a class,
//!    the address or identity that holds most seats gives up its oldest one.
//! 3. **Call** (`api/bounded.rs`): headers and each message have a size, receiving a request and answering it have a deadline, and
//!    a principal has a number of calls at once. Reads that go through many records share a few places ([`reads`]).
//!
//! HTTP/2's own limits bound one connection (`api/connection.rs`): streams, windows and headers. The *owner* of a connection
//! is the identity in its certificate, or without one its address (an IPv6 network of 64 bits, with a further share for each network
//! of 48 bits).
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
mod owner;
mod quotas;
mod rate;
mod reads;
mod report;
mod seats;
mod settings;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
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
pub use owner::{Class, Owner};
pub use quotas::Quotas;
pub(crate) use quotas::RENEWALS_PER_MINUTE;
use rate::HandshakeRate;
pub use reads::{ExpensiveReads, ReadKind, ReadPlace};
pub(crate) use report::{RefusalReport, line_due, log_due};
use seats::Seats;
pub use table::{CountedBy, Limit, Limits, ROWS, Row};
pub(crate) use table::{LABELS, SettingValue};

/// Admits connections to a broker within its limits.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) limits: Limits,
    pub(crate) report: RefusalReport,
    rate: Mutex<HandshakeRate>,
    handshakes: Mutex<Handshakes>,
    seats: Mutex<Seats<Arc<Notify>>>,
    /// The calls of each principal that are not answered yet.
    calls: Mutex<HashMap<Owner, usize>>,
}

/// The reason why a handshake does not begin now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAdmitted {
    /// Every permit is taken and no handshake waits for its peer: the caller asks again in a moment.
    Busy,
    /// The peer has begun too many handshakes in this second: the caller closes the connection.
    Refused,
}

/// A call of a principal, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct CallPlace {
    admission: Arc<Admission>,
    owner: Owner,
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
            rate: Mutex::new(HandshakeRate::new(&limits)),
            handshakes: Mutex::new(Handshakes::new(&limits)),
            calls: Mutex::default(),
            seats: Mutex::new(Seats::new(&limits)),
            report: RefusalReport::default(),
            limits,
        })
    }

    /// Admits a handshake with `peer`. The handshake that has waited longest for its peer may lose its permit for it.
    ///
    /// # Errors
    /// The broker's processor is the bottleneck, or the peer has had its handshakes of this second.
    pub(crate) fn admit_handshake(
        self: &Arc<Self>,
        peer: SocketAddr,
        is_silent: bool,
    ) -> Result<HandshakePermit, NotAdmitted> {
        let (owner, now) = (self.limits.owner(peer.ip()), boottime());
        if let Err(limit) = lock(&self.rate).judge(&owner, now) {
            self.report.hit(limit, &peer);
            return Err(NotAdmitted::Refused);
        }
        let mut handshakes = lock(&self.handshakes);
        let admitted = handshakes.admit(owner.clone(), is_silent, now).ok_or(NotAdmitted::Busy)?;
        lock(&self.rate).count(&owner);
        telemetry::handshakes(handshakes.len());
        drop(handshakes);
        if let Some(limit) = admitted.evicted {
            self.report.hit(limit, &peer);
        }
        Ok(HandshakePermit { admission: Arc::clone(self), id: admitted.id, waiting: admitted.waiting })
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

impl Admission {
    /// Counts a call of a principal. `None` if it has as many as it may.
    pub(crate) fn begin_call(self: &Arc<Self>, owner: Owner) -> Option<CallPlace> {
        let mut calls = lock(&self.calls);
        let own = calls.get(&owner).copied().unwrap_or_default();
        if own >= self.limits.calls_per_principal {
            return None;
        }
        calls.insert(owner.clone(), own + 1);
        Some(CallPlace { admission: Arc::clone(self), owner })
    }
}

impl Drop for CallPlace {
    fn drop(&mut self) {
        let mut calls = lock(&self.admission.calls);
        if let Some(own) = calls.get_mut(&self.owner) {
            *own -= 1;
            if *own == 0 {
                calls.remove(&self.owner);
            }
        }
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

    /// Returns the admission that gave the seat.
    pub(crate) fn admission(&self) -> &Arc<Admission> {
        &self.admission
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
