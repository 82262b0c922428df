//! A model of several brokers that commit to one Redis: the turns that they take, and answers that overtake each other.
//!
//! The store is a number, the head of its audit log. A broker has one commit and one look under way at once, each in three
//! steps that interleave freely: the broker sends it, the server serves it, the answer arrives. Turns are those of
//! `store/src/redis/commit.lua`, the check of a head that of `rollback.rs` beside it.

use stateright::{Model, Property};

/// No alarm without a reason.
pub const NO_FALSE_ALARM: &str = "I8 a store that lost nothing is not taken for one that went back";
/// No loss goes unnoticed by a broker that knew the record.
pub const LOSS_IS_NOTICED: &str =
    "I1 an answer without a record that was known when it was asked for raises the alarm";
/// A turn protects the broker's commit.
pub const OVERTAKEN_ONCE: &str = "no commit is overtaken twice while its broker keeps its turn";
/// No broker waits for one that does not come.
pub const TURNS_ARE_USED: &str = "a broker whose turn it is, or will be, has a commit that is not done";
/// All commits get done.
pub const ALL_COMMIT: &str = "possible: every commit is answered";
/// An answer is overtaken.
pub const OVERTAKEN: &str = "possible: an answer that was sent for later arrives first";
/// A loss is noticed.
pub const ALARM: &str = "possible: an alarm";

/// The bounds of the model, and the rules that are kept.
#[derive(Debug, Clone, Copy)]
pub struct Turns {
    /// The number of brokers.
    pub brokers: u8,
    /// The number of commits of each broker.
    pub commits: u8,
    /// The number of looks of each broker.
    pub looks: u8,
    /// The number of turns that end before they are used, as when a broker is killed or slow.
    pub ends: u8,
    /// True if the store loses its last record once.
    pub loses: bool,
    /// A head is held against what was known when its command was sent; broken: when its answer is here.
    pub checks_what_was_known_at_sending: bool,
    /// The script has a broker wait whose turn it is not; broken: it commits.
    pub keeps_turns: bool,
}

impl Turns {
    /// Two brokers on a store that loses nothing, by all the rules.
    pub const PLAIN: Self = Self {
        brokers: 2,
        commits: 2,
        looks: 1,
        ends: 0,
        loses: false,
        checks_what_was_known_at_sending: true,
        keeps_turns: true,
    };
}

/// The way of a commit or a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way<T> {
    /// No command is under way.
    None,
    /// The command was sent, with the head that was known then.
    Sent(u8),
    /// The command was served: what was known at sending, and the answer.
    Served(u8, T),
}

/// The script's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Committed, up to this head.
    Done(u8),
    /// The head is this one; the broker has the turn.
    Moved(u8),
    /// Another broker has the turn.
    Wait,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Broker {
    /// The newest record that it knows.
    known: u8,
    alarm: bool,
    missed: bool,
    /// The head that its next commit follows; none where it asks for its turn.
    head: Option<u8>,
    commit: Way<Answer>,
    look: Way<u8>,
    commits: u8,
    looks: u8,
    /// The number of times that this commit was overtaken since a turn of its broker last ended unused.
    overtaken: u8,
}

/// The state of the model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    head: u8,
    turn: Option<u8>,
    queue: Vec<u8>,
    ends: u8,
    lost: bool,
    brokers: Vec<Broker>,
}

/// A step of a broker or of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// A broker sends a commit, or asks for its turn.
    Commit(u8),
    /// The server serves it.
    ServeCommit(u8),
    /// The answer arrives.
    Committed(u8),
    /// A broker sends a look.
    Look(u8),
    /// The server serves it.
    ServeLook(u8),
    /// The answer arrives.
    Looked(u8),
    /// A turn ends unused.
    TurnEnds,
    /// The store loses its last record.
    Lose,
}

impl Turns {
    fn serve_commit(self, state: &mut State, id: u8) {
        let Way::Sent(known) = state.brokers[usize::from(id)].commit else { return };
        let head = state.brokers[usize::from(id)].head;
        if state.turn.is_none() && !state.queue.is_empty() {
            hand_over(state);
        }
        let answer = if self.keeps_turns && state.turn.is_some_and(|holder| holder != id) {
            if !state.queue.contains(&id) {
                state.queue.push(id);
            }
            Answer::Wait
        } else if head == Some(state.head) {
            state.head += 1;
            if state.turn.is_some() {
                hand_over(state);
            }
            Answer::Done(state.head)
        } else {
            state.turn = Some(id);
            Answer::Moved(state.head)
        };
        state.brokers[usize::from(id)].commit = Way::Served(known, answer);
    }

    fn committed(self, broker: &mut Broker) {
        let Way::Served(at_sending, answer) = broker.commit else { return };
        broker.commit = Way::None;
        match answer {
            Answer::Done(head) => {
                broker.known = broker.known.max(head);
                broker.head = Some(head);
                broker.commits += 1;
                broker.overtaken = 0;
            }
            Answer::Moved(head) => {
                // Asking for a turn is no attempt that another broker could overtake.
                broker.overtaken += u8::from(broker.head.is_some());
                broker.head = Some(head);
                self.check(broker, at_sending, head);
            }
            Answer::Wait => broker.head = None,
        }
    }

    fn check(self, broker: &mut Broker, at_sending: u8, head: u8) {
        let known = if self.checks_what_was_known_at_sending { at_sending } else { broker.known };
        broker.alarm |= head < known;
        broker.missed |= head < at_sending && !broker.alarm;
        broker.known = broker.known.max(head);
    }
}

fn hand_over(state: &mut State) {
    state.turn = if state.queue.is_empty() { None } else { Some(state.queue.remove(0)) };
}

impl Model for Turns {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let broker = Broker {
            known: 0,
            alarm: false,
            missed: false,
            head: Some(0),
            commit: Way::None,
            look: Way::None,
            commits: 0,
            looks: 0,
            overtaken: 0,
        };
        let brokers = vec![broker; usize::from(self.brokers)];
        vec![State { head: 0, turn: None, queue: Vec::new(), ends: 0, lost: false, brokers }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        for (id, broker) in (0..).zip(&state.brokers) {
            // A broker that raised the alarm ends itself.
            if broker.alarm {
                continue;
            }
            match broker.commit {
                Way::None if broker.commits < self.commits => actions.push(Step::Commit(id)),
                Way::None => {}
                Way::Sent(_) => actions.push(Step::ServeCommit(id)),
                Way::Served(..) => actions.push(Step::Committed(id)),
            }
            match broker.look {
                Way::None if broker.looks < self.looks => actions.push(Step::Look(id)),
                Way::None => {}
                Way::Sent(_) => actions.push(Step::ServeLook(id)),
                Way::Served(..) => actions.push(Step::Looked(id)),
            }
        }
        if state.turn.is_some() && state.ends < self.ends {
            actions.push(Step::TurnEnds);
        }
        if self.loses && !state.lost && state.head > 0 {
            actions.push(Step::Lose);
        }
    }

    fn next_state(&self, state: &State, step: Step) -> Option<State> {
        let mut next = state.clone();
        match step {
            Step::Commit(id) => {
                let broker = &mut next.brokers[usize::from(id)];
                broker.commit = Way::Sent(broker.known);
            }
            Step::ServeCommit(id) => self.serve_commit(&mut next, id),
            Step::Committed(id) => self.committed(&mut next.brokers[usize::from(id)]),
            Step::Look(id) => {
                let broker = &mut next.brokers[usize::from(id)];
                broker.look = Way::Sent(broker.known);
            }
            Step::ServeLook(id) => {
                let head = next.head;
                let broker = &mut next.brokers[usize::from(id)];
                if let Way::Sent(known) = broker.look {
                    broker.look = Way::Served(known, head);
                }
            }
            Step::Looked(id) => {
                let broker = &mut next.brokers[usize::from(id)];
                if let Way::Served(at_sending, head) = broker.look {
                    broker.look = Way::None;
                    broker.looks += 1;
                    self.check(broker, at_sending, head);
                }
            }
            Step::TurnEnds => {
                next.ends += 1;
                if let Some(holder) = next.turn.take() {
                    next.brokers[usize::from(holder)].overtaken = 0;
                }
            }
            Step::Lose => {
                next.lost = true;
                next.head -= 1;
            }
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NO_FALSE_ALARM, |_: &Self, state: &State| {
                state.lost || state.brokers.iter().all(|broker| !broker.alarm)
            }),
            Property::always(LOSS_IS_NOTICED, |_: &Self, state: &State| {
                state.brokers.iter().all(|broker| !broker.missed)
            }),
            Property::always(OVERTAKEN_ONCE, |_: &Self, state: &State| {
                state.ends > 0 || state.lost || state.brokers.iter().all(|broker| broker.overtaken < 2)
            }),
            Property::always(TURNS_ARE_USED, |model: &Self, state: &State| {
                let comes = |id: &u8| {
                    let broker = &state.brokers[usize::from(*id)];
                    let is_done = matches!(broker.commit, Way::Served(_, Answer::Done(_)));
                    broker.commits < model.commits && !is_done
                };
                state.lost || state.turn.iter().chain(&state.queue).all(comes)
            }),
            Property::sometimes(ALL_COMMIT, |model: &Self, state: &State| {
                state.brokers.iter().all(|broker| broker.commits == model.commits)
            }),
            Property::sometimes(OVERTAKEN, |_: &Self, state: &State| {
                let is_overtaken = |broker: &Broker| {
                    let moved =
                        matches!(broker.commit, Way::Served(_, Answer::Moved(head)) if head < broker.known);
                    moved || matches!(broker.look, Way::Served(_, head) if head < broker.known)
                };
                state.brokers.iter().any(is_overtaken)
            }),
        ];
        if self.loses {
            properties.push(Property::sometimes(ALARM, |_: &Self, state: &State| {
                state.brokers.iter().any(|broker| broker.alarm)
            }));
        }
        properties
    }
}
