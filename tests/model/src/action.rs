//! The actions of the model, one thing at a time. Between any two steps of one replica every other action may happen: a
//! replica keeps in its state what it read, and acts on it later, whatever has changed meanwhile.

use crate::state::{Change, Id};

/// An action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A replica takes a step.
    Replica(Id, Step),
    /// The agent connects to a replica; a load balancer picks any that answers.
    Connect(Id),
    /// The agent finds its session dead: its replica is killed or does not answer.
    Notice,
    /// The agent applies the desired state, and its replica receives the answer.
    Apply,
    /// The agent applies the desired state; the session breaks before its replica receives the answer.
    ApplyUnanswered,
    /// The call of this number reaches the cloud, and its caller, if one still waits, receives the answer.
    Land(usize),
    /// The call of this number, for which no replica waits, never arrives.
    Drop(usize),
    /// The holder of another target reads what is published of this one.
    ReadView,
    /// The holder of that target makes the transition of a grant durable that follows from what it read.
    Decide(usize),
    /// The time advances by one tick.
    Tick,
    /// A requester asks for a grant, through any replica, and it is durable.
    Request(usize),
    /// A caller revokes the grant.
    Revoke(usize),
    /// A part breaks, or comes back.
    Fault(Fault),
}

/// A replica's steps. A message that is published, or lost, or delivered twice only changes when a step is taken, and any
/// step may come at any time: so publishing is not modelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Renews its membership.
    Beat,
    /// Joins under a new membership, as the last one is gone.
    Join,
    /// Takes the lease, which is free or a gone member's.
    Take,
    /// Takes the lease in any case, because the agent has come.
    Force,
    /// Reads the target's grants; or finds out, by that or a message, that it has lost the lease.
    Read,
    /// Makes the transition of a grant durable that follows from what it read and observed.
    Commit(usize),
    /// Publishes what it knows of both layers.
    Publish,
    /// Sends the agent the whole desired state.
    Push,
    /// Learns that the agent's session is over.
    NoticeEnd,
    /// Ends the agent's session: it has no membership.
    EndSession,
    /// Looks at the cloud.
    Look,
    /// Decides on a call, having checked everything, and sends it.
    Call(Change),
    /// Sends what it had decided on before it was stopped.
    Send,
    /// The sweep finds that the cloud is not as it was thought to be.
    Sweep,
}

/// Faults, and their ends. Ends cost nothing, and need not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill(Id),
    /// SIGTERM.
    Quit(Id),
    /// SIGSTOP.
    Stop(Id),
    /// SIGCONT.
    Continue(Id),
    /// The replica loses the way to the store.
    Cut(Id),
    /// The replica reaches the store again.
    Heal(Id),
    /// The agent's connection breaks, and its replica does not notice.
    Leave,
    /// A caller gives up waiting for the call of this number.
    LoseAnswer(usize),
    /// The call of this number lands, and is on its way once more.
    Duplicate(usize),
}

impl Action {
    /// Reports whether the action must happen in the end, for as long as it is possible: faults and requests need not.
    pub fn is_due(self) -> bool {
        match self {
            Self::Replica(..)
            | Self::Connect(_)
            | Self::Notice
            | Self::Apply
            | Self::ApplyUnanswered
            | Self::Land(_)
            | Self::Drop(_)
            | Self::ReadView
            | Self::Decide(_)
            | Self::Tick => true,
            Self::Request(_) | Self::Revoke(_) | Self::Fault(_) => false,
        }
    }
}
