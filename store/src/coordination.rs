//! Several brokers on one store: the members, and the member that works on each target.
//!
//! **The problem.** Brokers on one store are equal and may die at any moment. Two of them must not drive one target at once:
//! each would undo what the other has just done, and an agent would get desired states from both.
//!
//! **The words.**
//!
//! - A broker is a *member* while it renews its membership; a membership that is not renewed ends after [`MEMBERSHIP_TTL`].
//!   A broker that joins again has a new membership, and every lease of the old one is lost.
//! - A *lease* names the member that works on a target. Its token rises with each holder. A broker shows the token with its
//!   reads and writes, so that the store refuses a holder that was replaced, however late its command comes.
//! - A [`Claim`] is the ground on which a member takes a lease. Work follows the target's agent; a lockdown takes the lease
//!   exclusively.
//! - A *lock* keeps one job (such as a lockdown) to one member at a time.
//! - A *status* is what the holder of a lease publishes about its target, for members that answer questions about it.
//! - A [`ClusterEvent`] says that something changed and where to look.
//!
//! **The rule.** A lease saves work and keeps brokers apart. The end of a window does not depend on it: agents end windows
//! by their own clocks (I2).
//!
//! **On failure.** A member that dies loses its membership, and the others take its leases over. A member that was cut off
//! gets [`StoreError::Fenced`] and joins again. A lost event costs time only: members also look without one.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use postern_core::TargetId;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::kind::Kind;

/// The life of a membership that is not renewed.
pub const MEMBERSHIP_TTL: Duration = Duration::from_secs(6);

/// The right to work on a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The target.
    pub target: TargetId,
    /// A number that rises with each holder; 0 on a store with one broker.
    pub token: u64,
}

/// A lease that this broker has just taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenLease {
    /// The lease.
    pub lease: Lease,
    /// Set if another broker held it before: that broker may have sent the agent a state that this one does not know.
    pub inherits: bool,
}

/// The ground on which a member asks for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// No member works on the target: the lease is free, or its holder is gone.
    Free,
    /// The target's agent has its session here. Work follows the agent, also away from a living holder.
    Agent,
    /// A lockdown or release needs the target for itself: no other member gets the lease until it is given back.
    Exclusive,
}

impl Claim {
    /// Returns the word for the claim in the store's scripts.
    pub fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Agent => "agent",
            Self::Exclusive => "exclusive",
        }
    }
}

/// The description that a member gives of itself, for `postern status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberInfo {
    /// The membership; a member that joins again has a new one.
    #[serde(default)]
    pub membership: String,
    /// The broker's name.
    pub name: String,
    /// The version that it runs.
    pub version: String,
    /// The time at which it started.
    pub started_at: Timestamp,
    /// The number of agents with a session on it.
    pub agents: u64,
    /// The number of targets that it works on.
    pub targets: u64,
    /// The number of targets whose cloud keeps failing.
    pub stuck: u64,
    /// Set while it shuts down.
    pub ending: bool,
    /// The lead of its clock over the store's, in milliseconds, at the last renewal.
    #[serde(default)]
    pub clock_ahead_ms: i64,
    /// The reasons why it is not ready, one line for each part; empty if it is ready.
    #[serde(default)]
    pub not_ready: Vec<String>,
    /// The warnings about the authority's certificates, one line each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The answer to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RenewalReply {
    /// Set if the membership is new: every lease of the previous one is lost.
    pub joined: bool,
    /// The number of the newest audit record.
    pub head: u64,
    /// The store's own time, if the store has a clock.
    pub store_time: Option<Timestamp>,
    /// The number of this membership's leases that other members took, so far.
    pub losses: u64,
    /// The memberships that have ended and still have leases.
    pub gone: Vec<String>,
}

/// The status of a target, as the member that works on it publishes it for the others.
#[derive(Debug, Clone)]
pub struct PublishedStatus {
    /// The lease under which it is published.
    pub lease: Lease,
    /// The status, as text.
    pub status: String,
    /// The targets whose grants wait for this status.
    pub awaited_by: Vec<TargetId>,
}

/// An event in the cluster, with the place to look at. A lost event costs time and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A member committed a transaction.
    Committed(CommittedChange),
    /// A member took the lease of a target.
    LeaseTaken {
        /// The target.
        target: TargetId,
        /// Set if this member has the lease now.
        mine: bool,
        /// Set if the lease was taken exclusively, and will be given back.
        exclusive: bool,
    },
    /// A member gave the lease of a target back.
    LeaseFreed(TargetId),
    /// A status changed for which the grants of these targets wait.
    StatusPublished(Vec<TargetId>),
    /// A late write of another member may have reached this target's cloud: its holder looks again.
    LookRequested(TargetId),
    /// A member left.
    MemberLeft,
}

/// The changes of a commit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommittedChange {
    /// The number of the newest audit record before it.
    pub before: u64,
    /// The number of the newest audit record after it.
    pub after: u64,
    /// Set if this broker made the commit.
    pub own: bool,
    /// The records that were written or deleted, of the kinds that are announced.
    pub records: Vec<ChangedRecord>,
    /// The targets to look at, without those that another member works on.
    pub targets: Vec<TargetId>,
}

impl CommittedChange {
    /// Returns the texts of the keys of the records of a kind.
    pub fn keys(&self, kind: Kind) -> impl Iterator<Item = &str> {
        self.records.iter().filter(move |record| record.kind == kind.name).map(|record| record.key.as_str())
    }
}

/// A record that a commit wrote or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedRecord {
    /// The name of its kind.
    pub kind: String,
    /// The text of its key.
    pub key: String,
}

/// Events as they come, until the connection breaks.
#[async_trait]
pub trait Subscription: Send {
    /// Returns the next event; none once the connection is broken.
    async fn next(&mut self) -> Option<ClusterEvent>;
}

/// The coordination of the brokers on one store.
///
/// On a store with one broker ([`super::single_broker::SingleBroker`]) every request is granted and there are no events: the
/// methods that have a body do what is right there.
#[async_trait]
pub trait Coordination: Send + Sync + 'static {
    /// Reports whether the store can have no other member.
    fn is_alone(&self) -> bool;

    /// Returns this broker's membership.
    fn membership(&self) -> String;

    /// Renews this broker's membership, or joins again if it has ended.
    ///
    /// # Errors
    /// Here and in every other method: the store failed, or was written by a newer broker.
    async fn renew(&self, info: &MemberInfo) -> Result<RenewalReply, StoreError>;

    /// Ends the membership, so that other members take its leases at once.
    async fn leave(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Takes the target's lease; none if another member has a better claim. A lease that this member holds is kept.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if this membership has ended.
    async fn take(&self, target: &TargetId, claim: Claim) -> Result<Option<TakenLease>, StoreError>;

    /// Returns the targets whose leases this member holds.
    async fn held(&self) -> Result<HashSet<TargetId>, StoreError> {
        Ok(HashSet::new())
    }

    /// Takes some leases of a member that is gone; none once there are no more.
    async fn take_over(&self, _gone: &str) -> Result<Vec<TakenLease>, StoreError> {
        Ok(Vec::new())
    }

    /// Ends an exclusive claim, and keeps the lease.
    async fn end_exclusive(&self, _lease: &Lease) -> Result<(), StoreError> {
        Ok(())
    }

    /// Gives back a lease that was taken exclusively from another member.
    async fn give_back(&self, _lease: &Lease) -> Result<(), StoreError> {
        Ok(())
    }

    /// Gives the lease of a target back that is gone, with its published status: the store keeps nothing of the target.
    async fn forget(&self, _lease: &Lease) -> Result<(), StoreError> {
        Ok(())
    }

    /// Locks the job of this name until [`Self::unlock`] or the end of this member. False: another member has locked it.
    async fn try_lock(&self, _job: &str) -> Result<bool, StoreError> {
        Ok(true)
    }

    /// Unlocks the job.
    async fn unlock(&self, _job: &str) -> Result<(), StoreError> {
        Ok(())
    }

    /// Publishes the status of targets. The store drops a status whose lease is lost.
    async fn publish(&self, _posted: Vec<PublishedStatus>) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the published statuses of these targets; nothing for a target without a holder, or without a status yet.
    async fn statuses(&self, _targets: &[TargetId]) -> Result<Vec<(TargetId, String)>, StoreError> {
        Ok(Vec::new())
    }

    /// Asks the holder of a target's lease to look at the target's cloud again.
    async fn ask_to_look(&self, target: &TargetId) -> Result<(), StoreError>;

    /// Returns every member, by name.
    async fn list_members(&self) -> Result<Vec<MemberInfo>, StoreError>;

    /// Subscribes to the events from now on.
    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>>;
}
