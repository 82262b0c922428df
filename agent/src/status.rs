//! The status of the agent: the running agent keeps it in a small file, and `status` shows that file together with the
//! content of the ledger.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use postern_core::checkpoint::Checkpoint;
use postern_core::{GrantId, Mode, ProtectedPort, SourcePrefix};
use postern_pki::SignedCheckpoint;
use postern_pki::credentials::Credentials;
use postern_runtime::error_chain::error_chain;
use postern_runtime::files;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::checkpoint::{self, CheckpointAlarm, KeptCheckpoint};
use crate::clock::{self, Moment};
use crate::config::AgentConfig;
use crate::enforcement::{EnforcementMark, Phase, PhaseName};
use crate::ledger::Ledger;
use crate::lock::StateDirLock;
use crate::window_log;

/// The words for protection that the host keeps against the broker.
pub(crate) const KEPT: &str = "the broker takes protection off with policies that are not newer than those that this host has followed: its store \
    went back; apply the policies again with `postern policy apply`";

/// The part of the status that only the running agent knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningStatus {
    /// The process id of the agent.
    pub pid: u32,
    /// The version of the agent.
    pub version: String,
    /// True while the kernel holds the state that it should, as far as the agent knows.
    pub protects: bool,
    /// True while the agent has a session with the broker.
    pub connected: bool,
    /// The time since when `connected` has had its value, on the wall clock (UTC).
    pub since: Timestamp,
    /// The reason why there is no session; empty where there is one.
    pub reason: String,
    /// The number of times the agent has repaired the table since it started.
    pub tampered: u64,
    /// The seconds by which the wall clock of this host is ahead of the broker's, below zero if it is behind; `None` before the
    /// broker has told its time.
    #[serde(default)]
    pub clock_ahead_seconds: Option<i64>,
    /// The phase of this host on its way to enforcement; `None` in the file of an earlier version.
    #[serde(default)]
    pub phase: Option<PhaseName>,
}

/// The greatest difference from the broker's wall clock that needs no remedy, in seconds.
const MAX_CLOCK_DIFFERENCE_SECONDS: u64 = 60;

/// Reports whether a difference from the broker's wall clock, in seconds, needs a remedy.
pub fn is_clock_off(seconds_ahead: i64) -> bool {
    seconds_ahead.unsigned_abs() > MAX_CLOCK_DIFFERENCE_SECONDS
}

/// Returns a difference from the broker's wall clock in words.
pub fn clock_difference(seconds_ahead: i64) -> String {
    let size = seconds_ahead.unsigned_abs();
    match seconds_ahead {
        -1..=1 => "agrees with the broker's".to_owned(),
        2.. => format!("{} ahead of the broker's", clock_text(Duration::from_secs(size))),
        _ => format!("{} behind the broker's", clock_text(Duration::from_secs(size))),
    }
}

/// The status file, to which the parts of the running agent report.
#[derive(Debug)]
pub struct StatusFile {
    running: watch::Sender<RunningStatus>,
}

impl Default for StatusFile {
    fn default() -> Self {
        Self {
            running: watch::Sender::new(RunningStatus {
                pid: std::process::id(),
                version: env!("CARGO_PKG_VERSION").into(),
                protects: false,
                connected: false,
                since: clock::wall(),
                reason: "has not connected yet".into(),
                tampered: 0,
                clock_ahead_seconds: None,
                phase: None,
            }),
        }
    }
}

impl StatusFile {
    /// Notes whether the kernel holds the state that it should.
    pub fn set_protects(&self, protects: bool) {
        self.change(|running| running.protects = protects);
    }

    /// Notes the phase of this host on its way to enforcement.
    pub fn set_phase(&self, phase: PhaseName) {
        self.change(|running| running.phase = Some(phase));
    }

    /// Returns a receiver that sees every change from now on, and the present content as one.
    pub fn subscribe(&self) -> watch::Receiver<RunningStatus> {
        let mut changes = self.running.subscribe();
        changes.mark_changed();
        changes
    }

    /// Notes that a session began.
    pub fn connected(&self) {
        self.set_connected(true, "");
    }

    /// Notes that there is no session, for this reason. Returns whether that is a change.
    pub fn disconnected(&self, reason: &str) -> bool {
        self.set_connected(false, reason)
    }

    /// Counts a repair of the table.
    pub fn tampered(&self) {
        self.change(|running| running.tampered += 1);
    }

    /// Notes by how many seconds the wall clock of this host is ahead of the broker's. Returns true if the difference has just come to
    /// need a remedy.
    pub fn set_clock_ahead(&self, seconds: i64) -> bool {
        let mut is_new = false;
        self.change(|running| {
            let known = running.clock_ahead_seconds;
            // What messages show varies with their delay.
            if known.is_none_or(|known| known.abs_diff(seconds) > 1) {
                running.clock_ahead_seconds = Some(seconds);
                is_new = is_clock_off(seconds) && !known.is_some_and(is_clock_off);
            }
        });
        is_new
    }

    /// Reports whether there is a session.
    pub fn is_connected(&self) -> bool {
        self.running.borrow().connected
    }

    /// Returns the present content.
    pub fn content(&self) -> RunningStatus {
        self.running.borrow().clone()
    }

    fn set_connected(&self, connected: bool, reason: &str) -> bool {
        self.change(|running| {
            if running.connected != connected {
                (running.connected, running.since) = (connected, clock::wall());
            }
            reason.clone_into(&mut running.reason);
        })
    }

    fn change(&self, change: impl FnOnce(&mut RunningStatus)) -> bool {
        self.running.send_if_modified(|running| {
            let before = running.clone();
            change(running);
            *running != before
        })
    }

    /// Writes the file in the state directory after each change. Never ends.
    pub async fn publish(&self, state_dir: &Path) {
        let mut changes = self.running.subscribe();
        loop {
            let running = changes.borrow_and_update().clone();
            let content = serde_json::to_vec(&running).unwrap_or_default();
            if let Err(error) = files::replace(&path(state_dir), &content, files::PRIVATE) {
                tracing::warn!(%error, "cannot write the status file");
            }
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Returns the path of the status file.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("status.json")
}

/// The content of `status`.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The target of this agent; `None` before enrolment.
    pub target: Option<String>,
    /// The end of the certificate (UTC).
    pub certificate_not_after: Option<Timestamp>,
    /// The running agent; `None` if it does not run.
    pub running: Option<RunningStatus>,
    /// The generation accepted last; 0 if none.
    pub generation: u64,
    /// The treatment of a protected port that has no window, as the policy wants it.
    pub mode: Option<Mode>,
    /// The way to enforcement: while it is neither a trial nor confirmed, the host only monitors.
    pub enforcement: EnforcementStatus,
    /// The highest generation of policies that this host has followed; 0 if none.
    pub policy_generation: u64,
    /// True while the host keeps protection that the broker has taken off with policies that are not newer.
    pub keeps_protection: bool,
    /// The protected ports.
    pub ports: Vec<ProtectedPort>,
    /// The open windows.
    pub windows: Vec<OpenNow>,
    /// The newest checkpoint of the brokers' audit log; `None` before the first.
    pub audit_checkpoint: Option<SignedCheckpoint>,
    /// The checkpoint that contradicts it; `None` if none does.
    pub audit_alarm: Option<CheckpointAlarm>,
    /// The errors of everything that could not be read.
    pub errors: Vec<String>,
}

/// The way of this host to enforcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct EnforcementStatus {
    /// The phase.
    pub phase: PhaseName,
    /// The time left of a trial, in whole seconds; `None` outside a trial.
    pub trial_seconds_left: Option<u64>,
}

impl EnforcementStatus {
    /// Reads the mark. A mark that cannot be read counts as confirmed, and its error goes to `add`.
    pub(crate) fn gather(
        config: &AgentConfig,
        now: &Moment,
        add: &mut dyn FnMut(&dyn std::error::Error),
    ) -> Self {
        let phase = |phase| Self { phase, trial_seconds_left: None };
        if config.confirm_within.is_none() {
            return phase(PhaseName::Confirmed);
        }
        match EnforcementMark::in_dir(&config.state_dir).read() {
            Ok(Some(found)) => match found.at(now) {
                Phase::Trial(trial) => {
                    let trial_seconds_left = Some(trial.left(now).as_secs());
                    Self { phase: PhaseName::Trial, trial_seconds_left }
                }
                other @ (Phase::Untried | Phase::Lapsed { .. } | Phase::Confirmed) => phase(other.name()),
            },
            Ok(None) => phase(PhaseName::Untried),
            Err(error) => {
                add(&error);
                phase(PhaseName::Confirmed)
            }
        }
    }

    /// Returns the phase with what an operator does about it, in words.
    pub(crate) fn text(&self) -> String {
        let left = || clock_text(Duration::from_secs(self.trial_seconds_left.unwrap_or_default()));
        match self.phase {
            PhaseName::Untried => "untried: the first state in mode enforce holds on trial".to_owned(),
            PhaseName::Trial => {
                format!("on trial for another {}; log in once more and run `postern-agent confirm`", left())
            }
            PhaseName::Lapsed => {
                "LAPSED: no operator confirmed the trial, and the host only monitors; run `postern-agent enforce`".to_owned()
            }
            PhaseName::Confirmed => "confirmed".to_owned(),
        }
    }
}

/// An open window.
#[derive(Debug, Serialize)]
pub struct OpenNow {
    /// The grant it belongs to.
    pub grant: GrantId,
    /// The port.
    pub port: ProtectedPort,
    /// The sources that may connect.
    pub source: SourcePrefix,
    /// The time left, in whole seconds.
    pub remaining_seconds: u64,
}

impl Status {
    /// Gathers the status. [`Status::errors`] names what cannot be read.
    pub fn gather(config: &AgentConfig, now: &Moment) -> Self {
        let mut errors = Vec::new();
        let mut add = |error: &dyn std::error::Error| errors.push(error_chain(error));
        let identity_dir = config.identity_dir();
        let credentials = Credentials::exist(&identity_dir).then(|| Credentials::load(&identity_dir));
        let credentials = credentials.and_then(|loaded| loaded.map_err(|error| add(&error)).ok());
        let accepted =
            Ledger::in_dir(&config.state_dir).load(now).map_err(|error| add(&error)).ok().flatten();
        let KeptCheckpoint { newest: audit_checkpoint, alarm: audit_alarm } =
            checkpoint::read(&config.state_dir).map_err(|error| add(&error)).unwrap_or_default();
        let enforcement = EnforcementStatus::gather(config, now, &mut add);
        let window = |window: &crate::firewall::policy::HeldWindow| OpenNow {
            grant: window.grant,
            port: window.port,
            source: window.source,
            remaining_seconds: window.deadline.since(now.boottime).as_secs(),
        };
        Self {
            target: credentials.as_ref().and_then(crate::enroll::target_of).map(|target| target.to_string()),
            certificate_not_after: credentials.as_ref().map(Credentials::not_after),
            running: running(&config.state_dir),
            generation: accepted.as_ref().map_or(0, |accepted| accepted.generation),
            mode: accepted.as_ref().map(|accepted| accepted.mode),
            enforcement,
            policy_generation: accepted.as_ref().map_or(0, |accepted| accepted.policies),
            keeps_protection: accepted.as_ref().is_some_and(|accepted| accepted.keeps),
            ports: accepted.iter().flat_map(|accepted| accepted.ports.iter().copied()).collect(),
            windows: accepted.iter().flat_map(|accepted| accepted.windows.iter().map(window)).collect(),
            audit_checkpoint,
            audit_alarm,
            errors,
        }
    }

    /// Writes the status for people.
    ///
    /// # Errors
    /// The output is closed.
    pub fn write_text(&self, out: &mut impl Write) -> std::io::Result<()> {
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".into());
        writeln!(out, "target       {}", self.target.as_deref().unwrap_or("not enrolled"))?;
        writeln!(
            out,
            "certificate  {}",
            or_none(self.certificate_not_after.map(|end| format!("until {end:.0}")))
        )?;
        match &self.running {
            None => writeln!(out, "agent        not running")?,
            Some(running) => {
                writeln!(out, "agent        running, version {}, pid {}", running.version, running.pid)?;
                let link = if running.connected { "connected" } else { "not connected" };
                let reason =
                    if running.reason.is_empty() { String::new() } else { format!(": {}", running.reason) };
                writeln!(out, "broker       {link} since {:.0}{reason}", running.since)?;
                let kernel = if running.protects { "holds its state" } else { "refused its state" };
                writeln!(out, "kernel       {kernel}; repaired {} times", running.tampered)?;
                if let Some(seconds) = running.clock_ahead_seconds {
                    writeln!(out, "clock        {}", clock_difference(seconds))?;
                }
            }
        }
        let mode = self.mode.map(|mode| window_log::mode_name(mode).to_owned());
        writeln!(out, "generation   {}, mode {}", self.generation, or_none(mode))?;
        writeln!(out, "enforcement  {}", self.enforcement.text())?;
        let ports: Vec<_> = self.ports.iter().map(ToString::to_string).collect();
        writeln!(out, "protected    {}", or_none(Some(ports.join(" ")).filter(|ports| !ports.is_empty())))?;
        if self.keeps_protection {
            writeln!(out, "kept         {KEPT}")?;
        }
        if let Some(newest) = &self.audit_checkpoint {
            let Checkpoint { seq, at, .. } = &newest.checkpoint;
            writeln!(out, "audit log    checkpoint of record {seq}, signed at {at}")?;
        }
        if let Some(CheckpointAlarm { since, received }) = &self.audit_alarm {
            let seq = received.checkpoint.seq;
            writeln!(out, "ALARM        contradicted since {since:.0} by a checkpoint of record {seq}")?;
        }
        for error in &self.errors {
            writeln!(out, "error        {error}")?;
        }
        if self.windows.is_empty() {
            return writeln!(out, "windows      none");
        }
        writeln!(out, "\n{:<28}{:<12}{:<24}LEFT", "GRANT", "PORT", "SOURCE")?;
        for window in &self.windows {
            let left = clock_text(Duration::from_secs(window.remaining_seconds));
            let (grant, port, source) =
                (window.grant.to_string(), window.port.to_string(), window.source.to_string());
            writeln!(out, "{grant:<28}{port:<12}{source:<24}{left}")?;
        }
        Ok(())
    }
}

/// Returns the status file of the running agent, if one runs: it holds the lock.
pub(crate) fn running(state_dir: &Path) -> Option<RunningStatus> {
    if !state_dir.join("lock").exists() || matches!(StateDirLock::take(state_dir), Ok(Some(_))) {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path(state_dir)).ok()?).ok()
}

/// Returns hours, minutes and seconds: `1:02:03`.
fn clock_text(left: Duration) -> String {
    let seconds = left.as_secs();
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_as_a_page_and_as_json() {
        let status = Status {
            target: Some("host:web-1".into()),
            certificate_not_after: None,
            running: None,
            generation: 4,
            policy_generation: 7,
            keeps_protection: false,
            mode: Some(Mode::Enforce),
            enforcement: EnforcementStatus { phase: PhaseName::Trial, trial_seconds_left: Some(250) },
            ports: vec!["tcp/22".parse().unwrap()],
            windows: vec![OpenNow {
                grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
                port: "tcp/22".parse().unwrap(),
                source: "192.0.2.7".parse().unwrap(),
                remaining_seconds: 3723,
            }],
            audit_checkpoint: None,
            audit_alarm: None,
            errors: vec![],
        };
        let mut page = Vec::new();
        status.write_text(&mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for part in [
            "host:web-1",
            "not running",
            "mode enforce",
            "on trial for another 0:04:10",
            "01arz3ndektsv4rrffq69g5fav  tcp/22",
            "1:02:03",
        ] {
            assert!(page.contains(part), "{part} in\n{page}");
        }
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["windows"][0]["remaining_seconds"], 3723);
    }

    #[tokio::test]
    async fn the_status_file_counts_only_while_an_agent_runs() {
        let dir = tempfile::tempdir().unwrap();
        let status_file = StatusFile::default();
        status_file.connected();
        let warnings: Vec<bool> = [0, 3, 61, 62, 7200, 0, -90].map(|s| status_file.set_clock_ahead(s)).into();
        assert_eq!(warnings, [false, false, true, false, false, false, true]);
        assert_eq!(clock_difference(7200), "2:00:00 ahead of the broker's");
        tokio::select! {
            () = status_file.publish(dir.path()) => {}
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        assert!(running(dir.path()).is_none(), "no agent holds the lock");
        let _lock = StateDirLock::take(dir.path()).unwrap().unwrap();
        assert!(running(dir.path()).unwrap().connected);
    }
}
