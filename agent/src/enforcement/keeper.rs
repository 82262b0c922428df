//! The keeper: the part of the running agent that follows the mark, ends a trial, and says how the host layer holds a policy.

use std::io;
use std::time::Duration;

use postern_core::Mode;
use postern_runtime::error_chain::error_chain;

use super::mark::FileStamp;
use super::{EnforcementMark, OlderConnections, Phase, PhaseName, evidence};
use crate::clock::Moment;
use crate::config::AgentConfig;
use crate::firewall::policy::HostPolicy;

/// The phase of this machine, and its mark.
#[derive(Debug)]
pub(crate) struct EnforcementKeeper {
    mark: EnforcementMark,
    /// The time of a trial; `None` where each state is enforced at once.
    confirm_within: Option<Duration>,
    phase: Phase,
    /// The content of the file that was read or written last.
    seen: Option<FileStamp>,
    /// Set while the file has another phase than this keeper, or none.
    unwritten: bool,
}

impl EnforcementKeeper {
    /// Reads the mark. `has_enforced` says whether this machine shows that it has enforced before: that counts where there is no mark.
    pub(crate) fn start(config: &AgentConfig, has_enforced: bool, now: &Moment) -> Self {
        let mark = EnforcementMark::in_dir(&config.state_dir);
        let confirm_within = config.confirm_within;
        let (seen, found) = (mark.stamp(), mark.read());
        let from_nothing = if has_enforced { Phase::Confirmed } else { Phase::Untried };
        let (phase, unwritten) = match found {
            // Without a trial in the configuration each state is enforced at once, also after it is set again.
            Ok(found) if confirm_within.is_none() => {
                (Phase::Confirmed, found.is_some_and(|phase| phase != Phase::Confirmed))
            }
            Ok(Some(phase)) => (phase, false),
            Ok(None) => (from_nothing, true),
            Err(error) => {
                tracing::error!(
                    event = "enforce.mark_unreadable",
                    error = error_chain(&error),
                    "this host counts as confirmed and stays shut"
                );
                (Phase::Confirmed, false)
            }
        };
        let mut keeper = Self { mark, confirm_within, phase, seen, unwritten };
        keeper.let_lapse(now);
        keeper.try_write();
        keeper
    }

    /// Returns the name of the present phase.
    pub(crate) fn phase(&self) -> PhaseName {
        self.phase.name()
    }

    /// Returns the policy that the host layer holds for a policy that this machine should hold in the end.
    pub(crate) fn shape(&self, policy: HostPolicy) -> HostPolicy {
        self.phase.shape(policy)
    }

    /// Begins the trial, if this policy is the first that this machine enforces. Without the mark on disk no trial begins, and the machine
    /// goes on monitoring.
    pub(crate) fn begin_if_first(&mut self, policy: &HostPolicy, now: &Moment) {
        let Some(lasts) = self.confirm_within else { return };
        if self.phase != Phase::Untried || policy.mode != Mode::Enforce || policy.ports.is_empty() {
            return;
        }
        self.phase = Phase::begin(lasts, now);
        self.unwritten = true;
        if let Err(error) = self.write() {
            self.phase = Phase::Untried;
            tracing::error!(
                event = "enforce.trial_not_begun",
                %error,
                file = %self.mark.path().display(),
                "cannot write the mark of a trial; this host only monitors until that succeeds"
            );
            return;
        }
        tracing::warn!(
            event = "enforce.trial_begun",
            seconds = lasts.as_secs(),
            "this host enforces on trial, and goes back to monitoring unless `postern-agent confirm` is run in a session that came in \
             after this"
        );
    }

    /// Notes that the kernel holds the shaped policy. The connections that are there when a trial's table has closed are no evidence.
    pub(crate) fn applied(&mut self, policy: &HostPolicy) {
        let Phase::Trial(trial) = &mut self.phase else { return };
        if policy.trial_until == Some(trial.end) && trial.older == OlderConnections::NotClosedYet {
            trial.older = evidence::present(&policy.ports);
            self.unwritten = true;
            self.try_write();
        }
    }

    /// Follows what a command has written, and ends a trial whose time is over. Returns whether the phase changed.
    pub(crate) fn follow(&mut self, now: &Moment) -> bool {
        if self.confirm_within.is_none() {
            self.try_write();
            return false;
        }
        let before = self.phase.clone();
        self.read_changed();
        self.let_lapse(now);
        self.try_write();
        before != self.phase
    }

    /// Makes sure that there is a mark, so that what goes to the ledger after this is not taken for that of a machine that has enforced.
    ///
    /// # Errors
    /// The mark cannot be written.
    pub(crate) fn persist(&mut self) -> io::Result<()> {
        if self.unwritten && self.seen.is_none() { self.write() } else { Ok(()) }
    }

    /// Returns the path of the mark.
    pub(crate) fn path(&self) -> &std::path::Path {
        self.mark.path()
    }

    /// Reads the file if another process has written it.
    fn read_changed(&mut self) {
        let stamp = self.mark.stamp();
        if stamp == self.seen {
            return;
        }
        self.seen = stamp;
        match self.mark.read() {
            Ok(Some(phase)) => {
                if phase.name() != self.phase.name() {
                    tracing::warn!(
                        event = "enforce.changed",
                        before = %self.phase.name(),
                        after = %phase.name(),
                        "an operator of this host changed how it enforces"
                    );
                }
                (self.phase, self.unwritten) = (phase, false);
            }
            // A running agent knows its phase: it writes a mark that was removed again.
            Ok(None) => self.unwritten = true,
            Err(error) => tracing::error!(
                event = "enforce.mark_unreadable",
                error = error_chain(&error),
                "this host goes on as it is"
            ),
        }
    }

    fn let_lapse(&mut self, now: &Moment) {
        let before = self.phase.name();
        let phase = std::mem::replace(&mut self.phase, Phase::Untried).at(now);
        if phase.name() != before {
            self.unwritten = true;
            tracing::error!(
                event = "enforce.lapsed",
                "no operator confirmed the trial: this host went back to monitoring, and its ports are open; run `postern-agent enforce` to \
                 try again"
            );
        }
        self.phase = phase;
    }

    fn try_write(&mut self) {
        if self.unwritten
            && let Err(error) = self.write()
        {
            tracing::warn!(%error, file = %self.mark.path().display(), "cannot write the mark of enforcement");
        }
    }

    /// Writes the phase, unless another process has written or is writing the file: that content is read next.
    fn write(&mut self) -> io::Result<()> {
        let Some(lock) = self.mark.try_lock()? else {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "a command is changing it"));
        };
        if self.mark.stamp() != self.seen {
            return Err(io::Error::new(io::ErrorKind::WouldBlock, "a command has changed it"));
        }
        self.mark.write(&self.phase, &lock)?;
        (self.seen, self.unwritten) = (self.mark.stamp(), false);
        Ok(())
    }
}
