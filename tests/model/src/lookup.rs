//! What is so at this moment, whatever anybody believes.

use crate::state::{Id, Lease, Process, Replica, State};

/// Whether a call of the replica's is under way, or about to be.
pub(crate) fn is_busy(state: &State, id: Id) -> bool {
    replica(state, id).armed.is_some() || state.calls.iter().any(|call| call.caller == Some(id))
}

/// Whether the replica reaches the store.
pub(crate) fn is_online(state: &State, id: Id) -> bool {
    let replica = replica(state, id);
    replica.process == Process::Up && !replica.cut
}

/// Whether the membership that the replica has is alive in the store.
pub(crate) fn is_member(state: &State, id: Id) -> bool {
    let member = state.store.members[usize::from(id)];
    member.serial == replica(state, id).serial && member.life > 0
}

/// Ticks for which the store keeps the replica's membership.
pub(crate) fn member_life(state: &State, id: Id) -> u8 {
    state.store.members[usize::from(id)].life
}

/// Whether the store says that the lease that the replica thinks it holds is its own.
pub(crate) fn holds(state: &State, id: Id) -> bool {
    let replica = replica(state, id);
    state.store.lease == Some(Lease { holder: id, serial: replica.serial, token: replica.token })
}

/// Whether the lease is nobody's, or that of a membership that is gone.
pub(crate) fn is_free(state: &State) -> bool {
    state.store.lease.is_none_or(|lease| {
        let member = state.store.members[usize::from(lease.holder)];
        member.serial != lease.serial || member.life == 0
    })
}

/// What the replica knows.
pub(crate) fn replica(state: &State, id: Id) -> &Replica {
    &state.replicas[usize::from(id)]
}

/// The same, to be changed.
pub(crate) fn replica_mut(state: &mut State, id: Id) -> &mut Replica {
    &mut state.replicas[usize::from(id)]
}
