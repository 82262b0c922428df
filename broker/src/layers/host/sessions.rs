//! The sessions of every agent that is connected to this broker. See [the page of this layer](super).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use postern_core::plan::{DesiredHost, LayerWindow, Observed};
use postern_core::{Grant, GrantId, GrantState, TargetId, Window};
use tokio::sync::watch;

use super::desired_state::{Outgoing, StateNumber};
use super::log;
pub use super::session_state::{EnforcementPhase, Rival};
use super::session_state::{SessionOrigin, SessionState};
use crate::clock::Clock;
use crate::layers::report::LayerReport;
use crate::limits::line_due;
use crate::signals::Wakeups;
use crate::telemetry::AgentGauge;

/// The time for which the broker waits for agents, after its start and after it took their target over, before it calls
/// one unreachable.
const RETURN_GRACE: Duration = Duration::from_secs(10);
/// The most agents without a record that are remembered. Each has a certificate of this authority.
const MAX_STRANGERS: usize = 65_536;

/// Every agent's session.
#[derive(Debug)]
pub struct AgentSessions {
    states: Mutex<HashMap<TargetId, SessionState>>,
    /// The agents without a record that connected before, at most [`MAX_STRANGERS`].
    strangers: Mutex<BTreeSet<TargetId>>,
    /// The windows that another broker may have left at targets on which this one works now.
    inherited: Mutex<HashMap<TargetId, Inherited>>,
    /// The agents that are gone for good, each with the time from which nothing waits for it.
    forgotten: Mutex<HashMap<TargetId, Timestamp>>,
    wakeups: Arc<Wakeups>,
    clock: Clock,
    started: Timestamp,
}

/// The state of a target that this broker took over from another.
#[derive(Debug)]
struct Inherited {
    /// The grants whose windows the other broker may have pushed to the agent.
    grants: BTreeSet<GrantId>,
    /// The moment of the takeover: the agent is on its way here.
    at: Timestamp,
}

/// The connection of one agent. Dropping it ends the session.
#[derive(Debug)]
pub struct AgentSession {
    sessions: Arc<AgentSessions>,
    target: TargetId,
    number: u64,
    outgoing: watch::Receiver<Outgoing>,
    _counted: AgentGauge,
}

impl AgentSessions {
    /// No sessions yet.
    pub fn new(clock: Clock, wakeups: Arc<Wakeups>) -> Arc<Self> {
        let (states, inherited, strangers) = (Mutex::default(), Mutex::default(), Mutex::default());
        let forgotten = Mutex::default();
        Arc::new(Self { states, strangers, inherited, forgotten, wakeups, clock, started: clock.now() })
    }

    /// Starts a session. An earlier session of the same target ends: an agent has one.
    pub fn connect(
        self: &Arc<Self>,
        target: &TargetId,
        version: String,
        origin: SessionOrigin,
    ) -> AgentSession {
        // It has a record now. If the store loses that again, the agent comes for the first time again.
        self.strangers().remove(target);
        let (sender, outgoing) = watch::channel(Outgoing::Nothing);
        let now = self.clock.now();
        let number = self.lock().entry(target.clone()).or_default().connect(sender, version, origin, now);
        self.wakeups.wake(target);
        let (sessions, target) = (Arc::clone(self), target.clone());
        AgentSession { sessions, target, number, outgoing, _counted: AgentGauge::default() }
    }

    /// Returns the machine that would lose its session to one from this origin, if two machines have the agent's key.
    pub fn rival(&self, target: &TargetId, origin: &SessionOrigin) -> Rival {
        let now = self.clock.now();
        self.lock().get_mut(target).map_or(Rival::None, |state| state.rival(origin, now))
    }

    /// Notes that the target's session is with another broker, and that another machine has it.
    pub fn note_rival(&self, target: &TargetId) {
        let now = self.clock.now();
        if let Some(state) = self.lock().get_mut(target) {
            state.note_rival(now);
        }
    }

    /// Records from when on nothing waits for the target's agent; none if the agent is not forgotten.
    pub fn set_forgotten(&self, target: &TargetId, at: Option<Timestamp>) {
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        let before = match at {
            Some(at) => forgotten.insert(target.clone(), at),
            None => forgotten.remove(target),
        };
        if before != at {
            // An agent that comes after this has windows of its own to close.
            self.strangers().remove(target);
        }
    }

    /// Returns the time from which nothing waits for the target's agent, if it is forgotten and has no session.
    fn forgotten(&self, target: &TargetId) -> Option<Timestamp> {
        let at = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner).get(target).copied()?;
        (!self.has_session(target)).then_some(at)
    }

    /// Ends the target's session, if there is one.
    pub fn end(&self, target: &TargetId, reason: &'static str) {
        if let Some(state) = self.lock().get_mut(target) {
            state.end(reason);
        }
    }

    /// Ends the target's session if it began before that moment.
    pub fn end_before(&self, target: &TargetId, moment: Timestamp, reason: &'static str) {
        if let Some(state) = self.lock().get_mut(target).filter(|state| state.began_before(moment)) {
            state.end(reason);
        }
    }

    /// Ends every session.
    pub fn end_all(&self, reason: &'static str) {
        self.lock().values_mut().for_each(|state| state.end(reason));
    }

    /// Ends the target's session and ignores its further messages: another broker works on the target.
    pub fn disconnect(&self, target: &TargetId, reason: &'static str) {
        let now = self.clock.now();
        if let Some(state) = self.lock().get_mut(target) {
            state.displace_elsewhere(now);
            state.end(reason);
            state.disconnect(now);
        }
    }

    /// Ends every session and ignores its further messages.
    pub fn disconnect_all(&self, reason: &'static str) {
        let now = self.clock.now();
        for state in self.lock().values_mut() {
            state.end(reason);
            state.disconnect(now);
        }
    }

    /// Records the grants that were not over when this broker took the target over from another: the agent may hold their
    /// windows, whatever this broker has pushed to it.
    pub fn inherit(&self, target: &TargetId, grants: BTreeSet<GrantId>) {
        let at = self.clock.now();
        let mut all = self.inherited();
        let inherited = all.entry(target.clone()).or_insert(Inherited { grants: BTreeSet::new(), at });
        inherited.grants.extend(grants);
        inherited.at = at;
    }

    /// Reports whether an agent without a record connects for the first time since it had a record, or since this broker started.
    pub fn meets_stranger(&self, target: &TargetId) -> bool {
        let mut strangers = self.strangers();
        let is_first = strangers.insert(target.clone());
        if strangers.len() > MAX_STRANGERS {
            // That one is asked to close its windows once more, should it come again.
            strangers.pop_first();
        }
        is_first
    }

    /// Returns the targets whose agents have a session.
    pub fn targets(&self) -> Vec<TargetId> {
        let states = self.lock();
        states.iter().filter(|(_, state)| state.has_session()).map(|(target, _)| target.clone()).collect()
    }

    /// Returns the number of the session that the target's agent has, if it has one.
    pub fn session_number(&self, target: &TargetId) -> Option<u64> {
        self.lock().get(target).and_then(SessionState::number)
    }

    /// Forgets what the target's agent has confirmed: another broker worked on the target meanwhile. A session that is
    /// there goes on, and the whole state is pushed to it again.
    pub fn doubt(&self, target: &TargetId) {
        if let Some(state) = self.lock().get_mut(target) {
            state.doubt();
        }
    }

    /// Reports whether the target's agent has a session.
    pub fn has_session(&self, target: &TargetId) -> bool {
        self.lock().get(target).is_some_and(SessionState::has_session)
    }

    /// Pushes a desired state to the target's agent, unless that state was pushed last. The caller has read the state after this
    /// session began: to a newer session another broker may have pushed a newer state.
    ///
    /// Returns the time at which to look at the target again, if its agent refused.
    pub fn push(
        &self,
        target: &TargetId,
        session: u64,
        number: StateNumber,
        desired: DesiredHost,
    ) -> Option<Timestamp> {
        let _span = log::span(target).entered();
        let mut states = self.lock();
        let state = states.get_mut(target).filter(|state| state.is_session(session))?;
        state.push(number, desired, self.clock.now())
    }

    /// Returns what is known of a window of a grant in the host layer.
    pub fn observe(&self, grant: &Grant, window: &Window) -> Observed {
        let wanted = LayerWindow::of(grant, window);
        if self.forgotten(&window.target).is_some_and(|at| grant.requested_at <= at) {
            let reason = "its agent was forgotten".to_owned();
            return match grant.state {
                // Whatever its policy says of absent agents: this one does not come back.
                GrantState::Opening => Observed::Refused { reason },
                GrantState::PendingApproval
                | GrantState::Active
                | GrantState::Closing(_)
                | GrantState::Closed(_)
                | GrantState::Denied { .. }
                | GrantState::Failed { .. } => Observed::Unreachable { reason, may_hold: false },
            };
        }
        let states = self.lock();
        let state = states.get(&window.target);
        if let Some(known) = state.and_then(|state| state.observe(&wanted)) {
            return known;
        }
        let inherited = self.inherited();
        let inherited = inherited.get(&window.target);
        let came = inherited.is_some_and(|inherited| self.is_recent(inherited.at));
        if came || state.is_none() && self.is_recent(self.started) {
            return Observed::Unconfirmed;
        }
        // An earlier broker may have pushed the windows of a grant that is older than this process.
        let may_hold = grant.requested_at < self.started
            || state.is_some_and(|state| state.may_hold(&wanted))
            || inherited.is_some_and(|inherited| inherited.grants.contains(&grant.id));
        Observed::Unreachable { reason: "its agent is not connected".into(), may_hold }
    }

    /// Returns the report on the host layer of a target.
    pub fn report(&self, target: &TargetId) -> LayerReport {
        if self.forgotten(target).is_some() {
            return LayerReport::unreachable("its agent was forgotten");
        }
        let report = self.lock().get(target).map(SessionState::report);
        report.unwrap_or_else(|| {
            LayerReport::unreachable("its agent has not connected since the broker started")
        })
    }

    /// Reports whether agents may still be on their way here, after this broker has started or taken their target over.
    fn is_recent(&self, moment: Timestamp) -> bool {
        self.clock.now().duration_since(moment) < RETURN_GRACE.try_into().unwrap_or_default()
    }

    fn strangers(&self) -> MutexGuard<'_, BTreeSet<TargetId>> {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inherited(&self) -> MutexGuard<'_, HashMap<TargetId, Inherited>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, SessionState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentSession {
    /// Waits for the next thing to send.
    pub async fn next(&mut self) -> Outgoing {
        match self.outgoing.changed().await {
            Ok(()) => self.outgoing.borrow_and_update().clone(),
            Err(_) => Outgoing::End("the broker replaced this session"),
        }
    }

    /// Records the highest generation of policies that the agent has followed.
    pub fn has_followed(&self, policies: u64) {
        self.with_state(|state, _| state.has_followed(policies));
    }

    /// Records the host's phase on its way to enforcement.
    pub fn set_phase(&self, phase: EnforcementPhase) {
        self.with_state(|state, now| {
            state.mark_seen(now);
            state.set_phase(phase);
        });
    }

    /// Records that the agent sent something.
    pub fn mark_seen(&self) {
        self.with_state(|state, now| state.mark_seen(now));
    }

    /// Records that the agent confirmed a generation, or refused it with an error.
    pub fn applied(&self, generation: u64, error: Option<String>) {
        // An agent can send any number of refusals.
        let is_logged = error.is_none() || line_due(&self.target);
        let answered = log::span(&self.target)
            .in_scope(|| self.with_state(|state, now| state.applied(generation, error, now, is_logged)));
        if answered == Some(true) {
            // The agent holds what this broker pushed, and nothing that another broker did.
            self.sessions.inherited().remove(&self.target);
        }
        self.sessions.wakeups.wake(&self.target);
    }

    /// Acts on this session's state, unless a newer session has it by now.
    fn with_state<T>(&self, act: impl FnOnce(&mut SessionState, Timestamp) -> T) -> Option<T> {
        let now = self.sessions.clock.now();
        let mut states = self.sessions.lock();
        let state = states.get_mut(&self.target).filter(|state| state.is_session(self.number))?;
        Some(act(state, now))
    }
}

impl Drop for AgentSession {
    fn drop(&mut self) {
        self.with_state(|state, now| state.disconnect(now));
        self.sessions.wakeups.wake(&self.target);
    }
}

#[cfg(test)]
mod tests;
