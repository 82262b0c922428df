//! Symmetry: states from which the same can follow count as one, and only one of them is visited.
//!
//! Replicas are alike, so their order is nothing. Tokens and serials are compared and never counted, so only their order is
//! something: they are numbered again from one and from zero.

use crate::state::{Call, Id, REPLICAS, Replica, State};

/// The state that stands for all that are the same as this one.
pub fn representative(state: &State) -> State {
    let mut state = state.clone();
    renumber_tokens(&mut state);
    renumber_serials(&mut state);
    sort_replicas(state)
}

fn renumber_tokens(state: &mut State) {
    let held = state.replicas.iter().map(|replica| replica.token);
    let mut tokens: Vec<u8> = held
        .chain(state.store.lease.map(|lease| lease.token))
        .chain(state.store.view.map(|view| view.0))
        .chain([0])
        .collect();
    tokens.sort_unstable();
    tokens.dedup();
    let rank = |token: &mut u8| {
        let rank = tokens.iter().position(|known| known == token).unwrap_or_default();
        *token = u8::try_from(rank).unwrap_or(u8::MAX);
    };
    state.replicas.iter_mut().for_each(|replica| rank(&mut replica.token));
    if let Some(lease) = &mut state.store.lease {
        rank(&mut lease.token);
    }
    if let Some((token, _)) = &mut state.store.view {
        rank(token);
    }
}

/// The lease names a member's latest serial, or one that is gone for good.
fn renumber_serials(state: &mut State) {
    for (id, replica) in state.replicas.iter_mut().enumerate() {
        let member = &mut state.store.members[id];
        let lease = state.store.lease.as_mut().filter(|lease| usize::from(lease.holder) == id);
        let is_past = lease.as_ref().is_some_and(|lease| lease.serial != member.serial);
        if let Some(lease) = lease {
            lease.serial = 0;
        }
        (member.serial, replica.serial) = (u8::from(is_past), u8::from(is_past));
    }
}

/// Sorts the replicas by all that is known of them.
fn sort_replicas(state: State) -> State {
    let mut order: [usize; REPLICAS] = std::array::from_fn(|id| id);
    order.sort_by_cached_key(|id| key(&state, *id));
    let old: [usize; REPLICAS] = order;
    let new = |id: Id| {
        let place = old.iter().position(|old| *old == usize::from(id)).unwrap_or_default();
        Id::try_from(place).unwrap_or(Id::MAX)
    };
    let mut sorted = state.clone();
    for (place, id) in old.into_iter().enumerate() {
        sorted.store.members[place] = state.store.members[id];
        sorted.replicas[place].clone_from(&state.replicas[id]);
    }
    let armed = sorted.replicas.iter_mut().filter_map(|replica| replica.armed.as_mut());
    for call in sorted.calls.iter_mut().chain(armed) {
        call.caller = call.caller.map(new);
    }
    sorted.calls.sort_unstable();
    if let Some(lease) = &mut sorted.store.lease {
        lease.holder = new(lease.holder);
    }
    sorted.agent.at = sorted.agent.at.map(new);
    sorted
}

/// Returns all that is known of a replica, but for its number.
fn key(state: &State, id: usize) -> impl Ord + use<> {
    let is = |other: Option<Id>| other.is_some_and(|other| usize::from(other) == id);
    let anonymous = |call: Call| Call { caller: call.caller.map(|_| 0), ..call };
    let mut replica: Replica = state.replicas[id].clone();
    replica.armed = replica.armed.map(anonymous);
    let calls: Vec<Call> =
        state.calls.iter().filter(|call| is(call.caller)).copied().map(anonymous).collect();
    let holds = is(state.store.lease.map(|lease| lease.holder));
    (replica, state.store.members[id], holds, is(state.agent.at), calls)
}
