//! The hub: every agent's session, what it was told, and what it confirmed. This is the host layer as the broker sees
//! it.
//!
//! An agent is told the whole desired state with a generation, and confirms that generation or says why not. What it
//! confirmed is what the layer holds; nothing else is believed. A new session starts from nothing known.

mod slot;
mod trace;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use postern_core::plan::{DesiredHost, HostWindow, Observed};
use postern_core::{Grant, GrantId, TargetId, Window};
use tokio::sync::watch;

use crate::clock::Clock;
use crate::layer::LayerReport;
use crate::measure::Connected;
use crate::reconcile::Wakeups;
use slot::Slot;

/// How long a broker waits for agents to come, after its start and after it came to work on their target, before it calls
/// one unreachable.
const RETURN_GRACE: Duration = Duration::from_secs(10);

/// Every agent's session.
#[derive(Debug)]
pub struct Hub {
    slots: Mutex<HashMap<TargetId, Slot>>,
    /// The agents without a record that have been spoken to.
    strangers: Mutex<BTreeSet<TargetId>>,
    /// What another broker may have left at targets on which this one works now.
    inherited: Mutex<HashMap<TargetId, Inherited>>,
    wakeups: Arc<Wakeups>,
    clock: Clock,
    started: Timestamp,
}

/// What a broker comes into that works on a target after another.
#[derive(Debug)]
struct Inherited {
    /// The grants of which the other may have told the agent.
    grants: BTreeSet<GrantId>,
    /// When that was: the agent is on its way here.
    at: Timestamp,
}

/// A desired state with its generation.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Rises with every change.
    pub generation: u64,
    /// What to hold.
    pub desired: DesiredHost,
}

/// What a session's stream must send.
#[derive(Debug, Clone)]
pub enum Outgoing {
    /// Nothing yet.
    Nothing,
    /// This desired state.
    Tell(Arc<Told>),
    /// Nothing more: end the stream, for this reason.
    End(&'static str),
}

/// One agent's connection. Dropping it ends the session.
#[derive(Debug)]
pub struct Session {
    hub: Arc<Hub>,
    target: TargetId,
    number: u64,
    outgoing: watch::Receiver<Outgoing>,
    _counted: Connected,
}

impl Hub {
    /// A hub without sessions.
    pub fn new(clock: Clock, wakeups: Arc<Wakeups>) -> Arc<Self> {
        let (slots, inherited, strangers) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { slots, strangers, inherited, wakeups, clock, started: clock.now() })
    }

    /// Starts a session. An earlier session of the same target ends: an agent has one.
    pub fn connect(self: &Arc<Self>, target: &TargetId, version: String) -> Session {
        let (sender, outgoing) = watch::channel(Outgoing::Nothing);
        let number =
            self.lock().entry(target.clone()).or_default().connect(sender, version, self.clock.now());
        self.wakeups.wake(target);
        let (hub, target) = (Arc::clone(self), target.clone());
        Session { hub, target, number, outgoing, _counted: Connected::default() }
    }

    /// Ends the target's session, if there is one.
    pub fn end(&self, target: &TargetId, reason: &'static str) {
        if let Some(slot) = self.lock().get_mut(target) {
            slot.end(reason);
        }
    }

    /// Ends the target's session if it began before that moment.
    pub fn end_before(&self, target: &TargetId, moment: Timestamp, reason: &'static str) {
        if let Some(slot) = self.lock().get_mut(target).filter(|slot| slot.began_before(moment)) {
            slot.end(reason);
        }
    }

    /// Ends every session.
    pub fn end_all(&self, reason: &'static str) {
        self.lock().values_mut().for_each(|slot| slot.end(reason));
    }

    /// Ends the target's session, and hears nothing more of it: another broker works on the target.
    pub fn lose(&self, target: &TargetId, reason: &'static str) {
        let now = self.clock.now();
        if let Some(slot) = self.lock().get_mut(target) {
            slot.end(reason);
            slot.disconnect(now);
        }
    }

    /// The same, of every target.
    pub fn lose_all(&self, reason: &'static str) {
        let now = self.clock.now();
        for slot in self.lock().values_mut() {
            slot.end(reason);
            slot.disconnect(now);
        }
    }

    /// Takes in which grants were not over when this broker came to work on the target after another: the agent may hold
    /// their windows, whatever this one has told it.
    pub fn inherit(&self, target: &TargetId, grants: BTreeSet<GrantId>) {
        let at = self.clock.now();
        let mut all = self.inherited();
        let inherited = all.entry(target.clone()).or_insert(Inherited { grants: BTreeSet::new(), at });
        inherited.grants.extend(grants);
        inherited.at = at;
    }

    /// Whether an agent without a record comes for the first time.
    pub fn meets_stranger(&self, target: &TargetId) -> bool {
        self.strangers.lock().unwrap_or_else(PoisonError::into_inner).insert(target.clone())
    }

    /// The targets whose agents have a session.
    pub fn sessions(&self) -> Vec<TargetId> {
        let slots = self.lock();
        slots.iter().filter(|(_, slot)| slot.has_session()).map(|(target, _)| target.clone()).collect()
    }

    /// The number of the session that the target's agent has, if it has one.
    pub fn session(&self, target: &TargetId) -> Option<u64> {
        self.lock().get(target).and_then(Slot::session)
    }

    /// Forgets what the target's agent has confirmed: another broker worked on the target meanwhile. A session that is
    /// there goes on, and is told everything anew.
    pub fn doubt(&self, target: &TargetId) {
        if let Some(slot) = self.lock().get_mut(target) {
            slot.doubt();
        }
    }

    /// Whether the target's agent has a session, and so can be told anything.
    pub fn has_session(&self, target: &TargetId) -> bool {
        self.lock().get(target).is_some_and(Slot::has_session)
    }

    /// Tells the target's agent what to hold, unless it was told the same already. Whoever tells read the state after this
    /// session began: a newer session may have been told newer things by another broker.
    ///
    /// Returns when the target should be looked at again because its agent refused.
    pub fn tell(
        &self,
        target: &TargetId,
        session: u64,
        generation: u64,
        desired: DesiredHost,
    ) -> Option<Timestamp> {
        let _span = trace::span(target).entered();
        let mut slots = self.lock();
        let slot = slots.get_mut(target).filter(|slot| slot.is_session(session))?;
        slot.tell(generation, desired, self.clock.now())
    }

    /// What is known of a window of a grant in the host layer.
    pub fn observe(&self, grant: &Grant, window: &Window) -> Observed {
        let wanted = HostWindow {
            grant: grant.id,
            port: window.port,
            source: window.source,
            not_after: grant.not_after,
        };
        let slots = self.lock();
        let slot = slots.get(&window.target);
        if let Some(known) = slot.and_then(|slot| slot.observe(&wanted)) {
            return known;
        }
        let inherited = self.inherited();
        let inherited = inherited.get(&window.target);
        let came = inherited.is_some_and(|inherited| self.is_recent(inherited.at));
        if came || slot.is_none() && self.is_recent(self.started) {
            return Observed::Unconfirmed;
        }
        // Of a grant that is older than this process, an earlier broker may have told the agent.
        let may_hold = grant.requested_at < self.started
            || slot.is_some_and(|slot| slot.may_hold(&wanted))
            || inherited.is_some_and(|inherited| inherited.grants.contains(&grant.id));
        Observed::Unreachable { reason: "its agent is not connected".into(), may_hold }
    }

    /// How the host layer of a target stands, for people.
    pub fn report(&self, target: &TargetId) -> LayerReport {
        let report = self.lock().get(target).map(Slot::report);
        report.unwrap_or_else(|| {
            LayerReport::unreachable("its agent has not connected since the broker started")
        })
    }

    /// Whether agents may still be on their way here, after this broker has started or come to work on their target.
    fn is_recent(&self, moment: Timestamp) -> bool {
        self.clock.now().duration_since(moment) < RETURN_GRACE.try_into().unwrap_or_default()
    }

    fn inherited(&self) -> MutexGuard<'_, HashMap<TargetId, Inherited>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// Waits for the next thing to send.
    pub async fn next(&mut self) -> Outgoing {
        match self.outgoing.changed().await {
            Ok(()) => self.outgoing.borrow_and_update().clone(),
            Err(_) => Outgoing::End("the broker replaced this session"),
        }
    }

    /// The agent was heard.
    pub fn heard(&self) {
        self.slot(|slot, now| slot.heard(now));
    }

    /// The agent confirmed a generation, or refused it with an error.
    pub fn applied(&self, generation: u64, error: Option<String>) {
        let answered = trace::span(&self.target)
            .in_scope(|| self.slot(|slot, now| slot.applied(generation, error, now)));
        if answered == Some(true) {
            // It holds what this broker told it, and nothing that another did.
            self.hub.inherited().remove(&self.target);
        }
        self.hub.wakeups.wake(&self.target);
    }

    /// Acts on this session's slot, unless a newer session has it by now.
    fn slot<T>(&self, act: impl FnOnce(&mut Slot, Timestamp) -> T) -> Option<T> {
        let now = self.hub.clock.now();
        let mut slots = self.hub.lock();
        let slot = slots.get_mut(&self.target).filter(|slot| slot.is_session(self.number))?;
        Some(act(slot, now))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.slot(|slot, now| slot.disconnect(now));
        self.hub.wakeups.wake(&self.target);
    }
}

#[cfg(test)]
mod tests;
