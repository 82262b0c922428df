//! The reconciler: the one place where state, kernel and ledger meet, so that the three cannot disagree for long.
//!
//! The order is kernel, then ledger, then the answer. A crash before the ledger is written is as if the message had
//! never come: it was not answered, and the broker tells it again. What the kernel refuses changes nothing; what the
//! disk refuses closes but does not open (see [`AcceptedState::restricted_to`]).
//!
//! I1 across restarts: a ledger that cannot be read never opens anything. The table that is in the kernel stays, and
//! where there is none the fallback ports are denied.

mod clock_watch;
mod handle;

use std::collections::BTreeSet;
use std::time::Duration;

use postern_core::Mode;

use crate::accepted::{AcceptedState, Stale};
use crate::clock::{BootTime, Moment};
use crate::config::Config;
use crate::desired_state::DesiredState;
use crate::firewall::policy::HostPolicy;
use crate::ledger::{Ledger, LedgerError};
use crate::window_log;
use clock_watch::ClockWatch;
pub use handle::{Answer, Commands, ReconcilerHandle, answer_or_pending, channel, serve, suspended};

/// What the host layer's code offers the reconciler.
pub trait HostLayer {
    /// Why it could not.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Makes the kernel hold exactly this, and reads it back. Cheap where it holds it already.
    ///
    /// # Errors
    /// The kernel refused; then it holds what it held before.
    fn ensure(&mut self, policy: &HostPolicy, now: BootTime) -> Result<(), Self::Error>;

    /// Whether the kernel holds a table of ours, whatever is in it.
    ///
    /// # Errors
    /// The kernel does not say.
    fn is_loaded(&mut self) -> Result<bool, Self::Error>;

    /// What others changed in our table since the last call, in words; found by `ensure`, and put right by it.
    fn damage(&mut self) -> Option<String>;
}

/// The accepted state, the kernel and the ledger of this host.
#[derive(Debug)]
pub struct HostReconciler<H> {
    host: H,
    ledger: Ledger,
    state: AcceptedState,
    /// What to hold while nothing is accepted: the ledger could not be read.
    fallback: HostPolicy,
    table: TableState,
    clock_watch: ClockWatch,
    /// What was found when, and not yet told.
    damage: Option<(BootTime, Damage)>,
}

/// What a look at the table came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairOutcome {
    /// Whether the kernel holds what it should, as far as is known.
    pub in_sync: bool,
    /// What others had changed, told once.
    pub damage: Option<Damage>,
}

/// What others changed in our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// It, in words.
    pub what: String,
    /// How long ago it was, at the most, when it was found: the table was whole then.
    pub exposed_at_most: Duration,
}

/// How the kernel stands to what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TableState {
    /// It was made to hold it.
    Applied,
    /// The last attempt failed; to be tried again.
    Failed,
    /// It holds a table that we cannot better: the ledger could not be read.
    LeftAlone,
}

/// A desired state was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError<E: std::error::Error + 'static> {
    /// It is older than one heard before.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// The kernel does not hold it, but what it held before.
    #[error("the host firewall refused generation {generation}")]
    Firewall {
        /// Its generation.
        generation: u64,
        /// Why.
        #[source]
        source: E,
    },
    /// It could not be written down. What it closes is closed; what it opens is not open.
    #[error("generation {generation} cannot be kept across a restart, so nothing of it was opened")]
    Ledger {
        /// Its generation.
        generation: u64,
        /// Why.
        #[source]
        source: LedgerError,
    },
}

impl<H: HostLayer> HostReconciler<H> {
    /// Loads the ledger and puts what it says into the kernel, before anything else happens. A kernel that refuses is
    /// asked again at every [`Self::tick`].
    pub fn start(host: H, ledger: Ledger, config: &Config, now: &Moment, suspended: Duration) -> Self {
        let fallback = |ports| HostPolicy { mode: Mode::Enforce, ports, windows: Vec::new() };
        let mut reconciler = Self {
            host,
            ledger,
            state: AcceptedState::default(),
            fallback: fallback(config.fallback_ports()),
            table: TableState::Applied,
            clock_watch: ClockWatch::new(now, suspended),
            damage: None,
        };
        match reconciler.ledger.load(now) {
            Ok(Some(accepted)) if accepted.generation != BOOTSTRAP_GENERATION => {
                reconciler.restore(accepted, now)
            }
            Ok(None) if reconciler.table_is_loaded() => {
                tracing::error!(ledger = %reconciler.ledger.path().display(), "the ledger is gone; the kernel's table stays as it is until the broker is reached");
                reconciler.table = TableState::LeftAlone;
            }
            Ok(_) => reconciler.restore(bootstrap(config), now),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                if reconciler.table_is_loaded() {
                    tracing::error!(
                        error,
                        "the ledger cannot be used; the kernel's table stays as it is until the broker is reached"
                    );
                    reconciler.table = TableState::LeftAlone;
                } else {
                    tracing::error!(error, ports = ?reconciler.fallback.ports, "the ledger cannot be used; denying the fallback ports until the broker is reached");
                    reconciler.ensure(now);
                }
            }
        }
        reconciler
    }

    /// A session with the broker begins. Returns the generation accepted last; 0 if none.
    pub fn begin_session(&mut self) -> u64 {
        self.state.begin_session();
        self.state.generation()
    }

    /// Makes this host hold what it was told, and writes it down.
    ///
    /// # Errors
    /// It is stale, or the kernel or the disk refused.
    pub fn accept(&mut self, desired: DesiredState, now: &Moment) -> Result<(), AcceptError<H::Error>> {
        let generation = desired.generation;
        let wanted = self.state.consider(desired, now.boottime)?;
        let applied = self.apply(&wanted.policy(), now);
        applied.map_err(|source| AcceptError::Firewall { generation, source })?;
        self.table = TableState::Applied;
        if let Err(source) = self.ledger.save(&wanted, now) {
            let restricted = self.state.restricted_to(&wanted);
            window_log::accepted(self.state.accepted(), &restricted, now.boottime);
            self.state.accept(restricted);
            self.ensure(now);
            return Err(AcceptError::Ledger { generation, source });
        }
        self.clock_watch.written(now);
        window_log::accepted(self.state.accepted(), &wanted, now.boottime);
        self.state.accept(wanted);
        Ok(())
    }

    /// Closes every window and goes on protecting what is protected: the broker does not know this host, so that nobody knows
    /// what its windows are for. A host that has accepted nothing yet has no window.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn close_windows(&mut self, generation: u64, now: &Moment) -> Result<(), AcceptError<H::Error>> {
        match self.state.accepted().cloned() {
            Some(accepted) => {
                self.accept(DesiredState { generation, windows: BTreeSet::new(), ..accepted }, now)
            }
            None => Ok(()),
        }
    }

    /// Someone may have changed the table: looks at it, and puts it back.
    pub fn repair(&mut self, now: &Moment) -> RepairOutcome {
        let unknown = self.table == TableState::LeftAlone;
        self.ensure(now);
        if unknown {
            self.note_damage(
                "the table was changed that was kept while the ledger could not be used".into(),
                now,
            );
        }
        RepairOutcome { in_sync: self.protects(), damage: self.damage.take().map(|(_, damage)| damage) }
    }

    /// To be called every second or so: windows end, machines wake from suspend, clocks are stepped, and what failed is
    /// tried again. `suspended` is how long the machine has been suspended since boot.
    ///
    /// Damage is told here only if no [`Self::repair`] has fetched it within [`WATCH_EVENT_GRACE`]: whoever calls that knows who
    /// did it.
    pub fn tick(&mut self, now: &Moment, suspended: Duration) -> RepairOutcome {
        let ended = self.state.drop_ended(now.boottime);
        window_log::ended(&ended);
        if self.clock_watch.slept(suspended) {
            tracing::info!("the machine was suspended; setting the kernel's timeouts anew");
            self.ensure_unless_left_alone(now);
        } else if self.table == TableState::Failed || self.clock_watch.check_is_due(now) {
            self.ensure_unless_left_alone(now);
        }
        let holds_windows = self.state.accepted().is_some_and(|accepted| !accepted.windows.is_empty());
        if self.clock_watch.write_is_due(now, holds_windows) {
            self.save(now);
        }
        let unattributed = self.damage.take_if(|(found, _)| now.boottime.since(*found) >= WATCH_EVENT_GRACE);
        RepairOutcome { in_sync: self.protects(), damage: unattributed.map(|(_, damage)| damage) }
    }

    /// What was accepted last.
    pub fn accepted(&self) -> Option<&DesiredState> {
        self.state.accepted()
    }

    /// Whether the kernel holds what it should, as far as is known.
    pub fn protects(&self) -> bool {
        self.table != TableState::Failed
    }

    fn restore(&mut self, accepted: DesiredState, now: &Moment) {
        window_log::restored(&accepted, now.boottime);
        self.state = AcceptedState::restored(Some(accepted));
        self.ensure(now);
        self.save(now);
    }

    fn table_is_loaded(&mut self) -> bool {
        self.host.is_loaded().unwrap_or_else(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot tell whether the kernel holds our table"
            );
            false
        })
    }

    fn ensure_unless_left_alone(&mut self, now: &Moment) {
        if self.table != TableState::LeftAlone {
            self.ensure(now);
        }
    }

    fn ensure(&mut self, now: &Moment) {
        let policy = self.state.accepted().map_or_else(|| self.fallback.clone(), DesiredState::policy);
        self.table = match self.apply(&policy, now) {
            Ok(()) => TableState::Applied,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    generation = self.state.generation(),
                    "the host firewall refused what it must hold; trying again"
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
        }
        outcome
    }

    fn note_damage(&mut self, what: String, now: &Moment) {
        let exposed_at_most = self.clock_watch.since_applied(now);
        self.damage.get_or_insert((now.boottime, Damage { what, exposed_at_most }));
    }

    fn save(&mut self, now: &Moment) {
        let Some(accepted) = self.state.accepted() else { return };
        if let Err(error) = self.ledger.save(accepted, now) {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "what is held may not survive a restart"
            );
        }
        self.clock_watch.written(now);
    }
}

/// How long it may take to hear of a change that was found already.
const WATCH_EVENT_GRACE: Duration = Duration::from_secs(1);

/// The generation of a ledger that no broker has told anything yet.
const BOOTSTRAP_GENERATION: u64 = 0;

/// What to hold before the first contact with a broker.
fn bootstrap(config: &Config) -> DesiredState {
    DesiredState {
        generation: BOOTSTRAP_GENERATION,
        mode: Mode::Enforce,
        ports: config.bootstrap.clone(),
        windows: Default::default(),
    }
}

#[cfg(test)]
mod tests;
