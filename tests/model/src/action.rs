//! What can happen, one thing at a time. Between any two steps of one replica everything else may happen: what it read is
//! kept in its state, and acted on later, whatever has become of it.

use crate::state::{Change, Id};

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// A replica takes a step.
    Replica(Id, Step),
    /// The agent connects to a replica; a load balancer picks any that answers.
    Connect(Id),
    /// The agent finds its session dead: its replica is killed or does not answer.
    Notice,
    /// The agent applies what it was told, and its replica hears so.
    Apply,
    /// The agent applies what it was told; before its answer is heard the session breaks.
    ApplyUnheard,
    /// The call of this number reaches the cloud, and whoever waits for it hears so.
    Land(usize),
    /// The call of this number, for which nobody waits, never arrives.
    Drop(usize),
    /// The holder of another target reads what is published of this one.
    ReadView,
    /// It makes the transition of a grant durable that follows from that.
    Decide(usize),
    /// Time passes.
    Tick,
    /// Somebody asks for a grant, through any replica, and it is durable.
    Request(usize),
    /// Somebody revokes it.
    Revoke(usize),
    /// Something breaks, or comes back.
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
    /// Tells the agent the whole desired state.
    Tell,
    /// Hears that the agent's session is over.
    HearEnd,
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
    /// No way to the store.
    Cut(Id),
    /// A way again.
    Heal(Id),
    /// The agent's connection breaks, and its replica does not hear of it.
    Leave,
    /// A caller gives up waiting for the call of this number.
    LoseAnswer(usize),
    /// The call of this number lands, and is on its way once more.
    Duplicate(usize),
}

impl Action {
    /// Whether it must happen in the end, for as long as it is possible: faults and wishes need not.
    pub fn is_due(self) -> bool {
        match self {
            Self::Replica(..)
            | Self::Connect(_)
            | Self::Notice
            | Self::Apply
            | Self::ApplyUnheard
            | Self::Land(_)
            | Self::Drop(_)
            | Self::ReadView
            | Self::Decide(_)
            | Self::Tick => true,
            Self::Request(_) | Self::Revoke(_) | Self::Fault(_) => false,
        }
    }
}
