//! The model's first state and its transitions, as stateright's checker asks for them.

use stateright::Property;

use crate::action::{Action, Fault};
use crate::model::Model;
use crate::properties;
use crate::setup::LIFE;
use crate::state::{
    Agent, GRANTS, Grant, Lease, Membership, Process, REPLICAS, Replica, Session, Set, Sight, State, Store,
    Violations,
};

impl stateright::Model for Model {
    type State = State;
    type Action = Action;

    /// Returns the first state: every replica has just joined and nothing was asked for. In a cold one no replica has the
    /// lease, and the agent is on its way; else the first replica has both.
    fn init_states(&self) -> Vec<State> {
        let up = |id: usize| id < usize::from(self.setup.replicas);
        let member = |id| Membership { serial: 0, life: if up(id) { LIFE } else { 0 } };
        let replica = |id| {
            let belief = self.setup.belief();
            if up(id) { Replica { process: Process::Up, belief, ..Self::dead(0) } } else { Self::dead(0) }
        };
        let warm = (!self.setup.cold).then_some(0);
        let store = Store {
            grants: [Grant::Unasked; GRANTS],
            members: std::array::from_fn::<_, REPLICAS, _>(member),
            lease: warm.map(|holder| Lease { holder, serial: 0, token: 1 }),
            view: None,
        };
        let mut replicas = std::array::from_fn(replica);
        if !self.setup.cold {
            replicas[0].token = 1;
            (replicas[0].session, replicas[0].pushed, replicas[0].confirmed) =
                (Session::Live, Some(Set::default()), true);
            (replicas[0].sight, replicas[0].read) = (Sight::Settled(Set::default()), Some(store.grants));
        }
        vec![State {
            now: 0,
            store,
            replicas,
            agent: Agent { at: warm, inbox: None, held: Set::default() },
            cloud: Set::default(),
            calls: Vec::new(),
            far: None,
            faults: self.setup.faults,
            violations: Violations::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.list(state, actions);
        actions.retain(|action| self.is_possible(state, *action));
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Replica(id, step) => self.take(&mut next, id, step),
            Action::Connect(id) => self.connect(&mut next, id),
            Action::Notice => Self::leave(&mut next),
            Action::Apply => {
                self.apply(&mut next);
                Self::confirm(&mut next);
            }
            Action::ApplyUnanswered => {
                self.apply(&mut next);
                if Self::can_notice(&next) {
                    Self::leave(&mut next);
                } else {
                    self.fail(&mut next, Fault::Leave);
                }
            }
            Action::ReadView => next.far = Self::valid_view(state),
            Action::Decide(grant) => self.far_commits(&mut next, grant),
            Action::Land(number) => Self::land(&mut next, number),
            Action::Drop(number) => drop(next.calls.remove(number)),
            Action::Tick => return self.tick(state),
            Action::Request(grant) => next.store.grants[grant] = Grant::Opening,
            Action::Revoke(grant) => next.store.grants[grant] = Grant::Closing,
            Action::Fault(fault) => self.fail(&mut next, fault),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::of(&self.setup)
    }
}
