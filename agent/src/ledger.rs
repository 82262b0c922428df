//! The ledger: the state that was accepted last, on disk. With it an agent that restarts without a broker denies what must
//! be denied, and keeps only the windows whose end is still ahead.
//!
//! I2 across restarts: within one boot a deadline stays as it is, or comes earlier by as much as the wall clock was set forward. After a
//! reboot its clock is gone. Then the time left of a window is the time that was left when the ledger was written, less the time that has
//! passed on the wall clock.
//!
//! - A wall clock that shows a time before the moment of writing is known to be wrong, and no window is kept.
//! - A wall clock that was set back by less than the time since the writing looks like a right one. It lengthens a window
//!   by that step, never past the time that was left at the writing, and only until the broker is reached.
//!
//! To keep that step small, the agent writes the ledger again whenever it has loaded it, when the wall clock is stepped,
//! and every minute while it holds windows.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use postern_core::{GrantId, Mode, ProtectedPort, SourcePrefix};
use postern_runtime::files;
use serde::{Deserialize, Serialize};

use crate::clock::{BootTime, MAX_UNNOTICED_STEP, Moment};
use crate::desired_state::DesiredState;
use crate::firewall::policy::HeldWindow;

/// The version of the file format that this agent writes, and the newest that it reads.
const VERSION: u32 = 3;

/// The file with the state that was accepted last.
#[derive(Debug, Clone)]
pub struct Ledger {
    path: PathBuf,
}

/// The ledger cannot be read, trusted or written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Reading failed.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Writing failed.
    #[error("cannot write {path}; check that its disk is there and has room")]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The content is not a ledger.
    #[error("{path} is damaged; remove it once the broker is reachable, and the agent will write it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// A newer agent wrote it.
    #[error(
        "{path} has version {version}, and this agent reads up to {VERSION}; install the newer agent again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version of the file.
        version: u32,
    },
    /// Other users may write to the file, so its content cannot be trusted.
    #[error(
        "{path} can be written by others than its owner (mode {mode:03o}); run chmod 600 after checking it"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
}

impl Ledger {
    /// Returns the ledger of a state directory. Reads nothing yet.
    pub fn in_dir(state_dir: &Path) -> Self {
        Self { path: state_dir.join("state.json") }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the state that was accepted last, without the windows that have ended; `None` before the first.
    ///
    /// # Errors
    /// The file exists and cannot be read, understood or trusted.
    pub fn load(&self, now: &Moment) -> Result<Option<DesiredState>, LedgerError> {
        Ok(self.record()?.map(|record| record.at(now)))
    }

    /// Reads the moment at which the ledger was written; `None` before the first time.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn written(&self) -> Result<Option<Moment>, LedgerError> {
        Ok(self.record()?.map(|record| record.written))
    }

    /// Writes an accepted state; durable once this function has returned.
    ///
    /// # Errors
    /// The file cannot be written; the former record is still there.
    pub fn save(&self, accepted: &DesiredState, now: &Moment) -> Result<(), LedgerError> {
        let failed = |source| LedgerError::Write { path: self.path.clone(), source };
        let content = serde_json::to_vec(&LedgerRecord::of(accepted, now)).map_err(|e| failed(e.into()))?;
        files::replace_durably(&self.path, &content, files::PRIVATE).map_err(failed)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self) -> Result<(), LedgerError> {
        files::remove(&self.path).map_err(|source| LedgerError::Write { path: self.path.clone(), source })
    }

    fn record(&self) -> Result<Option<LedgerRecord>, LedgerError> {
        let path = || self.path.clone();
        let failed = |source| LedgerError::Read { path: path(), source };
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o022 != 0 {
            return Err(LedgerError::Exposed { path: path(), mode });
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).map_err(failed)?;
        let damaged = |source| LedgerError::Damaged { path: path(), source };
        // The version is read first: a newer format need not have this one's fields.
        let LedgerVersion { version } = serde_json::from_slice(&content).map_err(damaged)?;
        if version > VERSION {
            return Err(LedgerError::Newer { path: path(), version });
        }
        serde_json::from_slice(&content).map(Some).map_err(damaged)
    }
}

#[derive(Deserialize)]
struct LedgerVersion {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LedgerRecord {
    version: u32,
    written: Moment,
    generation: u64,
    mode: Mode,
    ports: BTreeSet<ProtectedPort>,
    windows: Vec<WindowRecord>,
    /// Not in a record of version 1.
    #[serde(default)]
    policies: u64,
    #[serde(default)]
    keeps: bool,
    /// Not in a record of version 2.
    #[serde(default)]
    bootstrap: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowRecord {
    grant: GrantId,
    port: ProtectedPort,
    source: SourcePrefix,
    /// The end on the clock of the boot that wrote the record.
    deadline: BootTime,
    /// The same end on the wall clock at the time of writing.
    wall_end: Timestamp,
}

impl LedgerRecord {
    fn of(accepted: &DesiredState, now: &Moment) -> Self {
        let window = |window: &HeldWindow| WindowRecord {
            grant: window.grant,
            port: window.port,
            source: window.source,
            deadline: window.deadline,
            wall_end: now.wall.saturating_add(window.deadline.since(now.boottime)).unwrap_or(now.wall),
        };
        Self {
            version: VERSION,
            written: now.clone(),
            generation: accepted.generation,
            mode: accepted.mode,
            ports: accepted.ports.clone(),
            windows: accepted.windows.iter().map(window).collect(),
            policies: accepted.policies,
            keeps: accepted.keeps,
            bootstrap: accepted.is_bootstrap,
        }
    }

    fn at(self, now: &Moment) -> DesiredState {
        let same_boot = self.written.boot.same(&now.boot) && self.written.boottime <= now.boottime;
        let window = |window: WindowRecord| {
            let deadline = if same_boot {
                deadline_in_this_boot(&window, &self.written, now)
            } else {
                deadline_after_reboot(&window, &self.written, now)
            };
            HeldWindow { grant: window.grant, port: window.port, source: window.source, deadline }
        };
        let windows = self.windows.into_iter().map(window).collect();
        let Self { generation, mode, ports, policies, keeps, bootstrap: is_bootstrap, .. } = self;
        let mut accepted = DesiredState { generation, mode, ports, windows, policies, keeps, is_bootstrap };
        accepted.drop_ended(now.boottime);
        accepted
    }
}

/// Returns the deadline of a window that this boot wrote. If the wall clock went forward by more than the boot's clock, the machine may
/// have been paused while no agent ran.
fn deadline_in_this_boot(window: &WindowRecord, written: &Moment, now: &Moment) -> BootTime {
    let counted = now.boottime.since(written.boottime);
    let passed = Duration::try_from(now.wall.duration_since(written.wall)).unwrap_or_default();
    let step = passed.saturating_sub(counted);
    if step <= MAX_UNNOTICED_STEP {
        return window.deadline;
    }
    BootTime(window.deadline.0.saturating_sub(u64::try_from(step.as_nanos()).unwrap_or(u64::MAX)))
}

/// Returns the deadline, on this boot's clock, of a window that an earlier boot wrote.
fn deadline_after_reboot(window: &WindowRecord, written: &Moment, now: &Moment) -> BootTime {
    if now.wall < written.wall {
        return now.boottime;
    }
    let by_wall = Duration::try_from(window.wall_end.duration_since(now.wall)).unwrap_or_default();
    let when_written = window.deadline.since(written.boottime);
    now.boottime.plus(by_wall.min(when_written))
}

#[cfg(test)]
mod tests;
