//! Everything that is no replica: the agent, the cloud, time, requesters, and faults.

use crate::action::Fault;
use crate::lookup::{is_member, is_online, replica, replica_mut};
use crate::model::Model;
use crate::replica::forget_calls;
use crate::setup::{LATE, Rule};
use crate::state::{Call, Id, Process, Session, Set, Sight, State};

impl Model {
    /// Reports whether time has come to the end of all grants.
    pub(crate) fn is_over(&self, state: &State) -> bool {
        state.now >= self.setup.end
    }

    /// Reports whether a replica can write to the store for a user: any that is a member.
    pub(crate) fn serves(&self, state: &State) -> bool {
        self.ids().any(|id| is_online(state, id) && is_member(state, id))
    }

    /// Reports whether a load balancer may send the agent to the replica: one that calls itself ready.
    pub(crate) fn can_connect(state: &State, id: Id) -> bool {
        let replica = replica(state, id);
        state.agent.at.is_none() && replica.process == Process::Up && replica.belief > 0
    }

    pub(crate) fn connect(&self, state: &mut State, id: Id) {
        (state.agent.at, state.agent.inbox) = (Some(id), None);
        let keeps_what_it_read = !self.setup.keeps(Rule::SessionSendsWhatIsNew);
        let replica = replica_mut(state, id);
        (replica.session, replica.asks) = (Session::Live, true);
        (replica.pushed, replica.confirmed) = (None, false);
        if !keeps_what_it_read {
            replica.read = None;
        }
    }

    pub(crate) fn can_notice(state: &State) -> bool {
        state.agent.at.is_some_and(|id| replica(state, id).process != Process::Up)
    }

    /// Ends the agent's session, which its replica does not notice.
    pub(crate) fn leave(state: &mut State) {
        if let Some(id) = state.agent.at.take() {
            let replica = replica_mut(state, id);
            if replica.process != Process::Dead {
                replica.session = Session::HalfOpen;
            }
        }
        state.agent.inbox = None;
    }

    /// Applies the desired state at the agent: all of it and nothing else, but never a window that has ended.
    pub(crate) fn apply(&self, state: &mut State) {
        if let Some(pushed) = state.agent.inbox.take() {
            state.agent.held = if self.is_over(state) { Set::default() } else { pushed };
        }
    }

    /// Takes in the agent's answer: it holds the desired state that the replica sent, and nothing else. A state that was sent
    /// under an earlier token does not count.
    pub(crate) fn confirm(state: &mut State) {
        let Some(id) = state.agent.at else { return };
        let replica = replica_mut(state, id);
        if let Some(pushed) = replica.pushed {
            (replica.confirmed, replica.may_hold) = (true, pushed);
        }
    }

    /// Makes a call's change in the cloud.
    pub(crate) fn land(state: &mut State, number: usize) {
        let call = state.calls.remove(number);
        state.cloud = call.change.done_to(state.cloud);
        if let Some(id) = call.caller {
            let replica = replica_mut(state, id);
            replica.sight = replica.sight.after(call.change);
        }
    }

    /// Advances the time by one tick. A replica that runs and reaches the store has sent a beat meanwhile: one that has not
    /// is stopped, cut off or dead. A call on its way for [`LATE`] holds time up, because it does not take longer.
    pub(crate) fn tick(&self, state: &State) -> Option<State> {
        if state.calls.iter().any(|call| call.age >= LATE) {
            return None;
        }
        let mut next = state.clone();
        next.now = self.setup.end.min(state.now + 1);
        if self.is_over(&next) {
            next.agent.held = Set::default();
        }
        for call in &mut next.calls {
            call.age += 1;
        }
        for id in self.ids() {
            let member = &mut next.store.members[usize::from(id)];
            member.life = member.life.saturating_sub(1);
            let replica = replica_mut(&mut next, id);
            replica.belief = replica.belief.saturating_sub(1);
            replica.wait = replica.wait.saturating_sub(1);
            if is_online(&next, id) && is_member(&next, id) {
                self.beat(&mut next, id);
            }
        }
        (next != *state).then_some(next)
    }

    pub(crate) fn can_fail(&self, state: &State, fault: Fault) -> bool {
        let process = |id| replica(state, id).process;
        match fault {
            Fault::Quit(id) => state.faults.quits > 0 && process(id) == Process::Up,
            Fault::Kill(id) => state.faults.kills > 0 && process(id) != Process::Dead,
            Fault::Stop(id) => state.faults.stops > 0 && process(id) == Process::Up,
            Fault::Continue(id) => process(id) == Process::Stopped,
            Fault::Cut(id) => state.faults.cuts > 0 && is_online(state, id),
            Fault::Heal(id) => replica(state, id).cut && process(id) != Process::Dead,
            Fault::Leave => state.faults.moves > 0 && state.agent.at.is_some(),
            Fault::LoseAnswer(number) => {
                state.faults.lost_answers > 0
                    && state.calls[number].caller.is_some_and(|id| process(id) == Process::Up)
            }
            Fault::Duplicate(_) => state.faults.duplicates > 0,
        }
    }

    pub(crate) fn fail(&self, state: &mut State, fault: Fault) {
        match fault {
            Fault::Kill(id) => {
                state.faults.kills -= 1;
                forget_calls(state, id);
                let serial = replica(state, id).serial;
                *replica_mut(state, id) = Self::dead(serial);
            }
            Fault::Quit(id) => {
                state.faults.quits -= 1;
                if state.agent.at == Some(id) {
                    (state.agent.at, state.agent.inbox) = (None, None);
                }
                forget_calls(state, id);
                state.store.members[usize::from(id)].life = 0;
                *replica_mut(state, id) = Self::dead(replica(state, id).serial);
            }
            Fault::Stop(id) => {
                state.faults.stops -= 1;
                replica_mut(state, id).process = Process::Stopped;
            }
            Fault::Continue(id) => replica_mut(state, id).process = Process::Up,
            Fault::Cut(id) => {
                state.faults.cuts -= 1;
                replica_mut(state, id).cut = true;
            }
            Fault::Heal(id) => replica_mut(state, id).cut = false,
            Fault::Leave => {
                state.faults.moves -= 1;
                Self::leave(state);
            }
            Fault::LoseAnswer(number) => {
                state.faults.lost_answers -= 1;
                if let Some(id) = state.calls[number].caller {
                    forget_calls(state, id);
                    let replica = replica_mut(state, id);
                    (replica.sight, replica.wait) = (Sight::Unseen, self.setup.wait());
                }
            }
            Fault::Duplicate(number) => {
                state.faults.duplicates -= 1;
                let copy = Call { caller: None, ..state.calls[number] };
                Self::land(state, number);
                state.calls.push(copy);
                state.calls.sort_unstable();
            }
        }
    }
}
