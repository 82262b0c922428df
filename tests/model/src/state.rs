//! The state of the model: one store, some replicas, one target with its agent and its cloud, and what is on its way.
//!
//! Every number here is small and bounded: time stands still at the grants' end, serials and tokens rise only with faults
//! of which there is a budget. So the states are finitely many, and all of them are visited.

use crate::setup::Faults;

/// The most replicas of a model; those that are not asked for are dead from the start.
pub const REPLICAS: usize = 3;
/// The most grants of a model; those that are not asked for are never requested.
pub const GRANTS: usize = 2;

/// A replica's number.
pub type Id = u8;

/// A set of grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Set(u8);

impl Set {
    /// The grants that satisfy the condition.
    pub fn of(holds: impl Fn(usize) -> bool) -> Self {
        Self((0..GRANTS).filter(|grant| holds(*grant)).fold(0, |set, grant| set | 1 << grant))
    }

    /// Reports whether the grant is in the set.
    pub fn has(self, grant: usize) -> bool {
        self.0 & (1 << grant) != 0
    }

    /// The same with the grant.
    #[must_use]
    pub fn with(self, grant: usize) -> Self {
        Self(self.0 | 1 << grant)
    }

    /// The same without the grant.
    #[must_use]
    pub fn without(self, grant: usize) -> Self {
        Self(self.0 & !(1 << grant))
    }

    /// Returns the grants that are in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Reports whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// A grant's state in the store. It only rises, so the states of all grants stand for the head of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grant {
    /// Not durable.
    Unasked,
    /// Durable, and wanted.
    Opening,
    /// Confirmed by both layers, and wanted.
    Active,
    /// Not wanted any more: revoked, failed or ended.
    Closing,
    /// Final.
    Closed,
}

impl Grant {
    /// Reports whether the layers should hold the grant, as long as its end has not come.
    pub fn is_wanted(self) -> bool {
        matches!(self, Self::Opening | Self::Active)
    }

    /// Reports whether the grant is durable and not final.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Opening | Self::Active | Self::Closing)
    }
}

/// The state of every grant.
pub type Grants = [Grant; GRANTS];

/// A replica's registration in the store. `serial` names it, so that one that is gone is never revived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Membership {
    /// The number of the replica's memberships so far.
    pub serial: u8,
    /// The ticks until the store forgets it; 0 is gone.
    pub life: u8,
}

/// The right to work on the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The replica.
    pub holder: Id,
    /// The holder's membership.
    pub serial: u8,
    /// The token, which rises with each new holder.
    pub token: u8,
}

/// The view of both layers that the holder of the lease publishes, for the holder of another target that a grant touches,
/// too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct View {
    /// The state of every grant as the holder last read it.
    pub head: Grants,
    /// The grants that both layers have confirmed.
    pub open: Set,
    /// The grants that no layer holds.
    pub absent: Set,
}

/// The store: one server that does one thing at a time and forgets nothing. A store that goes back ends its brokers, and
/// is no part of this.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Store {
    /// The state of every grant.
    pub grants: Grants,
    /// The latest membership of every replica.
    pub members: [Membership; REPLICAS],
    /// The lease of the one target.
    pub lease: Option<Lease>,
    /// The view that was published under a token.
    pub view: Option<(u8, View)>,
}

/// The state of a replica's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// The process runs.
    Up,
    /// SIGSTOP: it does nothing, and goes on where it was.
    Stopped,
    /// SIGKILL: it never comes back. A restart is another replica.
    Dead,
}

/// An agent's session as a replica sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Session {
    /// No session.
    None,
    /// The agent is there.
    Live,
    /// The agent is gone, and the replica has not noticed.
    HalfOpen,
}

/// A replica's knowledge of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sight {
    /// Nothing is known.
    Unseen,
    /// The result of one look: a late call may change it.
    First(Set),
    /// The result of a second look, after everything late had landed.
    Settled(Set),
}

impl Sight {
    /// The windows that were seen.
    pub fn windows(self) -> Option<Set> {
        match self {
            Self::Unseen => None,
            Self::First(windows) | Self::Settled(windows) => Some(windows),
        }
    }

    /// The same look, after a change of the replica's own.
    #[must_use]
    pub fn after(self, change: Change) -> Self {
        match self {
            Self::Unseen => self,
            Self::First(windows) => Self::First(change.done_to(windows)),
            Self::Settled(windows) => Self::Settled(change.done_to(windows)),
        }
    }
}

/// A broker process: what it believes, and what it read in an earlier step and may act on in a later one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replica {
    /// The state of the process.
    pub process: Process,
    /// True if the replica cannot reach the store. It reaches agent and cloud all the same.
    pub cut: bool,
    /// The membership that it has, or had.
    pub serial: u8,
    /// The ticks for which it believes that.
    pub belief: u8,
    /// The token of the lease that it thinks it holds; 0 is none.
    pub token: u8,
    /// The last snapshot that it read under that token.
    pub read: Option<Grants>,
    /// The grants that the agent may hold, as far as the replica knows.
    pub may_hold: Set,
    /// The agent's session with it.
    pub session: Session,
    /// The session is so new that the lease has not been asked for yet.
    pub asks: bool,
    /// The desired state that the replica sent in this session.
    pub pushed: Option<Set>,
    /// True if the agent confirmed it.
    pub confirmed: bool,
    /// The replica's knowledge of the cloud.
    pub sight: Sight,
    /// The ticks until a look may count as the second.
    pub wait: u8,
    /// A call that has passed every check and is not sent yet: SIGSTOP between the two.
    pub armed: Option<Call>,
}

/// The agent and its kernel. It has one session at a time; a message of an earlier one is lost with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Agent {
    /// The replica that the agent has a session with.
    pub at: Option<Id>,
    /// A whole desired state on its way to it.
    pub inbox: Option<Set>,
    /// The windows in the kernel, which drops them at their end.
    pub held: Set,
}

/// A change of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// Opens the window of a grant, which carries its end.
    Open(u8),
    /// Closes the window of a grant.
    Close(u8),
}

impl Change {
    /// Returns the windows after the change.
    #[must_use]
    pub fn done_to(self, windows: Set) -> Set {
        match self {
            Self::Open(grant) => windows.with(usize::from(grant)),
            Self::Close(grant) => windows.without(usize::from(grant)),
        }
    }
}

/// A call on its way to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Call {
    /// The change that the call makes where it lands.
    pub change: Change,
    /// The replica that waits for the answer; none where it is dead, gave the call up, or lost the lease.
    pub caller: Option<Id>,
    /// The ticks since the call was sent.
    pub age: u8,
}

/// The steps that must never be taken. A state shows what is true now; these flags record what was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Violations {
    /// The store took a write of one that did not hold the lease.
    pub late_write: bool,
    /// A grant became active while a layer did not hold it.
    pub active_too_early: bool,
    /// A call that opens was decided after the end.
    pub opened_after_end: bool,
    /// A new lease had no higher token than the one before.
    pub token_fell: bool,
}

/// The state of the model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    /// The ticks since the beginning, up to the grants' end.
    pub now: u8,
    /// The store.
    pub store: Store,
    /// The replicas.
    pub replicas: [Replica; REPLICAS],
    /// The agent.
    pub agent: Agent,
    /// The windows in the cloud.
    pub cloud: Set,
    /// The calls on their way to the cloud, sorted.
    pub calls: Vec<Call>,
    /// The view that the holder of the other target has read, and may decide by however much later.
    pub far: Option<View>,
    /// The faults that may still happen.
    pub faults: Faults,
    /// The forbidden steps that were taken.
    pub violations: Violations,
}
