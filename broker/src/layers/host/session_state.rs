//! The state of one target's session: what was pushed, what was confirmed, and what the agent may hold besides.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::Mode;
use postern_core::plan::{DesiredHost, LayerWindow, Observed};
use postern_runtime::backoff::Backoff;
use tokio::sync::watch;

use super::desired_state::{Outgoing, PushedState, StateNumber};
use super::log;
use crate::layers::failure_streak::FailureStreak;
use crate::layers::report::{LayerReport, LayerStatus};

/// The pauses before a refused state is pushed again.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) };

/// The silence after which a session no longer counts as alive beside another machine's. An agent sends a heartbeat every 5 s.
const ALIVE_WITHIN: Duration = Duration::from_secs(7);
/// The time in which displaced sessions are counted, and for which the session that is there then stays.
const RIVALRY: Duration = Duration::from_secs(60);
/// The number of displaced sessions within [`RIVALRY`] at which two machines have one key.
const MAX_DISPLACED: usize = 3;

/// The machine of a session, as far as the broker can tell: two machines with one key differ in it.
#[derive(Debug, Clone, Default)]
pub struct SessionOrigin {
    /// The boot id that the agent sent; empty if it sent none.
    pub boot_id: String,
    /// The address that the broker sees.
    pub address: Option<IpAddr>,
}

impl SessionOrigin {
    /// Reports whether both are one machine. An address counts only where a boot id is missing: a machine may come from an address of
    /// each family, and from another one after it moved.
    fn is_same_machine(&self, other: &Self) -> bool {
        if self.boot_id.is_empty() || other.boot_id.is_empty() {
            self.address == other.address
        } else {
            self.boot_id == other.boot_id
        }
    }
}

/// Another machine with the key of an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rival {
    /// There is none, as far as this broker knows.
    None,
    /// It has a session with this broker.
    Here,
    /// Sessions with another broker have taken the agent's sessions with this one away: the machine of those may be another. If it is,
    /// the caller notes that ([`super::sessions::AgentSessions::note_rival`]).
    Elsewhere,
}

/// The phase of a host on its way to enforcement, as far as it matters to the broker. The host itself decides on it; the broker only shows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EnforcementPhase {
    /// The host's table follows the mode of its policy.
    #[default]
    Follows,
    /// The host enforces until the end of a trial.
    Trial,
    /// No operator of the host confirmed the trial, and the host only monitors.
    Lapsed,
}

/// The session of one target, and what is known through it.
#[derive(Debug, Default)]
pub(super) struct SessionState {
    /// Counts sessions, so that a stale one cannot speak for a newer.
    number: u64,
    session: Option<watch::Sender<Outgoing>>,
    began: Option<Timestamp>,
    origin: SessionOrigin,
    /// The times at which a session of another machine displaced one that was alive.
    displaced: VecDeque<Timestamp>,
    /// The end of the time for which the session that is there stays.
    rivalry_until: Option<Timestamp>,
    pushed: Option<Arc<PushedState>>,
    confirmed: Option<Arc<PushedState>>,
    /// The agent's refusals of the state that was pushed last, with the reason.
    refusal: Option<FailureStreak<String>>,
    /// True if the log has the alarm of these refusals.
    is_alarm_logged: bool,
    /// Windows that were pushed in earlier sessions, or in this one before the last state, and that the agent may still hold.
    left_behind: BTreeSet<LayerWindow>,
    /// The highest generation of policies that the agent has followed.
    followed: u64,
    phase: EnforcementPhase,
    version: String,
    last_seen: Option<Timestamp>,
}

impl SessionState {
    pub(super) fn connect(
        &mut self,
        sender: watch::Sender<Outgoing>,
        version: String,
        origin: SessionOrigin,
        now: Timestamp,
    ) -> u64 {
        if self.is_alive(now) && !self.origin.is_same_machine(&origin) {
            self.note_displaced(now);
        }
        self.origin = origin;
        self.end("a newer session of this agent took over");
        self.leave_behind();
        self.number += 1;
        self.session = Some(sender);
        self.version = version;
        self.phase = EnforcementPhase::default();
        (self.began, self.last_seen) = (Some(now), Some(now));
        self.number
    }

    /// Reports whether another machine has this agent's key, and a session from this origin would displace its session once more.
    pub(super) fn rival(&mut self, origin: &SessionOrigin, now: Timestamp) -> Rival {
        let is_recent = |at: &Timestamp| now.duration_since(*at) < RIVALRY.try_into().unwrap_or_default();
        self.displaced.retain(is_recent);
        let is_contested =
            self.displaced.len() >= MAX_DISPLACED || self.rivalry_until.is_some_and(|until| now < until);
        if !is_contested {
            return Rival::None;
        }
        match (self.is_alive(now), self.origin.is_same_machine(origin)) {
            (true, true) => Rival::None,
            (true, false) => {
                self.note_rival(now);
                Rival::Here
            }
            (false, _) => Rival::Elsewhere,
        }
    }

    /// Notes that another machine has this agent's key: its session stays for a while from now on.
    pub(super) fn note_rival(&mut self, now: Timestamp) {
        self.rivalry_until = now.checked_add(RIVALRY).ok();
    }

    /// Ends the session for one with another broker.
    pub(super) fn displace_elsewhere(&mut self, now: Timestamp) {
        if self.is_alive(now) {
            self.note_displaced(now);
        }
    }

    fn note_displaced(&mut self, now: Timestamp) {
        self.displaced.push_back(now);
        if self.displaced.len() > MAX_DISPLACED {
            self.displaced.pop_front();
        }
    }

    /// Reports whether there is a session whose agent has sent something a moment ago.
    fn is_alive(&self, now: Timestamp) -> bool {
        let ends = |session: &watch::Sender<Outgoing>| matches!(&*session.borrow(), Outgoing::End(_));
        self.session.as_ref().is_some_and(|session| !ends(session))
            && self
                .last_seen
                .is_some_and(|seen| now.duration_since(seen) < ALIVE_WITHIN.try_into().unwrap_or_default())
    }

    /// Reports whether there is a session that began before that moment.
    pub(super) fn began_before(&self, moment: Timestamp) -> bool {
        self.session.is_some() && self.began.is_some_and(|began| began < moment)
    }

    pub(super) fn has_session(&self) -> bool {
        self.session.is_some()
    }

    pub(super) fn number(&self) -> Option<u64> {
        self.session.as_ref().map(|_| self.number)
    }

    /// Forgets what the agent holds.
    pub(super) fn doubt(&mut self) {
        self.leave_behind();
    }

    pub(super) fn is_session(&self, number: u64) -> bool {
        self.number == number && self.session.is_some()
    }

    /// Has the stream end, and sends nothing after that. The session is forgotten when the stream is dropped.
    pub(super) fn end(&mut self, reason: &'static str) {
        if let Some(session) = &self.session {
            session.send_replace(Outgoing::End(reason));
        }
    }

    pub(super) fn disconnect(&mut self, now: Timestamp) {
        self.leave_behind();
        self.session = None;
        self.last_seen = Some(now);
    }

    /// Forgets what the session knew, except the windows that the agent may hold without it.
    fn leave_behind(&mut self) {
        let known = [self.pushed.take(), self.confirmed.take()];
        self.left_behind
            .extend(known.into_iter().flatten().flat_map(|pushed| pushed.desired.windows.clone()));
        self.forget_refusals();
    }

    fn forget_refusals(&mut self) {
        (self.refusal, self.is_alarm_logged) = (None, false);
    }

    /// Reports whether the agent may hold a window though it has no session.
    pub(super) fn may_hold(&self, window: &LayerWindow) -> bool {
        self.left_behind.contains(window)
    }

    /// Records the highest generation of policies that the agent has followed.
    pub(super) fn has_followed(&mut self, policies: u64) {
        self.followed = policies;
    }

    /// Returns the words for an agent that has followed newer policies than the store has; empty for any other.
    fn behind(&self) -> String {
        match &self.pushed {
            Some(pushed) if pushed.desired.protection.is_none() => {
                "the policies cannot be read: the host keeps its protection".to_owned()
            }
            Some(pushed) if pushed.policies < self.followed => format!(
                "the host has followed policies of generation {} and the store has {}: the store went back, and the host drops no \
                 protected port; apply the policies again",
                self.followed, pushed.policies
            ),
            Some(_) | None => String::new(),
        }
    }

    /// Records the host's phase on its way to enforcement.
    pub(super) fn set_phase(&mut self, phase: EnforcementPhase) {
        self.phase = phase;
    }

    /// Returns the state of a host that holds what was pushed last.
    fn held(&self) -> (LayerStatus, String) {
        let protection = self.pushed.as_ref().and_then(|pushed| pushed.desired.protection.as_ref());
        let enforces = protection.is_some_and(|it| it.mode == Mode::Enforce && !it.ports.is_empty());
        match self.phase {
            EnforcementPhase::Lapsed if enforces => (
                LayerStatus::Failed,
                "not confirmed: the host only monitors; run `postern-agent enforce` on it".to_owned(),
            ),
            EnforcementPhase::Trial if enforces => (
                LayerStatus::InSync,
                "on trial: log in over an open window and run `postern-agent confirm` on the host".to_owned(),
            ),
            EnforcementPhase::Lapsed | EnforcementPhase::Trial | EnforcementPhase::Follows => {
                (LayerStatus::InSync, self.behind())
            }
        }
    }

    pub(super) fn mark_seen(&mut self, now: Timestamp) {
        self.last_seen = Some(now);
    }

    /// Pushes a desired state; see [`super::sessions::AgentSessions::push`]. A refused state is pushed again when its backoff is
    /// over, without end.
    pub(super) fn push(
        &mut self,
        StateNumber { generation, policies }: StateNumber,
        desired: DesiredHost,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let session = self.session.as_ref()?;
        // A state must not overwrite an end that the stream has not read yet: it may be a ban.
        if matches!(&*session.borrow(), Outgoing::End(_)) {
            return None;
        }
        // With newer policies also a state that asks for the same: the agent has to know their generation (I1).
        let same = self
            .pushed
            .as_ref()
            .is_some_and(|pushed| pushed.desired == desired && pushed.policies == policies);
        if same && self.refusal.as_ref().is_none_or(|refusal| now < refusal.retry_at) {
            return self.refusal.as_ref().map(|refusal| refusal.retry_at);
        }
        let pushed = Arc::new(PushedState { generation, policies, desired });
        log::pushed(self.pushed.as_deref(), &pushed);
        // The agent may have applied a state that is replaced before its answer came.
        if !self.in_sync()
            && let Some(unanswered) = self.pushed.take()
        {
            self.left_behind.extend(unanswered.desired.windows.iter().cloned());
        }
        self.pushed = Some(Arc::clone(&pushed));
        session.send_replace(Outgoing::Push(pushed));
        None
    }

    /// Records the answer to the state that was pushed last; answers to earlier ones are out of date. `is_logged`: a refusal has
    /// its lines in the log. Returns whether it is a confirmation.
    pub(super) fn applied(
        &mut self,
        generation: u64,
        error: Option<String>,
        now: Timestamp,
        is_logged: bool,
    ) -> bool {
        self.last_seen = Some(now);
        let Some(pushed) = self.pushed.as_ref().filter(|pushed| pushed.generation == generation) else {
            return false;
        };
        let confirms = error.is_none();
        match error {
            None => {
                self.followed = self.followed.max(pushed.policies);
                self.confirmed = Some(Arc::clone(pushed));
                self.forget_refusals();
                // The agent holds this state and nothing else.
                self.left_behind.clear();
            }
            Some(reason) => self.refuse(reason, now, is_logged),
        }
        confirms
    }

    fn refuse(&mut self, reason: String, now: Timestamp, is_logged: bool) {
        if is_logged {
            log::refused(self.confirmed.as_deref(), self.pushed.as_deref(), &reason);
        }
        let refusal = FailureStreak::after(self.refusal.take(), reason, BACKOFF, now);
        // The refusal at which the alarm is due may be one of those that the log leaves out.
        if refusal.is_stuck() && is_logged && !self.is_alarm_logged {
            self.is_alarm_logged = true;
            let FailureStreak { error: reason, times, .. } = &refusal;
            tracing::error!(%reason, "an agent has refused its desired state {times} times in a row");
        }
        self.refusal = Some(refusal);
    }

    /// Returns what is known of a window; `None` without a session.
    pub(super) fn observe(&self, window: &LayerWindow) -> Option<Observed> {
        self.session.as_ref()?;
        let holds = |pushed: &Option<Arc<PushedState>>| {
            pushed.as_ref().is_some_and(|pushed| pushed.desired.windows.contains(window))
        };
        Some(match &self.refusal {
            _ if holds(&self.confirmed) => Observed::Open,
            Some(refusal) if holds(&self.pushed) => Observed::Refused { reason: refusal.error.clone() },
            _ if self.in_sync() && !holds(&self.pushed) => Observed::Absent,
            _ => Observed::Unconfirmed,
        })
    }

    /// Reports whether the agent confirmed the state that was pushed last.
    fn in_sync(&self) -> bool {
        let generation = |pushed: &Option<Arc<PushedState>>| pushed.as_ref().map(|pushed| pushed.generation);
        self.pushed.is_some() && generation(&self.pushed) == generation(&self.confirmed)
    }

    pub(super) fn report(&self) -> LayerReport {
        let (status, detail) = match (&self.session, &self.refusal) {
            (None, _) => (LayerStatus::Unreachable, "its agent is not connected".to_owned()),
            (Some(_), Some(refusal)) => (LayerStatus::Failed, refusal.error.clone()),
            (Some(_), None) if self.in_sync() => self.held(),
            (Some(_), None) => (LayerStatus::Pending, String::new()),
        };
        LayerReport {
            status,
            detail,
            last_seen: self.last_seen,
            version: self.version.clone(),
            online: self.session.is_some(),
            boot_id: self.session.as_ref().map(|_| self.origin.boot_id.clone()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
