//! The properties of the model. Their names begin with the invariant that they stand for.

use stateright::Property;

use crate::action::Step;
use crate::lookup::{holds, is_free, is_member, is_online};
use crate::model::Model;
use crate::setup::Setup;
use crate::state::{Change, Grant, Id, State};

/// The kernel ends windows.
pub const HOST_ENDS: &str = "I2 the kernel holds nothing past its end";
/// No replica decides to open after the end.
pub const NOT_OPENED_LATE: &str = "I2 nothing is opened after its end but by a call decided on before";
/// The cloud's windows end.
pub const CLOUD_ENDS: &str = "I2 with a working replica, the cloud comes to hold nothing past its end";
/// The store comes first.
pub const DURABLE_FIRST: &str = "I4 no layer holds what was not durable before";
/// A grant is active in both layers.
pub const ACTIVE_IN_BOTH: &str = "I5 a grant becomes active while both layers hold it";
/// Final is final, at every moment.
pub const CLOSED_IS_CLOSED: &str = "I6 no layer holds or is sent a closed grant";
/// Final is final, in the end.
pub const CLOSED_IN_THE_END: &str = "I6 with a working replica, no layer comes to hold a closed grant";
/// No grant is stuck.
pub const COMES_TO_REST: &str =
    "I8 with a working replica, every grant comes to be closed, or active in both layers";
/// The store fences late writes.
pub const LATE_WRITES: &str = "the store takes no write of one that does not hold the lease";
/// Belief in a membership is true.
pub const BELIEF_IS_TRUE: &str = "a replica that believes in its membership has it";
/// The lease has a single holder.
pub const ONE_HOLDER: &str = "no two replicas think they hold the lease by one token, and tokens rise";

/// A lease is taken from a membership that is gone.
pub const TAKEOVER: &str = "possible: a lease is taken over";
/// A lease is taken from a live member.
pub const MOVED: &str = "possible: work follows the agent";
/// The store refuses a member that held the lease once.
pub const LATE_WRITE_REFUSED: &str = "possible: a late write is refused";
/// A call is on its way for which no replica waits.
pub const LATE_CALL: &str = "possible: a call lands late";
/// A second look shows what the first did not.
pub const SECOND_LOOK_HELPS: &str = "possible: a second look helps";
/// Another holder than the first closes a grant.
pub const HEIR_CLOSES: &str = "possible: an heir closes a grant";
/// A grant is active.
pub const ACTIVE_AT_REST: &str = "possible: a grant is active, at rest";
/// Every grant is closed.
pub const ALL_CLOSED: &str = "possible: every grant is closed";

/// The properties of a model.
pub(crate) fn of(setup: &Setup) -> Vec<Property<Model>> {
    let mut properties = vec![
        Property::always(HOST_ENDS, |model: &Model, state: &State| {
            !model.is_over(state) || state.agent.held.is_empty()
        }),
        Property::always(NOT_OPENED_LATE, |_: &Model, state: &State| !state.violations.opened_after_end),
        Property::always(DURABLE_FIRST, durable_first),
        Property::always(ACTIVE_IN_BOTH, |_: &Model, state: &State| !state.violations.active_too_early),
        Property::always(LATE_WRITES, |_: &Model, state: &State| !state.violations.late_write),
        Property::always(BELIEF_IS_TRUE, |model: &Model, state: &State| {
            model.ids().all(|id| state.replicas[usize::from(id)].belief == 0 || is_member(state, id))
        }),
        Property::always(ONE_HOLDER, one_holder),
        Property::always(CLOUD_ENDS, |model: &Model, state: &State| {
            !model.is_over(state) || state.cloud.is_empty() || !is_at_rest(model, state)
        }),
        Property::always(CLOSED_IN_THE_END, |model: &Model, state: &State| {
            closed_is_closed(model, state) || !is_at_rest(model, state)
        }),
        Property::always(COMES_TO_REST, |model: &Model, state: &State| {
            is_restful(model, state) || !is_at_rest(model, state)
        }),
    ];
    // A call that is sent at any time, or twice, lands at any time.
    if !setup.sends_late && setup.faults.duplicates == 0 {
        properties.push(Property::always(CLOSED_IS_CLOSED, closed_is_closed));
    }
    properties.extend(witnesses());
    properties
}

/// The witnesses: states that must be possible, or the other properties say nothing. In each the next step is the named
/// one.
fn witnesses() -> Vec<Property<Model>> {
    vec![
        Property::sometimes(TAKEOVER, |model: &Model, state: &State| {
            let is_left = state.store.lease.is_some_and(|lease| state.agent.at != Some(lease.holder));
            is_left && any(model, |id| model.can(state, id, Step::Take))
        }),
        Property::sometimes(MOVED, |model: &Model, state: &State| {
            let forces = |id| model.can(state, id, Step::Force) && !holds(state, id) && !is_free(state);
            any(model, forces)
        }),
        Property::sometimes(LATE_WRITE_REFUSED, |model: &Model, state: &State| {
            let writes =
                |id| model.grants().any(|grant| model.can(state, id, Step::Commit(usize::from(grant))));
            any(model, |id| writes(id) && !holds(state, id) && is_member(state, id))
        }),
        Property::sometimes(LATE_CALL, |_: &Model, state: &State| {
            state.calls.iter().any(|call| call.caller.is_none())
        }),
        Property::sometimes(SECOND_LOOK_HELPS, |model: &Model, state: &State| {
            let helps = |id: Id| {
                let seen = state.replicas[usize::from(id)].sight.windows();
                seen.is_some_and(|seen| seen != state.cloud) && model.can(state, id, Step::Look)
            };
            any(model, helps)
        }),
        Property::sometimes(HEIR_CLOSES, |_: &Model, state: &State| {
            let is_heir = state.store.lease.is_some_and(|lease| lease.token > 1);
            is_heir && state.store.grants.contains(&Grant::Closed)
        }),
        Property::sometimes(ACTIVE_AT_REST, |model: &Model, state: &State| {
            state.store.grants.contains(&Grant::Active) && is_at_rest(model, state)
        }),
        Property::sometimes(ALL_CLOSED, |model: &Model, state: &State| {
            model.grants().all(|grant| state.store.grants[usize::from(grant)] == Grant::Closed)
        }),
    ]
}

fn any(model: &Model, holds: impl Fn(Id) -> bool) -> bool {
    model.ids().any(holds)
}

fn durable_first(model: &Model, state: &State) -> bool {
    let held = state.cloud.union(state.agent.held);
    model
        .grants()
        .map(usize::from)
        .all(|grant| !held.has(grant) || state.store.grants[grant] != Grant::Unasked)
}

fn closed_is_closed(model: &Model, state: &State) -> bool {
    let host = state.agent.held.union(state.agent.inbox.unwrap_or_default());
    model.grants().all(|grant| {
        let number = usize::from(grant);
        let is_opened = state.calls.iter().any(|call| call.change == Change::Open(grant));
        let held = host.has(number) || state.cloud.has(number) || is_opened;
        state.store.grants[number] != Grant::Closed || !held
    })
}

fn is_restful(model: &Model, state: &State) -> bool {
    model.grants().map(usize::from).all(|grant| match state.store.grants[grant] {
        Grant::Unasked | Grant::Closed => true,
        Grant::Active => !model.is_over(state) && state.agent.held.has(grant) && state.cloud.has(grant),
        Grant::Opening | Grant::Closing => false,
    })
}

fn one_holder(model: &Model, state: &State) -> bool {
    let tokens: Vec<u8> =
        model.ids().map(|id| state.replicas[usize::from(id)].token).filter(|token| *token != 0).collect();
    let newest = state.store.lease.map_or(0, |lease| lease.token);
    let distinct = tokens.iter().enumerate().all(|(at, token)| !tokens[..at].contains(token));
    distinct && tokens.iter().all(|token| *token <= newest) && !state.violations.token_fell
}

/// Reports whether a replica works, and nothing is left to happen but faults and requests.
fn is_at_rest(model: &Model, state: &State) -> bool {
    model.ids().any(|id| is_online(state, id)) && model.is_quiet(state)
}
