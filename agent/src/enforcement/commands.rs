//! The commands `enforce` and `confirm`: an operator of this machine changes its mark, and the running agent follows within a second.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context as _;
use postern_core::{Mode, TargetId};

use super::evidence::{self, Evidence};
use super::{EnforcementMark, OlderConnections, Phase, TcpConnection, Trial};
use crate::clock;
use crate::config::AgentConfig;
use crate::desired_state::DesiredState;
use crate::ledger::Ledger;
use crate::lock::MarkLock;
use crate::status;

/// The longest wait for another process to release the mark.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest wait for the running agent to follow.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(15);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// The time left of a trial below which it is not confirmed any more: the agent needs a moment to follow.
const TOO_LATE: Duration = Duration::from_secs(3);

/// The wishes of `enforce`.
#[derive(Debug, Clone, Copy)]
pub struct EnforceOptions {
    /// The time of the trial; `None`: that of the configuration.
    pub confirm_within: Option<Duration>,
    /// True to confirm without a trial.
    pub now: bool,
}

/// Begins a trial, or confirms without one. `ssh_connection` is the variable of that name. Warnings go to `err`.
///
/// # Errors
/// The agent does not run, the mark cannot be read or written, or an output is closed.
pub async fn enforce(
    config: &AgentConfig,
    options: EnforceOptions,
    ssh_connection: Option<&str>,
    out: &mut impl Write,
    err: &mut impl Write,
) -> anyhow::Result<()> {
    let Some(usual) = config.confirm_within else {
        return Ok(writeln!(
            out,
            "agent.toml has no [enforce] confirm, so this host enforces every state of its policy at once"
        )?);
    };
    let mark = EnforcementMark::in_dir(&config.state_dir);
    let lock = lock(&mark).await?;
    let accepted = Ledger::in_dir(&config.state_dir).load(&clock::moment())?;
    let enforcing = accepted.as_ref().filter(|it| it.mode == Mode::Enforce && !it.ports.is_empty());
    let found = mark.read();
    if matches!(found, Ok(Some(Phase::Confirmed))) {
        return Ok(writeln!(out, "this host is confirmed: it enforces what its policy says")?);
    }
    if let Some(enforcing) = enforcing {
        let session = evidence::of_this_session(&enforcing.ports, ssh_connection);
        warn_of_lockout(config, &session, enforcing, err)?;
    }
    if options.now {
        mark.write(&Phase::Confirmed, &lock).context("cannot write the mark of enforcement")?;
        return Ok(writeln!(out, "this host is confirmed: it enforces what its policy says from now on")?);
    }
    found?;
    if enforcing.is_none() {
        mark.write(&Phase::Untried, &lock).context("cannot write the mark of enforcement")?;
        return Ok(writeln!(
            out,
            "the policy of this host only monitors; a trial of {} begins with its first state in mode enforce",
            span(usual)
        )?);
    }
    anyhow::ensure!(
        status::running(&config.state_dir).is_some(),
        "the agent does not run, so nothing would begin or end the trial; start it with `systemctl start postern-agent`"
    );
    let lasts = options.confirm_within.unwrap_or(usual);
    let trial = Phase::begin(lasts, &clock::moment());
    mark.write(&trial, &lock).context("cannot write the mark of enforcement")?;
    drop(lock);
    closed(&mark).await?;
    writeln!(
        out,
        "this host enforces on trial for {}; open a window, log in once more, and run there: postern-agent confirm\nwithout that it goes \
         back to monitoring by itself",
        span(lasts)
    )?;
    Ok(())
}

/// Confirms the trial, if this session came in through the closed table. `ssh_connection` is the variable of that name.
///
/// # Errors
/// No trial is on, the session proves nothing, the agent does not run, or the mark cannot be read or written.
pub async fn confirm(
    config: &AgentConfig,
    ssh_connection: Option<&str>,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mark = EnforcementMark::in_dir(&config.state_dir);
    let lock = lock(&mark).await?;
    let now = clock::moment();
    let trial = match mark.read()?.map(|phase| phase.at(&now)) {
        Some(Phase::Confirmed) => return Ok(writeln!(out, "this host is confirmed already")?),
        Some(Phase::Trial(trial)) if trial.left(&now) >= TOO_LATE => trial,
        Some(Phase::Trial(_) | Phase::Lapsed { .. }) => {
            anyhow::bail!(
                "the trial is over, and this host monitors again; begin another one with `postern-agent enforce`"
            )
        }
        Some(Phase::Untried) | None if config.confirm_within.is_none() => {
            return Ok(writeln!(out, "agent.toml has no [enforce] confirm, so there is nothing to confirm")?);
        }
        Some(Phase::Untried) | None => {
            anyhow::bail!("no trial is on; begin one with `postern-agent enforce`")
        }
    };
    anyhow::ensure!(
        status::running(&config.state_dir).is_some(),
        "the agent does not run, so it cannot follow; start it with `systemctl start postern-agent`"
    );
    let connection = came_in(config, &trial, ssh_connection)?;
    mark.write(&Phase::Confirmed, &lock).context("cannot write the mark of enforcement")?;
    writeln!(
        out,
        "this host is confirmed: the session from {} came in at tcp/{} after its ports were closed",
        connection.peer, connection.local_port
    )?;
    Ok(())
}

/// Makes this host untried if it was enrolled as another target than before. A confirmation counts for one target.
///
/// # Errors
/// The mark cannot be written.
pub async fn enrolled(
    config: &AgentConfig,
    before: Option<&TargetId>,
    target: &TargetId,
) -> anyhow::Result<()> {
    if before.is_none_or(|before| before == target) {
        return Ok(());
    }
    let mark = EnforcementMark::in_dir(&config.state_dir);
    let lock = lock(&mark).await?;
    mark.write(&Phase::Untried, &lock).with_context(|| {
        format!(
            "this host is enrolled, but {} cannot be written, so it counts as confirmed",
            mark.path().display()
        )
    })
}

fn came_in(
    config: &AgentConfig,
    trial: &Trial,
    ssh_connection: Option<&str>,
) -> anyhow::Result<TcpConnection> {
    let accepted = Ledger::in_dir(&config.state_dir).load(&clock::moment())?;
    // The ports of the configuration are protected before the ledger has any.
    let ports: BTreeSet<_> = accepted.map_or_else(|| config.bootstrap.clone(), |accepted| accepted.ports);
    let session = evidence::of_this_session(&ports, ssh_connection);
    match evidence::judge(&session, &trial.older) {
        Evidence::CameIn(connection) => Ok(connection),
        Evidence::Older => anyhow::bail!(
            "this session is older than the trial, so it does not show that anyone gets in; log in once more, and confirm in that session"
        ),
        Evidence::CannotTell => anyhow::bail!(
            "cannot tell this session from the older ones; wait a second and try again, or confirm at the machine's console with \
             `postern-agent enforce --now`"
        ),
        Evidence::NoConnection => anyhow::bail!(
            "this session has no connection to a protected port: it is a console, or runs inside tmux or screen; log in over a protected \
             port and confirm there, or confirm here without evidence with `postern-agent enforce --now`"
        ),
    }
}

/// Warns if the operator who runs this would not get in again.
fn warn_of_lockout(
    config: &AgentConfig,
    session: &[TcpConnection],
    enforcing: &DesiredState,
    err: &mut impl Write,
) -> io::Result<()> {
    let target = postern_pki::credentials::Credentials::load(&config.identity_dir())
        .ok()
        .and_then(|credentials| crate::enroll::target_of(&credentials));
    let target = target.map_or_else(|| "TARGET".to_owned(), |target| target.to_string());
    for connection in session.iter().filter(|it| !is_admitted(it, enforcing)) {
        writeln!(
            err,
            "warning: your session comes from {peer}, which has no open window on tcp/{port}: it stays, and you would not get in again; \
             first run: postern request {target} --port tcp/{port} --source {peer} --for 1h --reason \"…\"",
            peer = connection.peer,
            port = connection.local_port
        )?;
    }
    Ok(())
}

fn is_admitted(connection: &TcpConnection, state: &DesiredState) -> bool {
    state.windows.iter().any(|window| {
        window.port.protocol == postern_core::Protocol::Tcp
            && window.port.port.get() == connection.local_port
            && window.source.contains(connection.peer)
    })
}

/// Takes the lock of the mark; waits for its holder.
async fn lock(mark: &EnforcementMark) -> anyhow::Result<MarkLock> {
    let cannot = || format!("cannot lock {}; run this as root", mark.lock_path().display());
    for _ in 0..LOCK_TIMEOUT.as_millis() / PAUSE.as_millis() {
        if let Some(lock) = mark.try_lock().with_context(cannot)? {
            return Ok(lock);
        }
        tokio::time::sleep(PAUSE).await;
    }
    anyhow::bail!(
        "another process has held {} for {} s; end it",
        mark.lock_path().display(),
        LOCK_TIMEOUT.as_secs()
    )
}

/// Waits until the agent has closed the table of the trial.
async fn closed(mark: &EnforcementMark) -> anyhow::Result<()> {
    for _ in 0..FOLLOW_TIMEOUT.as_millis() / PAUSE.as_millis() {
        match mark.read()? {
            Some(Phase::Trial(Trial { older: OlderConnections::NotClosedYet, .. })) => {}
            Some(Phase::Trial(_)) => return Ok(()),
            Some(Phase::Untried | Phase::Lapsed { .. } | Phase::Confirmed) | None => break,
        }
        tokio::time::sleep(PAUSE).await;
    }
    anyhow::bail!("the running agent did not begin the trial; see its log and `postern-agent doctor`")
}

/// Returns a time in words, as the command's arguments take it.
fn span(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforcement::PhaseName;

    fn config(dir: &std::path::Path) -> AgentConfig {
        let file = dir.join("agent.toml");
        let text = format!("broker = \"https://b:7443\"\nstate_dir = {dir:?}\n[enforce]\nconfirm = \"5m\"\n");
        std::fs::write(&file, text).unwrap();
        AgentConfig::load(&file).unwrap()
    }

    #[tokio::test]
    async fn a_machine_is_untried_again_only_as_another_target() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let mark = EnforcementMark::in_dir(dir.path());
        let options = EnforceOptions { confirm_within: None, now: true };
        enforce(&config, options, None, &mut Vec::new(), &mut Vec::new()).await.unwrap();
        let [one, other] = ["host:a", "host:b"].map(|target| target.parse::<TargetId>().unwrap());
        for before in [None, Some(&one)] {
            enrolled(&config, before, &one).await.unwrap();
            assert_eq!(mark.read().unwrap().unwrap().name(), PhaseName::Confirmed);
        }
        let options = EnforceOptions { confirm_within: None, now: false };
        enforce(&config, options, None, &mut Vec::new(), &mut Vec::new()).await.unwrap();
        assert_eq!(
            mark.read().unwrap().unwrap().name(),
            PhaseName::Confirmed,
            "`enforce` takes nothing back"
        );
        enrolled(&config, Some(&one), &other).await.unwrap();
        assert_eq!(mark.read().unwrap().unwrap().name(), PhaseName::Untried);
    }

    #[tokio::test]
    async fn a_confirmation_needs_a_trial_that_is_on() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let mark = EnforcementMark::in_dir(dir.path());
        let error = confirm(&config, None, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("begin one with"), "{error}");
        let lock = mark.try_lock().unwrap().unwrap();
        mark.write(&Phase::begin(Duration::from_secs(2), &clock::moment()), &lock).unwrap();
        drop(lock);
        let error = confirm(&config, None, &mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("the trial is over"), "{error}");
    }
}
