//! The steps of a replica: when each is possible, and what it does.
//!
//! A check against what a replica believes is made in the step that acts, where code can do that: before a call. What code
//! cannot check in the moment of acting, because it may be stopped in between, is not checked here either: what a replica
//! sends or commits goes by what it read, however long ago, and the store and the session have to be the guard.

use crate::action::Step;
use crate::lookup::{holds, is_busy, is_free, is_member, is_online, member_life, replica, replica_mut};
use crate::model::Model;
use crate::setup::{LIFE, Rule};
use crate::state::{Call, Change, Id, Lease, Process, Session, Set, Sight, State};

impl Model {
    /// Reports whether the replica can take the step, and would change something by it.
    pub(crate) fn can(&self, state: &State, id: Id, step: Step) -> bool {
        let replica = replica(state, id);
        let is_holder = replica.token != 0;
        let online = is_online(state, id);
        if replica.process != Process::Up {
            return false;
        }
        match step {
            Step::Beat => {
                online
                    && is_member(state, id)
                    && (member_life(state, id), replica.belief) != (LIFE, self.setup.belief())
            }
            Step::Join => online && !is_member(state, id),
            Step::Take => {
                online && replica.belief > 0 && is_member(state, id) && !holds(state, id) && is_free(state)
            }
            Step::Force => online && replica.belief > 0 && is_member(state, id) && replica.asks,
            Step::Read => {
                let refused = self.setup.keeps(Rule::ReadsNameTheLease) && !holds(state, id);
                online && is_holder && (replica.read != Some(state.store.grants) || refused)
            }
            Step::Commit(grant) => online && is_holder && self.decides(state, id, grant).is_some(),
            Step::Publish => {
                let view = self.view(state, id).map(|view| (replica.token, view));
                let news = view.is_some() && view != state.store.view;
                self.setup.far && online && is_member(state, id) && holds(state, id) && news
            }
            Step::Push => {
                let wanted = replica.read.map(|_| self.wanted(state, id));
                let news = wanted.is_some() && replica.pushed != wanted;
                is_holder && replica.session == Session::Live && news && state.agent.inbox.is_none()
            }
            Step::NoticeEnd => replica.session == Session::HalfOpen,
            Step::EndSession => {
                let ends = self.setup.keeps(Rule::SessionsNeedMembership);
                ends && replica.session != Session::None && replica.belief == 0
            }
            Step::Look => {
                let due = match replica.sight {
                    Sight::Unseen => true,
                    Sight::First(_) => replica.wait == 0,
                    Sight::Settled(_) => false,
                };
                is_holder && due && !is_busy(state, id)
            }
            Step::Call(change) => is_holder && !is_busy(state, id) && self.calls_for(state, id, change),
            Step::Send => replica.armed.is_some(),
            Step::Sweep => {
                let news = matches!(replica.sight, Sight::Settled(_))
                    && replica.sight.windows() != Some(state.cloud);
                self.setup.sweeps && is_holder && news && !is_busy(state, id)
            }
        }
    }

    /// Takes a step of the replica.
    pub(crate) fn take(&self, state: &mut State, id: Id, step: Step) {
        let wanted = self.wanted(state, id);
        match step {
            Step::Beat => self.beat(state, id),
            Step::Join => {
                self.lose(state, id);
                let member = &mut state.store.members[usize::from(id)];
                (member.serial, member.life) = (member.serial + 1, LIFE);
                let serial = member.serial;
                let replica = replica_mut(state, id);
                (replica.serial, replica.belief) = (serial, self.setup.belief());
            }
            Step::Force if holds(state, id) => replica_mut(state, id).asks = false,
            Step::Take | Step::Force => self.gain(state, id),
            Step::Read if self.setup.keeps(Rule::ReadsNameTheLease) && !holds(state, id) => {
                self.lose(state, id)
            }
            Step::Read => replica_mut(state, id).read = Some(state.store.grants),
            Step::Commit(grant) => self.commit(state, id, grant),
            Step::Publish => {
                let token = replica(state, id).token;
                state.store.view = self.view(state, id).map(|view| (token, view));
            }
            Step::Push => {
                let replica = replica_mut(state, id);
                (replica.pushed, replica.confirmed) = (Some(wanted), false);
                replica.may_hold = replica.may_hold.union(wanted);
                state.agent.inbox = Some(wanted);
            }
            Step::NoticeEnd | Step::EndSession => end_session(state, id),
            Step::Look => {
                let again = self.setup.keeps(Rule::TakerLooksAgain);
                let first = replica(state, id).sight == Sight::Unseen && again;
                let sight = if first { Sight::First } else { Sight::Settled };
                self.looked(state, id, sight);
            }
            Step::Call(change) => {
                state.violations.opened_after_end |= matches!(change, Change::Open(_)) && self.is_over(state);
                let call = Call { change, caller: Some(id), age: 0 };
                if self.setup.sends_late {
                    replica_mut(state, id).armed = Some(call);
                } else {
                    send(state, call);
                }
            }
            Step::Send => {
                if let Some(call) = replica_mut(state, id).armed.take() {
                    send(state, call);
                }
            }
            Step::Sweep => self.looked(state, id, Sight::Settled),
        }
    }

    /// Takes in the answer to a beat: the membership lives on, and is believed from when the beat was sent.
    pub(crate) fn beat(&self, state: &mut State, id: Id) {
        state.store.members[usize::from(id)].life = LIFE;
        replica_mut(state, id).belief = self.setup.belief();
        let lost = replica(state, id).token != 0 && !holds(state, id);
        if lost && self.setup.keeps(Rule::BeatReportsLostLeases) {
            self.lose(state, id);
        }
    }

    /// Takes in a look, which has shown what the cloud holds now.
    fn looked(&self, state: &mut State, id: Id, sight: impl FnOnce(Set) -> Sight) {
        let sight = sight(state.cloud);
        let replica = replica_mut(state, id);
        replica.sight = sight;
        if matches!(sight, Sight::Settled(_)) {
            replica.wait = 0;
        }
        if self.setup.keeps(Rule::ReadsAfterLooking) {
            replica.read = None;
        }
    }

    /// The commit script: the membership, the lease and the grant's version are checked and the change made in one step.
    fn commit(&self, state: &mut State, id: Id, grant: usize) {
        let (Some(next), Some(read)) = (self.decides(state, id, grant), replica(state, id).read) else {
            return;
        };
        let holds = holds(state, id);
        let accepted = is_member(state, id) && (holds || !self.setup.keeps(Rule::WritesNameTheLease));
        if !accepted {
            self.lose(state, id);
            return;
        }
        let replica = &mut state.replicas[usize::from(id)];
        if state.store.grants[grant] != read[grant] {
            replica.read = None;
            return;
        }
        replica.read = Some({
            let mut grants = read;
            grants[grant] = next;
            grants
        });
        state.violations.late_write |= !holds;
        self.put(state, grant, next);
    }

    /// Gives the replica the lease, under a new token.
    fn gain(&self, state: &mut State, id: Id) {
        let before = state.store.lease.map_or(0, |lease| lease.token);
        let (serial, token) = (replica(state, id).serial, before + 1);
        state.store.lease = Some(Lease { holder: id, serial, token });
        state.violations.token_fell |= token <= before;
        let open = Set::of(|grant| state.store.grants[grant].is_open());
        forget_calls(state, id);
        let replica = replica_mut(state, id);
        let forgets = self.setup.keeps(Rule::NewTokenForgets) || replica.token == 0;
        (replica.token, replica.asks, replica.wait) = (token, false, self.setup.wait());
        if forgets {
            (replica.read, replica.pushed, replica.confirmed) = (None, None, false);
            replica.may_hold = if self.setup.keeps(Rule::InheritedMayBeHeld) { open } else { Set::default() };
            let looks = self.setup.keeps(Rule::TakerLooksFirst);
            replica.sight = if looks { Sight::Unseen } else { Sight::Settled(Set::default()) };
        }
    }

    /// The replica learns that the lease is not its own: it forgets what it knew, and ends the agent's session unless that
    /// is so new that it is about to ask for the lease.
    fn lose(&self, state: &mut State, id: Id) {
        forget_calls(state, id);
        if !replica(state, id).asks {
            end_session(state, id);
        }
        let replica = replica_mut(state, id);
        (replica.token, replica.read, replica.may_hold) = (0, None, Set::default());
        (replica.pushed, replica.confirmed) = (None, false);
        (replica.sight, replica.wait) = (Sight::Unseen, 0);
    }
}

/// Ends the replica's session with the agent, which notices if it is there.
fn end_session(state: &mut State, id: Id) {
    if replica(state, id).session == Session::Live {
        (state.agent.at, state.agent.inbox) = (None, None);
    }
    let replica = replica_mut(state, id);
    (replica.session, replica.asks) = (Session::None, false);
    (replica.pushed, replica.confirmed) = (None, false);
}

/// Takes the replica off its calls: it waits for none of them any more.
pub(crate) fn forget_calls(state: &mut State, id: Id) {
    let armed = state.replicas[usize::from(id)].armed.as_mut();
    state
        .calls
        .iter_mut()
        .chain(armed)
        .filter(|call| call.caller == Some(id))
        .for_each(|call| call.caller = None);
    state.calls.sort_unstable();
}

fn send(state: &mut State, call: Call) {
    state.calls.push(call);
    state.calls.sort_unstable();
}
