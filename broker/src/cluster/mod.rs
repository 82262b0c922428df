//! The cluster: this broker as one of several on one store, with its membership, its leases, and the status of the others.
//!
//! The problem: several brokers share a store, and each can reach every agent and every cloud. Two that worked on one target
//! would undo each other's windows; and if the one that works on it dies, another must go on within seconds. The brokers talk
//! through the store alone.
//!
//! The words:
//! - A broker is a *member* for as long as it renews its *membership*, every second. The store lets a membership end six seconds
//!   after the last renewal.
//! - A *lease* says which member works on a target. Its token rises with each holder, and every read and write under the lease
//!   carries it, so the store refuses a broker that was replaced, however late its request comes.
//! - A lease *follows the agent*: the broker to which the target's agent connects takes it, also from a living holder. A
//!   lockdown or a release takes it *exclusively*, and gives it back.
//! - A broker publishes the *status* of each target that it holds, for grants with targets at several brokers, and reads that
//!   of the others ([`peer_status`]).
//!
//! The rule: a broker believes a lease for one second less than the store keeps it, counted from when the last renewal was
//! *sent*, on a clock that counts suspend. So it stops before another can begin. A lease saves work and prevents quarrels; that
//! a window ends does not depend on one (I2).
//!
//! On a failure:
//! - A renewal fails: the next is tried a second later. Once the belief ends, this broker opens nothing, closes what has ended,
//!   and is not ready; after 15 s it sends its agents away, because another broker may have the store.
//! - A membership ends: the member joins again, without its leases. Agents that are still connected to it come first.
//! - A member is gone: the others take over its leases at their next renewal, and look at each of its targets before they
//!   believe anything ([`crate::layers`]).
//! - An event is lost: events only say where to look. The [`follower`] finds a gap by the numbers of the audit records, and reads
//!   the audit log from there.
//!
//! A broker with a store to itself holds every lease, and the rest has nothing to do.

pub mod follower;
pub mod leases;
pub mod membership;
pub mod peer_status;

use std::sync::Arc;

use leases::Leases;
use peer_status::StatusExchange;
use postern_store::Coordination;
use postern_store::single_broker::SingleBroker;

use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::signals::Wakeups;

/// The other brokers, as the rest of this broker sees them.
pub struct Cluster {
    /// The leases that this broker holds.
    pub leases: Arc<Leases>,
    /// The exchange of statuses with the other brokers.
    pub peer_status: StatusExchange,
    /// The store's side of the cluster.
    pub coordination: Arc<dyn Coordination>,
}

impl Cluster {
    /// The brokers on one store.
    pub fn of(coordination: Arc<dyn Coordination>) -> Arc<Self> {
        let leases = Arc::new(Leases::new(Arc::clone(&coordination)));
        let peer_status = StatusExchange::new(Arc::clone(&coordination));
        Arc::new(Self { leases, peer_status, coordination })
    }

    /// Wakes each target on which this broker works: those of its leases, those whose agents are connected here, and those whose cloud has
    /// something of Postern's. For a change that may concern any of them; it reads nothing, so it cannot fail.
    pub fn wake_own_targets(&self, wakeups: &Wakeups, sessions: &AgentSessions, cloud: &CloudLayer) {
        wakeups.wake_all(self.leases.targets());
        wakeups.wake_all(sessions.targets());
        wakeups.wake_all(cloud.targets().into_iter().filter(|target| self.leases.holds(target)));
    }

    /// A broker with a store to itself.
    pub fn alone() -> Arc<Self> {
        Self::of(Arc::new(SingleBroker::default()))
    }
}
