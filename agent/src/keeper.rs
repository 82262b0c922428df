//! The keeper: the one place where state, kernel and ledger meet, so that the three cannot disagree for long.
//!
//! The order is kernel, then ledger, then the answer. A crash before the ledger is written is as if the message had
//! never come: it was not answered, and the broker tells it again. What the kernel refuses changes nothing; what the
//! disk refuses closes but does not open (see [`State::tightened`]).
//!
//! I1 across restarts: a ledger that cannot be read never opens anything. The table that is in the kernel stays, and
//! where there is none the fallback ports are denied.

mod handle;
mod watchful;

use std::collections::BTreeSet;
use std::time::Duration;

use postern_core::Mode;

use crate::clock::{BootTime, Moment};
use crate::config::Config;
use crate::desired::Desired;
use crate::firewall::policy::HostPolicy;
use crate::ledger::{Ledger, LedgerError};
use crate::state::{Stale, State};
use crate::trace;
pub use handle::{Answer, Commands, KeeperHandle, channel, forever, serve, suspended};
use watchful::Watchful;

/// What the host layer's code offers the keeper.
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

/// State, kernel and ledger of this host.
#[derive(Debug)]
pub struct Keeper<H> {
    host: H,
    ledger: Ledger,
    state: State,
    /// What to hold while nothing is accepted: the ledger could not be read.
    fallback: HostPolicy,
    kernel: Kernel,
    watchful: Watchful,
    /// What was found when, and not yet told.
    damage: Option<(BootTime, Damage)>,
}

/// What a look at the table came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Whether the kernel holds what it should, as far as is known.
    pub whole: bool,
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
enum Kernel {
    /// It was made to hold it.
    Ensured,
    /// The last attempt failed; to be tried again.
    Failed,
    /// It holds a table that we cannot better: the ledger could not be read.
    LeftAlone,
}

/// A desired state was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Refused<E: std::error::Error + 'static> {
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

impl<H: HostLayer> Keeper<H> {
    /// Loads the ledger and puts what it says into the kernel, before anything else happens. A kernel that refuses is
    /// asked again at every [`Self::tick`].
    pub fn start(host: H, ledger: Ledger, config: &Config, now: &Moment, suspended: Duration) -> Self {
        let fallback = |ports| HostPolicy { mode: Mode::Enforce, ports, windows: Vec::new() };
        let mut keeper = Self {
            host,
            ledger,
            state: State::default(),
            fallback: fallback(config.fallback_ports()),
            kernel: Kernel::Ensured,
            watchful: Watchful::new(now, suspended),
            damage: None,
        };
        match keeper.ledger.load(now) {
            Ok(Some(accepted)) if accepted.generation != BOOTSTRAP => keeper.restore(accepted, now),
            Ok(None) if keeper.loaded() => {
                tracing::error!(ledger = %keeper.ledger.path().display(), "the ledger is gone; the kernel's table stays as it is until the broker is reached");
                keeper.kernel = Kernel::LeftAlone;
            }
            Ok(_) => keeper.restore(bootstrap(config), now),
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                if keeper.loaded() {
                    tracing::error!(
                        error,
                        "the ledger cannot be used; the kernel's table stays as it is until the broker is reached"
                    );
                    keeper.kernel = Kernel::LeftAlone;
                } else {
                    tracing::error!(error, ports = ?keeper.fallback.ports, "the ledger cannot be used; denying the fallback ports until the broker is reached");
                    keeper.ensure(now);
                }
            }
        }
        keeper
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
    pub fn accept(&mut self, told: Desired, now: &Moment) -> Result<(), Refused<H::Error>> {
        let generation = told.generation;
        let wanted = self.state.consider(told, now.boottime)?;
        let ensured = self.set(&wanted.policy(), now);
        ensured.map_err(|source| Refused::Firewall { generation, source })?;
        self.kernel = Kernel::Ensured;
        if let Err(source) = self.ledger.save(&wanted, now) {
            let tightened = self.state.tightened(&wanted);
            trace::accepted(self.state.accepted(), &tightened, now.boottime);
            self.state.accept(tightened);
            self.ensure(now);
            return Err(Refused::Ledger { generation, source });
        }
        self.watchful.written(now);
        trace::accepted(self.state.accepted(), &wanted, now.boottime);
        self.state.accept(wanted);
        Ok(())
    }

    /// Closes every window and goes on protecting what is protected: the broker does not know this host, so that nobody knows
    /// what its windows are for. A host that has accepted nothing yet has no window.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub fn close_windows(&mut self, generation: u64, now: &Moment) -> Result<(), Refused<H::Error>> {
        match self.state.accepted().cloned() {
            Some(accepted) => self.accept(Desired { generation, windows: BTreeSet::new(), ..accepted }, now),
            None => Ok(()),
        }
    }

    /// Someone may have changed the table: looks at it, and puts it back.
    pub fn mend(&mut self, now: &Moment) -> Mended {
        let unknown = self.kernel == Kernel::LeftAlone;
        self.ensure(now);
        if unknown {
            self.found("the table was changed that was kept while the ledger could not be used".into(), now);
        }
        Mended { whole: self.protects(), damage: self.damage.take().map(|(_, damage)| damage) }
    }

    /// To be called every second or so: windows end, machines wake from suspend, clocks are stepped, and what failed is
    /// tried again. `suspended` is how long the machine has been suspended since boot.
    ///
    /// Damage is told here only if no [`Self::mend`] has fetched it within [`HEARD_WITHIN`]: whoever calls that knows who
    /// did it.
    pub fn tick(&mut self, now: &Moment, suspended: Duration) -> Mended {
        let ended = self.state.drop_ended(now.boottime);
        trace::ended(&ended);
        if self.watchful.slept(suspended) {
            tracing::info!("the machine was suspended; setting the kernel's timeouts anew");
            self.ensure_unless_left_alone(now);
        } else if self.kernel == Kernel::Failed || self.watchful.due(now) {
            self.ensure_unless_left_alone(now);
        }
        let holds_windows = self.state.accepted().is_some_and(|accepted| !accepted.windows.is_empty());
        if self.watchful.must_write(now, holds_windows) {
            self.save(now);
        }
        let unheard = self.damage.take_if(|(found, _)| now.boottime.since(*found) >= HEARD_WITHIN);
        Mended { whole: self.protects(), damage: unheard.map(|(_, damage)| damage) }
    }

    /// What was accepted last.
    pub fn accepted(&self) -> Option<&Desired> {
        self.state.accepted()
    }

    /// Whether the kernel holds what it should, as far as is known.
    pub fn protects(&self) -> bool {
        self.kernel != Kernel::Failed
    }

    fn restore(&mut self, accepted: Desired, now: &Moment) {
        trace::restored(&accepted, now.boottime);
        self.state = State::restored(Some(accepted));
        self.ensure(now);
        self.save(now);
    }

    fn loaded(&mut self) -> bool {
        self.host.is_loaded().unwrap_or_else(|error| {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot tell whether the kernel holds our table"
            );
            false
        })
    }

    fn ensure_unless_left_alone(&mut self, now: &Moment) {
        if self.kernel != Kernel::LeftAlone {
            self.ensure(now);
        }
    }

    fn ensure(&mut self, now: &Moment) {
        let policy = self.state.accepted().map_or_else(|| self.fallback.clone(), Desired::policy);
        self.kernel = match self.set(&policy, now) {
            Ok(()) => Kernel::Ensured,
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    generation = self.state.generation(),
                    "the host firewall refused what it must hold; trying again"
                );
                Kernel::Failed
            }
        };
    }

    fn set(&mut self, policy: &HostPolicy, now: &Moment) -> Result<(), H::Error> {
        let outcome = self.host.ensure(policy, now.boottime);
        if let Some(what) = self.host.damage() {
            self.found(what, now);
        }
        if outcome.is_ok() {
            self.watchful.ensured(now);
        }
        outcome
    }

    fn found(&mut self, what: String, now: &Moment) {
        let exposed_at_most = self.watchful.since_ensured(now);
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
        self.watchful.written(now);
    }
}

/// How long it may take to hear of a change that was found already.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// The generation of a ledger that no broker has told anything yet.
const BOOTSTRAP: u64 = 0;

/// What to hold before the first contact with a broker.
fn bootstrap(config: &Config) -> Desired {
    Desired {
        generation: BOOTSTRAP,
        mode: Mode::Enforce,
        ports: config.bootstrap.clone(),
        windows: Default::default(),
    }
}

#[cfg(test)]
mod tests;
