//! The fault plan: which calls of a service go wrong, and how.
//!
//! A double of a service asks the plan for the [`Handling`] of each call, and carries it out. A test orders faults for the next calls
//! that a pattern matches, for the change with a number, or for every call; or it names a [`CrashPoint`], a side of a change. From
//! there on the service answers nothing, as if its caller had been killed, until the test resumes it.

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::future::pending;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

/// A call of a service, as a plan sees it.
pub trait Call {
    /// The calls that an order is for.
    type Pattern: Debug + Send;
    /// The service's own way to refuse a call.
    type Refusal: Clone + Debug + Send;

    /// Reports whether the call changes something.
    fn is_change(&self) -> bool;

    /// Reports whether an order is for this call.
    fn matches(&self, pattern: &Self::Pattern) -> bool;
}

/// A fault of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault<R> {
    /// The service refuses in its own way.
    Refused(R),
    /// The call does not arrive: the connection is cut.
    Dropped,
    /// The call takes effect, and its answer is lost with the connection.
    Lost,
    /// The call arrives after a while.
    Slow(Duration),
    /// The call does not arrive, and the connection stays open in silence.
    Hung,
}

/// A point on the way of a program that changes the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashPoint {
    /// The number of the change from now on, counted from 1.
    pub change: usize,
    /// The side of the change on which the point is.
    pub when: When,
}

/// A side of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The change has not arrived.
    Before,
    /// The change took effect, and is not answered.
    After,
}

/// The way in which the service handles a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handling<R> {
    /// Serves it.
    Serve,
    /// Serves it after a while.
    Delay(Duration),
    /// Refuses it.
    Refuse(R),
    /// Cuts the connection.
    Cut,
    /// Serves it, and cuts the connection.
    ServeThenCut,
    /// Never answers.
    Hang,
    /// Holds it until the service is resumed, and cuts the connection then.
    Hold,
    /// Serves it, and holds the answer likewise.
    ServeThenHold,
}

/// The faults of a service. Dropping orders from the plan is [`Self::forgive`]; the point at which it halts stays.
#[derive(Debug)]
pub struct FaultPlan<C: Call> {
    state: Mutex<State<C::Pattern, C::Refusal>>,
    resumed: Notify,
}

#[derive(Debug)]
struct State<P, R> {
    orders: Vec<Order<P, R>>,
    /// The fault of a coming change, and the number of changes until then.
    at_change: Option<(usize, Fault<R>)>,
    down: bool,
    halt: Option<Halt>,
}

#[derive(Debug)]
struct Order<P, R> {
    pattern: P,
    times: usize,
    fault: Fault<R>,
}

#[derive(Debug)]
struct Halt {
    point: CrashPoint,
    changes: usize,
    reached: bool,
}

impl<C: Call> Default for FaultPlan<C> {
    fn default() -> Self {
        let state = State { orders: Vec::new(), at_change: None, down: false, halt: None };
        Self { state: Mutex::new(state), resumed: Notify::new() }
    }
}

impl<C: Call> FaultPlan<C> {
    /// Makes the next calls that match go wrong. Of two orders for a call the earlier one counts.
    pub fn fail(&self, pattern: C::Pattern, times: usize, fault: Fault<C::Refusal>) {
        if times > 0 {
            self.lock().orders.push(Order { pattern, times, fault });
        }
    }

    /// Makes the change with this number from now on, from 1, go wrong.
    pub fn fail_change(&self, number: usize, fault: Fault<C::Refusal>) {
        assert!(number > 0, "changes count from 1");
        self.lock().at_change = Some((number, fault));
    }

    /// Reports whether the change of [`Self::fail_change`] has come.
    pub fn has_failed(&self) -> bool {
        self.lock().at_change.is_none()
    }

    /// Drops the orders for calls that have not come.
    pub fn forgive(&self) {
        self.lock().orders.clear();
    }

    /// Cuts every connection without an answer, or ends that.
    pub fn outage(&self, down: bool) {
        self.lock().down = down;
    }

    /// Halts the service at a point, or resumes it; the calls that it holds are never answered.
    pub fn halt_at(&self, point: Option<CrashPoint>) {
        self.lock().halt = point.map(|point| Halt { point, changes: 0, reached: false });
        self.resumed.notify_waiters();
    }

    /// Reports whether the service has halted.
    pub fn has_halted(&self) -> bool {
        self.lock().halt.as_ref().is_some_and(|halt| halt.reached)
    }

    /// Decides how the service handles a call.
    pub fn handle(&self, call: &C) -> Handling<C::Refusal> {
        let mut state = self.lock();
        let is_change = call.is_change();
        if let Some(halt) = &mut state.halt {
            if halt.reached {
                return Handling::Hold;
            }
            halt.changes += usize::from(is_change);
            if is_change && halt.changes == halt.point.change {
                halt.reached = halt.point.when == When::Before;
                return if halt.reached { Handling::Hold } else { Handling::ServeThenHold };
            }
        }
        if state.down {
            return Handling::Cut;
        }
        if is_change && let Some((number, _)) = &mut state.at_change {
            *number -= 1;
            if *number == 0 {
                return state.at_change.take().map_or(Handling::Serve, |(_, fault)| fault.handling());
            }
        }
        let Some(found) = state.orders.iter().position(|order| call.matches(&order.pattern)) else {
            return Handling::Serve;
        };
        let order = &mut state.orders[found];
        order.times -= 1;
        let handling = order.fault.clone().handling();
        if order.times == 0 {
            state.orders.remove(found);
        }
        handling
    }

    /// Notes that a call which is served and then held has been served, and waits as long as the service holds a call. Returns at once
    /// for every other handling.
    pub async fn hold(&self, handling: &Handling<C::Refusal>) {
        if !matches!(handling, Handling::Hold | Handling::ServeThenHold) {
            return;
        }
        let resumed = self.resumed.notified();
        let is_halted = match &mut self.lock().halt {
            None => false,
            Some(halt) => {
                halt.reached |= matches!(handling, Handling::ServeThenHold);
                halt.reached
            }
        };
        if is_halted {
            resumed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<C::Pattern, C::Refusal>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Fault<R> {
    fn handling(self) -> Handling<R> {
        match self {
            Self::Refused(refusal) => Handling::Refuse(refusal),
            Self::Dropped => Handling::Cut,
            Self::Lost => Handling::ServeThenCut,
            Self::Slow(span) => Handling::Delay(span),
            Self::Hung => Handling::Hang,
        }
    }
}

impl<R> Handling<R> {
    /// Carries it out up to the answer; none where the connection is to be cut instead, once [`FaultPlan::hold`] has returned.
    pub async fn answer<A>(&self, serve: impl Future<Output = A>, refuse: impl FnOnce(&R) -> A) -> Option<A> {
        match self {
            Self::Serve => Some(serve.await),
            Self::Delay(span) => {
                tokio::time::sleep(*span).await;
                Some(serve.await)
            }
            Self::Refuse(refusal) => Some(refuse(refusal)),
            Self::Cut | Self::Hold => None,
            Self::ServeThenCut | Self::ServeThenHold => {
                serve.await;
                None
            }
            Self::Hang => pending().await,
        }
    }
}
