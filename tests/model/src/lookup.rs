//! The truth at this moment, whatever a replica believes.

use crate::state::{Id, Lease, Process, Replica, State};

/// Reports whether a call of the replica's is under way, or about to be.
pub(crate) fn is_busy(state: &State, id: Id) -> bool {
    replica(state, id).armed.is_some() || state.calls.iter().any(|call| call.caller == Some(id))
}

/// Reports whether the replica reaches the store.
pub(crate) fn is_online(state: &State, id: Id) -> bool {
    let replica = replica(state, id);
    replica.process == Process::Up && !replica.cut
}

/// Reports whether the replica's membership is alive in the store.
pub(crate) fn is_member(state: &State, id: Id) -> bool {
    let member = state.store.members[usize::from(id)];
    member.serial == replica(state, id).serial && member.life > 0
}

/// The ticks for which the store keeps the replica's membership.
pub(crate) fn member_life(state: &State, id: Id) -> u8 {
    state.store.members[usize::from(id)].life
}

/// Reports whether the replica holds, by the store, the lease that it believes it holds.
pub(crate) fn holds(state: &State, id: Id) -> bool {
    let replica = replica(state, id);
    state.store.lease == Some(Lease { holder: id, serial: replica.serial, token: replica.token })
}

/// Reports whether no live member holds the lease.
pub(crate) fn is_free(state: &State) -> bool {
    state.store.lease.is_none_or(|lease| {
        let member = state.store.members[usize::from(lease.holder)];
        member.serial != lease.serial || member.life == 0
    })
}

/// The replica's own state.
pub(crate) fn replica(state: &State, id: Id) -> &Replica {
    &state.replicas[usize::from(id)]
}

/// The replica's own state, to be changed.
pub(crate) fn replica_mut(state: &mut State, id: Id) -> &mut Replica {
    &mut state.replicas[usize::from(id)]
}
