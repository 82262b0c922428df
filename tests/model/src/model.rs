//! The model: its replicas and grants, and the actions that are possible in a state.

use crate::action::{Action, Fault, Step};
use crate::setup::Setup;
use crate::state::{Change, Grant, Id, Process, Replica, Session, Set, Sight, State};

/// A model to check.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// The bounds of the model.
    pub setup: Setup,
}

impl Model {
    /// The replicas that there are.
    pub(crate) fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        0..self.setup.replicas
    }

    /// The grants that there are.
    pub(crate) fn grants(&self) -> impl Iterator<Item = u8> + use<> {
        0..self.setup.grants
    }

    /// A replica that is dead, and knows nothing.
    pub(crate) fn dead(serial: u8) -> Replica {
        Replica {
            process: Process::Dead,
            cut: false,
            serial,
            belief: 0,
            token: 0,
            read: None,
            may_hold: Set::default(),
            session: Session::None,
            asks: false,
            pushed: None,
            confirmed: false,
            sight: Sight::Unseen,
            wait: 0,
            armed: None,
        }
    }

    /// Reports whether nothing is left to happen but faults, requests and the end of grants.
    pub(crate) fn is_quiet(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        state.calls.is_empty() && {
            self.list(state, &mut actions);
            let due = |action: &Action| {
                if *action == Action::Tick {
                    return self.changes_with_time(state);
                }
                action.is_due() && self.is_possible(state, *action)
            };
            !actions.iter().any(due)
        }
    }

    /// Reports whether a tick changes more than the time to the grants' end.
    fn changes_with_time(&self, state: &State) -> bool {
        self.tick(state).is_some_and(|next| {
            let now = State { now: state.now, agent: state.agent.clone(), ..next };
            now != *state
        })
    }

    pub(crate) fn is_possible(&self, state: &State, action: Action) -> bool {
        match action {
            Action::Replica(id, step) => self.can(state, id, step),
            Action::Connect(id) => Self::can_connect(state, id),
            Action::Notice => Self::can_notice(state),
            Action::Apply => state.agent.inbox.is_some(),
            Action::ApplyUnanswered => {
                let breaks = Self::can_notice(state) || self.can_fail(state, Fault::Leave);
                state.agent.inbox.is_some() && breaks
            }
            Action::ReadView => {
                let view = Self::valid_view(state);
                view.is_some() && view != state.far
            }
            Action::Decide(grant) => self.far_decides(state, grant).is_some(),
            Action::Land(_) => true,
            Action::Drop(number) => state.calls[number].caller.is_none(),
            Action::Tick => self.tick(state).is_some(),
            Action::Request(grant) => {
                let unasked = state.store.grants[grant] == Grant::Unasked;
                unasked && !self.is_over(state) && self.serves(state)
            }
            Action::Revoke(grant) => state.store.grants[grant].is_wanted() && self.serves(state),
            Action::Fault(fault) => self.can_fail(state, fault),
        }
    }

    /// Lists every action that may be possible.
    pub(crate) fn list(&self, state: &State, actions: &mut Vec<Action>) {
        use Step::{
            Beat, Call, Commit, EndSession, Force, Join, Look, NoticeEnd, Publish, Push, Read, Send, Sweep,
            Take,
        };
        for id in self.ids() {
            let plain =
                [Beat, Join, Take, Force, Read, Publish, Push, NoticeEnd, EndSession, Look, Send, Sweep];
            actions.extend(plain.map(|step| Action::Replica(id, step)));
            for grant in self.grants() {
                let steps =
                    [Commit(usize::from(grant)), Call(Change::Open(grant)), Call(Change::Close(grant))];
                actions.extend(steps.map(|step| Action::Replica(id, step)));
            }
            actions.push(Action::Connect(id));
            let faults = [
                Fault::Kill(id),
                Fault::Quit(id),
                Fault::Stop(id),
                Fault::Continue(id),
                Fault::Cut(id),
                Fault::Heal(id),
            ];
            actions.extend(faults.map(Action::Fault));
        }
        for number in 0..state.calls.len() {
            actions.extend([Action::Land(number), Action::Drop(number)]);
            actions.extend([Fault::LoseAnswer(number), Fault::Duplicate(number)].map(Action::Fault));
        }
        for grant in self.grants().map(usize::from) {
            actions.extend([Action::Request(grant), Action::Revoke(grant), Action::Decide(grant)]);
        }
        actions.extend([
            Action::ReadView,
            Action::Notice,
            Action::Apply,
            Action::ApplyUnanswered,
            Action::Tick,
            Action::Fault(Fault::Leave),
        ]);
    }
}
