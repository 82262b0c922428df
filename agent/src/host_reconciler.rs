//! The host reconciler: the one place where the accepted state, the kernel's table and the ledger meet, so that the three
//! cannot disagree for long.
//!
//! - The *accepted state* ([`crate::accepted`]) is in memory: the last desired state of the broker that this host holds.
//! - The *table* is in the kernel, behind [`HostLayer`]. It enforces the state, and ends windows by itself.
//! - The *ledger* ([`crate::ledger`]) is on disk: the accepted state, for the next start.
//! - The *fallback* is a policy that denies the configured or well-known management ports, for a start with no usable
//!   ledger.
//! - *Damage* is a difference in the table that another process made.
//!
//! The rule: kernel, then ledger, then the answer. [`HostReconciler::accept`] makes the kernel hold the new state and reads
//! it back (a state that closes and opens takes two transactions, the closes in the first), writes the state to the ledger,
//! and only then accepts it and answers the broker. So a state that was answered without an error is enforced and survives a
//! restart.
//!
//! What happens on each failure:
//!
//! - A crash before the ledger is written is as if the message had never come: the broker received no answer and sends the
//!   state again.
//! - The kernel refuses: nothing opens. The broker receives the error, and the earlier state stays, without what the kernel has
//!   closed already.
//! - The state is past the agent's own bounds ([`crate::limits`]): the host closes what the state closes, and opens nothing.
//!   Before the first accepted state nothing changes: the table of an earlier run or the fallback stays.
//! - The disk refuses: the host closes what the new state closes, and opens nothing (see [`AcceptedState::restricted_to`]),
//!   because a restart would not know of it. Before the first accepted state the host denies the ports of the new state besides
//!   those of the fallback.
//! - The kernel refuses a state that was accepted before (at a start, or after damage): [`HostReconciler::tick`] tries again
//!   every second, and the status shows that the host does not hold its state.
//! - The ledger cannot be read, or is missing, at a start: it never opens anything (I1). A table that the kernel holds stays
//!   as it is until a broker sends a state, or until another process changes it; then the fallback replaces it. Where there
//!   is no table, an unreadable ledger leads to the fallback at once, and a missing one, which is that of a new host, to the
//!   bootstrap ports of the configuration.
//! - Another process changes the table: [`HostReconciler::repair`] finds and repairs the damage when the watch reports the
//!   change, and a check every minute finds what the watch missed.
//! - A state in mode enforce comes to a host that was not confirmed: the host layer holds it on trial, or only monitors: see
//!   [`crate::enforcement`]. The accepted state stays what the broker wants.
//! - The machine was suspended, or the wall clock was stepped: see [`clock_watch`].
//!
//! All of this runs on one thread ([`handle`]), because the firewall and the disk block.

mod clock_watch;
mod forward_step;
mod handle;

use std::collections::BTreeSet;
use std::time::Duration;

use postern_core::{KeyHash, Mode};

use crate::accepted::{AcceptedState, Stale};
use crate::clock::{BootTime, Moment};
use crate::config::AgentConfig;
use crate::desired_state::DesiredState;
use crate::enforcement::PhaseName;
use crate::enforcement::keeper::EnforcementKeeper;
use crate::enrolment_mark::EnrolmentMark;
use crate::firewall::policy::{HeldWindow, HostPolicy};
use crate::ledger::{Ledger, LedgerError};
use crate::limits::{LimitExceeded, StateLimits};
use crate::window_log;
use clock_watch::ClockWatch;
use forward_step::ForwardStep;
pub use handle::{CommandAnswer, Commands, ReconcilerHandle, answer_or_pending, channel, serve, suspended};

/// The host layer as the reconciler uses it.
pub trait HostLayer {
    /// The error of the host layer.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes the kernel hold exactly this policy, and reads it back. Cheap where the kernel holds it already.
    ///
    /// # Errors
    /// The kernel refused; then it holds what it held before.
    fn ensure(&mut self, policy: &HostPolicy, now: BootTime) -> Result<(), Self::Error>;

    /// Reports whether the kernel holds a table of Postern, whatever is in it.
    ///
    /// # Errors
    /// The kernel does not answer.
    fn is_loaded(&mut self) -> Result<bool, Self::Error>;

    /// Returns, in words, what other processes changed in the table since the last call; `ensure` finds and repairs it.
    fn damage(&mut self) -> Option<String>;
}

/// The accepted state, the kernel's table and the ledger of this host.
#[derive(Debug)]
pub struct HostReconciler<H> {
    host: H,
    ledger: Ledger,
    state: AcceptedState,
    /// The mark that an enrolment leaves.
    enrolment: EnrolmentMark,
    /// The key of the session.
    session_key: Option<KeyHash>,
    /// The key of an enrolment whose first state is in the ledger, while the mark names it still.
    followed_key: Option<KeyHash>,
    /// The policy to hold while nothing is accepted because the ledger could not be read.
    fallback: HostPolicy,
    table: TableState,
    /// The phase of this host on its way to enforcement.
    enforcement: EnforcementKeeper,
    clock_watch: ClockWatch,
    limits: StateLimits,
    /// Damage that was found at this moment and not yet returned.
    damage: Option<(BootTime, Damage)>,
    /// The step of the wall clock by which windows may have to be shortened.
    step: Option<ForwardStep>,
    is_connected: bool,
}

/// The generations that this host has followed, for the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowedGenerations {
    /// The generation accepted last; 0 if none.
    pub state: u64,
    /// The highest generation of policies; 0 if none, or in the first session of an enrolment.
    pub policies: u64,
    /// True in the first session of an enrolment.
    pub is_enrolment: bool,
}

/// The outcome of a check of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairOutcome {
    /// True where the kernel holds the state that it should, as far as the agent knows.
    pub in_sync: bool,
    /// The damage that was found and repaired; returned once.
    pub damage: Option<Damage>,
    /// True where the wall clock went forward and a broker can be asked for the true ends of the windows.
    pub asks_broker: bool,
}

/// A change of the table that another process made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The change, in words.
    pub what: String,
    /// The longest time for which the table was changed: the time since it was last known to be right.
    pub exposed_at_most: Duration,
}

/// The relation of the kernel's table to the wanted policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TableState {
    /// The kernel holds the wanted policy.
    Applied,
    /// The last attempt failed; the next tick tries again.
    Failed,
    /// The kernel holds a table of an earlier run, and the ledger cannot be read: the agent has no better policy.
    LeftAlone,
}

/// A desired state was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError<E: std::error::Error + 'static> {
    /// The state is older than one received before.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The state is past a bound of this host. What it opens is not open. What it closes is closed, unless this host has accepted
    /// no state yet.
    #[error("this host does not hold generation {generation}")]
    Limit {
        /// The generation of the state.
        generation: u64,
        /// The bound.
        #[source]
        source: LimitExceeded,
    },
    /// The kernel refused the state. It holds what it held before, without what it had closed already.
    #[error("the host firewall refused generation {generation}")]
    Firewall {
        /// The generation of the state.
        generation: u64,
        /// The cause.
        #[source]
        source: E,
    },
    /// The ledger could not be written. What the state closes is closed; what it opens is not open.
    #[error("the ledger cannot store generation {generation}, so none of its new windows was opened")]
    Ledger {
        /// The generation of the state.
        generation: u64,
        /// The cause.
        #[source]
        source: LedgerError,
    },
    /// The kernel holds a table of an earlier run, and the ledger cannot be read: the agent does not know its ports, so it cannot
    /// close its windows and keep them protected.
    #[error(
        "the ledger cannot be used, so the table of an earlier run stays as it is, and its windows until their ends; \
         `postern-agent doctor` names the cause"
    )]
    UnknownTable,
}

impl<H: HostLayer> HostReconciler<H> {
    /// Loads the ledger and puts its state into the kernel, before anything else happens. If the kernel refuses, each
    /// [`Self::tick`] tries again.
    pub fn start(
        mut host: H,
        ledger: Ledger,
        config: &AgentConfig,
        now: &Moment,
        suspended: Duration,
    ) -> Self {
        let fallback =
            |ports| HostPolicy { mode: Mode::Enforce, ports, windows: Vec::new(), trial_until: None };
        let loaded = ledger.load(now);
        let is_loaded = host.is_loaded().unwrap_or_else(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot find out whether the kernel holds the table"
            );
            false
        });
        let has_enforced = match &loaded {
            Ok(Some(accepted)) => accepted.mode == Mode::Enforce && !accepted.ports.is_empty(),
            Ok(None) => is_loaded,
            Err(_) => true,
        };
        let mut reconciler = Self {
            host,
            ledger,
            state: AcceptedState::default(),
            enrolment: EnrolmentMark::beside(&config.identity_dir()),
            session_key: None,
            followed_key: None,
            fallback: fallback(config.fallback_ports()),
            table: TableState::Applied,
            enforcement: EnforcementKeeper::start(config, has_enforced, now),
            clock_watch: ClockWatch::new(now, suspended),
            limits: config.limits,
            damage: None,
            step: None,
            is_connected: false,
        };
        match loaded {
            Ok(Some(mut accepted)) if !accepted.is_bootstrap => {
                if accepted.generation == NO_GENERATION {
                    // No state was accepted whole, so the ports of the configuration are protected as well.
                    accepted.ports.extend(&config.bootstrap);
                }
                reconciler.restore(accepted, now);
            }
            Ok(None) if is_loaded => {
                tracing::error!(ledger = %reconciler.ledger.path().display(), "the ledger is missing; the kernel's table stays as it is until the broker sends a state");
                reconciler.table = TableState::LeftAlone;
            }
            Ok(_) => reconciler.restore(bootstrap(config), now),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                if is_loaded {
                    tracing::error!(
                        error,
                        "the ledger cannot be used; the kernel's table stays as it is until the broker sends a state"
                    );
                    reconciler.table = TableState::LeftAlone;
                } else {
                    tracing::error!(error, ports = ?reconciler.fallback.ports, "the ledger cannot be used; the host denies the fallback ports until the broker sends a state");
                    reconciler.ensure(now);
                }
            }
        }
        reconciler
    }

    /// Begins a session with the broker under the certificate of this key; `None` if the key is not known. Returns the generations that
    /// this host has followed.
    pub fn begin_session(&mut self, key: Option<KeyHash>) -> FollowedGenerations {
        if let Some(step) = &mut self.step {
            step.asked = true;
        }
        self.session_key = key;
        let is_enrolment = key.filter(|key| self.followed_key != Some(*key)).is_some_and(|key| {
            self.enrolment.names(key).unwrap_or_else(|error| {
                tracing::warn!(%error, file = %self.enrolment.path().display(), "cannot read the mark of an enrolment; the host keeps its protection");
                false
            })
        });
        self.state.begin_session(is_enrolment);
        FollowedGenerations { state: self.state.generation(), policies: self.state.policies(), is_enrolment }
    }

    /// Makes this host hold a desired state, and writes it to the ledger. What the state closes is closed first.
    ///
    /// # Errors
    /// The state is stale or past a bound, or the kernel or the disk refused.
    pub fn accept(&mut self, desired: DesiredState, now: &Moment) -> Result<(), AcceptError<H::Error>> {
        let generation = desired.generation;
        // Judged as the broker has sent it, with windows that have ended since.
        let within = self.limits.check(&desired);
        let wanted = self.state.consider(desired, now.boottime)?;
        // With the ports that the host keeps, it may be more than the broker has sent.
        let within = within.and_then(|()| self.limits.check(&wanted));
        // The kernel has closed these by itself: they are no work for a transaction.
        self.drop_ended(now);
        if let Err(source) = within {
            if let Some(accepted) = self.state.accepted() {
                self.restrict_to(&self.limits.fitting(wanted, accepted), now);
                self.save(now);
            }
            return Err(AcceptError::Limit { generation, source });
        }
        self.enforcement.begin_if_first(&wanted.policy(), now);
        let policy = self.enforcement.shape(wanted.policy());
        let has_closed =
            self.close_first(&policy, now).map_err(|source| AcceptError::Firewall { generation, source })?;
        if let Err(source) = self.apply(&policy, now) {
            if has_closed {
                // The kernel has closed some of the accepted state's windows, which must not come back.
                self.restrict_to(&wanted, now);
                self.save(now);
            }
            return Err(AcceptError::Firewall { generation, source });
        }
        self.table = TableState::Applied;
        if let Err(source) = self.write_ledger(&wanted, now) {
            self.restrict_to(&wanted, now);
            return Err(AcceptError::Ledger { generation, source });
        }
        self.clock_watch.written(now);
        self.step.take_if(|step| step.asked);
        window_log::accepted(self.state.accepted(), &wanted, now.boottime);
        if wanted.keeps && self.state.accepted().is_none_or(|accepted| !accepted.keeps) {
            tracing::error!(
                event = "protection.kept",
                generation,
                policies = wanted.policies,
                "the broker takes protection off with policies that are not newer than those that this host has followed; the host \
                 keeps its ports shut"
            );
        }
        if self.state.is_first_of_enrolment() {
            self.followed_key = self.session_key;
        }
        self.state.accept(wanted);
        self.release_mark();
        Ok(())
    }

    /// Takes the key of an enrolment that this host follows out of the mark. If that fails, the next accepted state tries again.
    fn release_mark(&mut self) {
        let Some(key) = self.followed_key else { return };
        match self.enrolment.release(key) {
            Ok(true) => self.followed_key = None,
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, file = %self.enrolment.path().display(), "cannot remove the mark of an enrolment");
            }
        }
    }

    /// Closes what a policy closes, in a transaction of its own, if the policy also opens something: opening takes longer the
    /// more it opens, and no close waits for it. Returns whether it did.
    fn close_first(&mut self, wanted: &HostPolicy, now: &Moment) -> Result<bool, H::Error> {
        let Some(accepted) = self.state.accepted() else { return Ok(false) };
        let accepted = self.enforcement.shape(accepted.policy());
        if !accepted.admits_beyond(wanted) || !wanted.admits_beyond(&accepted) {
            return Ok(false);
        }
        self.apply(&accepted.common_with(wanted), now).map(|()| true)
    }

    /// Holds only what the accepted state and `wanted` have in common. Before the first accepted state the host denies the ports of
    /// `wanted` besides those of the fallback.
    fn restrict_to(&mut self, wanted: &DesiredState, now: &Moment) {
        match self.state.restricted_to(wanted) {
            Some(restricted) => {
                window_log::accepted(self.state.accepted(), &restricted, now.boottime);
                self.state.restrict(restricted);
            }
            None => self.fallback.ports.extend(&wanted.ports),
        }
        self.ensure(now);
    }

    /// Holds these windows and no others, and keeps every port protected: the broker does not know this host, or cannot read its
    /// policies. A host that holds the fallback has no window.
    ///
    /// # Errors
    /// As [`Self::accept`], or the host holds a table that the agent does not know.
    pub fn keep_protection(
        &mut self,
        generation: u64,
        windows: BTreeSet<HeldWindow>,
        now: &Moment,
    ) -> Result<(), AcceptError<H::Error>> {
        let accepted = match self.state.accepted().cloned() {
            Some(accepted) => accepted,
            None if self.table == TableState::LeftAlone => return Err(AcceptError::UnknownTable),
            None if windows.is_empty() => return Ok(()),
            None => {
                let HostPolicy { mode, ports, .. } = self.fallback.clone();
                DesiredState { ports, mode, ..empty(generation) }
            }
        };
        // The state has no policies: what the host kept it still keeps, except in the first session of an enrolment.
        let keeps = accepted.keeps && !self.state.is_first_of_enrolment();
        let policies = self.state.policies();
        self.accept(
            DesiredState { generation, windows, policies, keeps, is_bootstrap: false, ..accepted },
            now,
        )
    }

    /// Checks the table after another process may have changed it, and repairs it.
    pub fn repair(&mut self, now: &Moment) -> RepairOutcome {
        let unknown = self.table == TableState::LeftAlone;
        self.ensure(now);
        if unknown {
            self.note_damage("the table was changed while the ledger could not be used".into(), now);
        }
        let damage = self.damage.take().map(|(_, damage)| damage);
        RepairOutcome { in_sync: self.protects(), damage, asks_broker: false }
    }

    /// Does the work of time, about every second: drops windows that ended, notices a suspend or a step of the clock (one that goes
    /// forward shortens windows), and tries again what failed. `suspended` is the time for which the machine has been suspended since
    /// boot.
    ///
    /// Returns damage only if no [`Self::repair`] has fetched it within [`WATCH_EVENT_GRACE`]: the caller of that knows the
    /// process that did it.
    pub fn tick(&mut self, now: &Moment, suspended: Duration) -> RepairOutcome {
        if self.enforcement.follow(now) || self.waits_for_trial() {
            self.ensure_unless_left_alone(now);
        }
        let asks_broker = self.notice_step(now);
        self.shorten_by_step(now);
        self.drop_ended(now);
        if self.clock_watch.was_suspended(suspended) {
            tracing::info!("the machine was suspended; setting the kernel's timeouts again");
            self.ensure_unless_left_alone(now);
        } else if self.table == TableState::Failed || self.clock_watch.check_is_due(now) {
            self.ensure_unless_left_alone(now);
        }
        let holds_windows = self.state.accepted().is_some_and(|accepted| !accepted.windows.is_empty());
        if self.step.is_none() && self.clock_watch.write_is_due(now, holds_windows) {
            self.save(now);
        }
        let unattributed = self.damage.take_if(|(found, _)| now.boottime.since(*found) >= WATCH_EVENT_GRACE);
        let damage = unattributed.map(|(_, damage)| damage);
        RepairOutcome { in_sync: self.protects(), damage, asks_broker }
    }

    /// Notes whether a broker can be asked for the ends of windows.
    pub fn set_connected(&mut self, is_connected: bool) {
        self.is_connected = is_connected;
    }

    /// Notices a step of the wall clock forward. If a hypervisor has paused this machine, that step is the time that no other clock has
    /// counted, and every window ends late by as much. Returns whether a broker can be asked.
    fn notice_step(&mut self, now: &Moment) -> bool {
        let Some(by) = self.clock_watch.stepped_forward(now) else { return false };
        if self.state.accepted().is_none_or(|accepted| accepted.windows.is_empty()) {
            return false;
        }
        self.step = Some(ForwardStep::after(self.step.as_ref(), by, now.boottime));
        self.is_connected
    }

    /// Shortens every window by the step that was noticed, if that is due.
    fn shorten_by_step(&mut self, now: &Moment) {
        let is_connected = self.is_connected;
        let Some(step) = self.step.take_if(|step| step.is_due(is_connected, now.boottime)) else { return };
        self.state.shorten(step.by);
        tracing::warn!(
            event = "clock.stepped_forward",
            seconds = step.by.as_secs(),
            "the wall clock went forward: it was set, or this machine was paused; every window ends earlier by as much until a broker \
             sends its end again"
        );
        self.drop_ended(now);
        self.ensure_unless_left_alone(now);
        self.save(now);
    }

    /// Returns the phase of this host on its way to enforcement.
    pub fn phase(&self) -> PhaseName {
        self.enforcement.phase()
    }

    /// Reports whether this host has a state in mode enforce, and its trial could not begin.
    fn waits_for_trial(&self) -> bool {
        let enforces = |accepted: &DesiredState| accepted.mode == Mode::Enforce && !accepted.ports.is_empty();
        self.enforcement.phase() == PhaseName::Untried && self.state.accepted().is_some_and(enforces)
    }

    /// Returns the state accepted last.
    pub fn accepted(&self) -> Option<&DesiredState> {
        self.state.accepted()
    }

    /// Reports whether the kernel holds the state that it should, as far as the agent knows.
    pub fn protects(&self) -> bool {
        self.table != TableState::Failed
    }

    fn restore(&mut self, accepted: DesiredState, now: &Moment) {
        window_log::restored(&accepted, now.boottime);
        self.state = AcceptedState::restored(Some(accepted));
        self.ensure(now);
        self.save(now);
    }

    /// Drops the windows that the kernel has closed at their end.
    fn drop_ended(&mut self, now: &Moment) {
        window_log::ended(&self.state.drop_ended(now.boottime));
    }

    fn ensure_unless_left_alone(&mut self, now: &Moment) {
        if self.table != TableState::LeftAlone {
            self.ensure(now);
        }
    }

    fn ensure(&mut self, now: &Moment) {
        let policy = self.state.accepted().map_or_else(|| self.fallback.clone(), DesiredState::policy);
        self.enforcement.begin_if_first(&policy, now);
        let policy = self.enforcement.shape(policy);
        self.table = match self.apply(&policy, now) {
            Ok(()) => TableState::Applied,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    generation = self.state.generation(),
                    "the host firewall refused the policy; the agent will try again"
                );
                TableState::Failed
            }
        };
    }

    fn apply(&mut self, policy: &HostPolicy, now: &Moment) -> Result<(), H::Error> {
        let outcome = self.host.ensure(policy, now.boottime);
        if let Some(what) = self.host.damage() {
            self.note_damage(what, now);
        }
        if outcome.is_ok() {
            self.clock_watch.applied(now);
            self.enforcement.applied(policy);
        }
        outcome
    }

    fn note_damage(&mut self, what: String, now: &Moment) {
        let exposed_at_most = self.clock_watch.since_applied(now);
        self.damage.get_or_insert((now.boottime, Damage { what, exposed_at_most }));
    }

    /// Writes a state to the ledger. The mark of enforcement is there before: a ledger without one is that of a host that has enforced.
    fn write_ledger(&mut self, state: &DesiredState, now: &Moment) -> Result<(), LedgerError> {
        let persisted = self.enforcement.persist();
        persisted
            .map_err(|source| LedgerError::Write { path: self.enforcement.path().to_owned(), source })?;
        self.ledger.save(state, now)
    }

    fn save(&mut self, now: &Moment) {
        let Some(accepted) = self.state.accepted().cloned() else { return };
        if let Err(error) = self.write_ledger(&accepted, now) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot write the ledger; the accepted state may not survive a restart"
            );
        }
        self.clock_watch.written(now);
    }
}

/// The time that the watch may take to report a change whose damage was found already.
const WATCH_EVENT_GRACE: Duration = Duration::from_secs(1);

/// The generation of a host that has accepted no state of a broker.
const NO_GENERATION: u64 = 0;

/// Returns the state to hold before the first contact with a broker.
fn bootstrap(config: &AgentConfig) -> DesiredState {
    DesiredState { ports: config.bootstrap.clone(), is_bootstrap: true, ..empty(NO_GENERATION) }
}

/// Returns a state that protects nothing.
fn empty(generation: u64) -> DesiredState {
    DesiredState {
        generation,
        mode: Mode::Enforce,
        ports: BTreeSet::new(),
        windows: BTreeSet::new(),
        policies: 0,
        keeps: false,
        is_bootstrap: false,
    }
}

#[cfg(test)]
mod tests;
