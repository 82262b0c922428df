//! Several brokers on one store: who is there, and which of them works on which target.
//!
//! A broker on a store is a *member*, for as long as it renews that. A *lease* says which member works on a target; its
//! token rises with each holder, and goes with what the holder reads and writes, so that one that was replaced is refused,
//! however late it comes. A lease saves work; that a window ends does not depend on it (I2).

#[cfg(test)]
pub(crate) mod fake;

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use postern_core::{GrantId, TargetId};
use serde::{Deserialize, Serialize};

use super::StoreError;

/// How long a membership lasts that is not renewed.
pub const MEMBERSHIP_TTL: Duration = Duration::from_secs(6);

/// The right to work on a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The target.
    pub target: TargetId,
    /// Rises with each holder; 0 where there is only one.
    pub token: u64,
}

/// A lease that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakenLease {
    /// The lease.
    pub lease: Lease,
    /// Whether another broker held it before: it may have told the agent what this one knows nothing of.
    pub inherits: bool,
}

/// On what ground a lease is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// Nobody works on the target: it is free, or its holder is gone.
    Free,
    /// The target's agent has its session here. Work follows the agent, also away from a holder that is there.
    Agent,
    /// An administrator's lockdown or release needs the target for itself: it is nobody's else until it is given back.
    Turn,
}

impl Claim {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Agent => "agent",
            Self::Turn => "turn",
        }
    }
}

/// What a member says of itself, for `postern status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemberInfo {
    /// Its membership; changes when it has to join anew.
    #[serde(default)]
    pub membership: String,
    /// The replica's name.
    pub name: String,
    /// The version that it runs.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// How many agents have their session with it.
    pub agents: u64,
    /// How many targets it works on.
    pub targets: u64,
    /// How many targets have a cloud that keeps failing.
    pub stuck: u64,
    /// Whether it is ending.
    pub ending: bool,
    /// How far its clock is ahead of the store's, in milliseconds; as it was at the last renewal.
    #[serde(default)]
    pub clock_ahead_ms: i64,
    /// What keeps it from its work, one line for each part; empty where it is ready.
    #[serde(default)]
    pub not_ready: Vec<String>,
    /// Its warnings about the authority's life, one line each.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The answer to a renewal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RenewalReply {
    /// Whether the membership is a new one: every lease of the one before is lost.
    pub joined: bool,
    /// The number of the newest audit record.
    pub head: u64,
    /// The store's own time, where it tells one.
    pub store_time: Option<Timestamp>,
    /// How many of this membership's leases were taken away so far.
    pub losses: u64,
    /// Members that are gone, and had leases.
    pub gone: Vec<String>,
}

/// What a member tells of a target that it works on, for those that do not.
#[derive(Debug, Clone)]
pub struct PublishedStatus {
    /// By what right.
    pub lease: Lease,
    /// The view, as text.
    pub status: String,
    /// The targets whose grants wait for it.
    pub awaited_by: Vec<TargetId>,
}

/// Something that happened, and where to look. Losing it costs time and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterEvent {
    /// The store changed.
    Committed(CommittedChange),
    /// Somebody took the lease of a target, on this ground.
    LeaseTaken {
        /// The target.
        target: TargetId,
        /// Whether it is this member that has it now.
        mine: bool,
        /// Whether it was taken for a turn, after which it is given back.
        exclusive: bool,
    },
    /// Somebody gave the lease of a target back.
    LeaseFreed(TargetId),
    /// The view of something changed for which these targets' grants wait.
    StatusPublished(Vec<TargetId>),
    /// What was on its way to this target's cloud may have arrived late.
    LookRequested(TargetId),
    /// A member left.
    MemberLeft,
}

/// What a commit changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommittedChange {
    /// The newest audit record before it.
    pub before: u64,
    /// The newest audit record after it.
    pub after: u64,
    /// Whether this broker made it, and knows.
    pub own: bool,
    /// The grants.
    pub grants: Vec<GrantId>,
    /// The targets to look at, of those that are nobody's else.
    pub targets: Vec<TargetId>,
    /// The agents.
    pub agents: Vec<TargetId>,
    /// Whether policies changed.
    pub policies: bool,
}

/// ClusterEvent as they come, until the connection breaks.
#[async_trait]
pub trait Subscription: Send {
    /// The next of them; none once the connection is broken.
    async fn next(&mut self) -> Option<ClusterEvent>;
}

/// The members of a store.
///
/// A store of one broker alone ([`super::alone::Alone`]) grants everything and has no news.
#[async_trait]
pub trait Coordination: Send + Sync + 'static {
    /// Whether there can be no other member.
    fn is_alone(&self) -> bool;

    /// This broker's membership, as its card shows it.
    fn membership(&self) -> String;

    /// Renews this broker's membership, or joins anew where it has ended.
    ///
    /// # Errors
    /// Here and everywhere: the store failed, or was written by a newer broker.
    async fn renew(&self, card: &MemberInfo) -> Result<RenewalReply, StoreError>;

    /// Ends the membership, and lets others take its leases at once.
    async fn leave(&self) -> Result<(), StoreError>;

    /// Takes the target's lease; none where somebody else has a better right to it. One that is held already is kept.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] where this membership has ended.
    async fn take(&self, target: &TargetId, claim: Claim) -> Result<Option<TakenLease>, StoreError>;

    /// The targets whose leases are this member's.
    async fn held(&self) -> Result<HashSet<TargetId>, StoreError>;

    /// Takes leases of a member that is gone, some at a time; none once there are no more.
    async fn take_over(&self, gone: &str) -> Result<Vec<TakenLease>, StoreError>;

    /// Ends the turn for which a lease was held, and keeps it.
    async fn end_exclusive(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Gives a lease back that was taken from another for a turn.
    async fn give_back(&self, lease: &Lease) -> Result<(), StoreError>;

    /// Keeps everybody else from a job of this name until it is done or this member is gone. False: somebody is at it.
    async fn try_lock(&self, job: &str) -> Result<bool, StoreError>;

    /// The job is done.
    async fn unlock(&self, job: &str) -> Result<(), StoreError>;

    /// Tells what is known of targets. What is told under a lease that is lost is not taken.
    async fn publish(&self, posted: Vec<PublishedStatus>) -> Result<(), StoreError>;

    /// What the holders of these targets tell of them; nothing where nobody holds one or has told yet.
    async fn statuses(&self, targets: &[TargetId]) -> Result<Vec<(TargetId, String)>, StoreError>;

    /// Asks the holder of a target to look at its cloud again.
    async fn ask_to_look(&self, target: &TargetId) -> Result<(), StoreError>;

    /// Every member, by name.
    async fn list_members(&self) -> Result<Vec<MemberInfo>, StoreError>;

    /// Hears the news from now on.
    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>>;
}
