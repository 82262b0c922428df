//! `run` and `load`: put the parts of the agent together.
//!
//! The state in the ledger is in the kernel before the agent uses the network. When the agent ends, however it ends, the
//! table and its timeouts stay in the kernel.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use postern_pki::PkiError;
use postern_pki::credentials::Credentials;
use postern_runtime::files;
use postern_runtime::tasks::Tasks;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::checkpoint::{self, CheckpointKeeper};
use crate::clock;
use crate::config::AgentConfig;
use crate::connection::BrokerConnection;
use crate::firewall::watch::TableWatch;
use crate::firewall::{self, Enforcer, Ownership};
use crate::host_reconciler::{self, HostReconciler, ReconcilerHandle};
use crate::ledger::Ledger;
use crate::lock::StateDirLock;
use crate::renew;
use crate::reports;
use crate::status::StatusFile;
use crate::tampering::Tampering;

/// The interval at which the reconciler checks the clocks.
const TICK: Duration = Duration::from_secs(1);

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// The agent cannot start, or one of its tasks ended.
pub async fn run(config: AgentConfig) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let _lock = lock(&config).await?;
    let mut end = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut tasks = start(&config)?;
    tokio::select! {
        _ = end.recv() => {}
        _ = interrupt.recv() => {}
        error = tasks.first_end() => return Err(error),
    }
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping; the table and its timeouts stay in the kernel");
    Ok(())
}

/// Puts the state in the ledger into the kernel, and returns. For early boot, before the network is up.
///
/// # Errors
/// The kernel refused.
pub fn load(config: &AgentConfig) -> anyhow::Result<()> {
    make_state_dir(config)?;
    let Some(_lock) = StateDirLock::take(&config.state_dir).context("cannot take the lock")? else {
        tracing::info!("the agent runs already and keeps the table");
        return Ok(());
    };
    let ownership = if wants_owner()? { Ownership::Owned { stored: None } } else { Ownership::Shared };
    let reconciler = load_reconciler(config, ownership)?;
    anyhow::ensure!(reconciler.protects(), "the host firewall refused what this host must hold; see the log");
    Ok(())
}

fn start(config: &Arc<AgentConfig>) -> anyhow::Result<Tasks> {
    // The watch starts first, so that it sees every change after the reconciler's first read.
    let watch =
        TableWatch::start().context("cannot watch the host firewall; the agent needs CAP_NET_ADMIN")?;
    let reconciler = load_reconciler(config, ownership()?)?;
    // The table is in the kernel now, and stays there.
    refuse_exposed_key(config)?;
    let status_file = Arc::new(StatusFile::default());
    status_file.set_protects(reconciler.protects());
    status_file.set_phase(reconciler.phase());
    let (handle, commands) = host_reconciler::channel();
    let (reporter, reports) = reports::channel();
    let checkpoint_keeper = CheckpointKeeper::in_dir(&config.state_dir, reporter.clone());
    let (checkpoints, checkpoint_commands) = checkpoint::channel();
    let tampering = Tampering { reporter, status_file: Arc::clone(&status_file) };
    let (current, renewal) = (renew::CurrentIdentity::new(None), Arc::new(Notify::new()));
    let (tried, ask_again) = (Arc::new(renew::TriedKeysSender::default()), Arc::new(Notify::new()));

    let mut tasks = Tasks::default();
    let reconciler_status = Arc::clone(&status_file);
    tasks.spawn_thread("host-reconciler", move || {
        host_reconciler::serve(reconciler, commands, &reconciler_status)
    })?;
    tasks.spawn_thread("checkpoints", move || checkpoint::serve(checkpoint_keeper, checkpoint_commands))?;
    tasks.spawn("clock", tick(handle.clone(), tampering.clone(), Arc::clone(&ask_again)));
    tasks.spawn("tampering", tampering.repair(watch, handle.clone()));
    let connection = BrokerConnection {
        broker: config.broker.clone(),
        credentials: current.subscribe(),
        reconciler: handle,
        reports,
        checkpoints,
        status_file: Arc::clone(&status_file),
        limits: config.limits,
        renewal: Arc::clone(&renewal),
        tried: Arc::clone(&tried),
        ask_again,
    };
    tasks.spawn("connection", async move {
        connection.keep().await;
        Ok(())
    });
    tasks.spawn("certificate", certificate(Arc::clone(config), current, tried, renewal));
    tasks.spawn("status", publish(Arc::clone(config), status_file));
    notify(&[NotifyState::Ready]);
    Ok(tasks)
}

/// The variable that keeps the table without an owner.
const TABLE_OWNER: &str = "POSTERN_TABLE_OWNER";

/// Returns the ownership of the table that a running agent has.
fn ownership() -> anyhow::Result<Ownership> {
    let stored = firewall::take_stored_socket();
    if wants_owner()? {
        return Ok(Ownership::Owned { stored });
    }
    if stored.is_some() {
        firewall::forget_stored_socket();
    }
    Ok(Ownership::Shared)
}

fn wants_owner() -> anyhow::Result<bool> {
    match env::var_os(TABLE_OWNER) {
        None => Ok(true),
        Some(value) if value == "on" => Ok(true),
        Some(value) if value == "off" => Ok(false),
        Some(value) => anyhow::bail!("{TABLE_OWNER} is {}; set it to on or off", value.display()),
    }
}

fn load_reconciler(config: &AgentConfig, ownership: Ownership) -> anyhow::Result<HostReconciler<Enforcer>> {
    let enforcer = Enforcer::new(ownership).context("cannot reach the host firewall")?;
    let now = clock::moment();
    let suspended = host_reconciler::suspended(now.boottime);
    Ok(HostReconciler::start(enforcer, Ledger::in_dir(&config.state_dir), config, &now, suspended))
}

/// Fails where other users can read the key: an operator has to correct that. Any other problem with the identity keeps
/// the agent from the broker, but not from its table.
fn refuse_exposed_key(config: &AgentConfig) -> anyhow::Result<()> {
    match Credentials::load(&config.identity_dir()) {
        Err(error @ (PkiError::ExposedKey { .. } | PkiError::ForeignKey(_))) => Err(error.into()),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Takes the lock, so that only one agent runs. `status` and `doctor` hold it for a moment to check whether an agent runs,
/// so the agent tries for a second.
async fn lock(config: &AgentConfig) -> anyhow::Result<StateDirLock> {
    make_state_dir(config)?;
    for _ in 0..10 {
        if let Some(lock) = StateDirLock::take(&config.state_dir).context("cannot take the lock")? {
            return Ok(lock);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("another agent runs on {}; stop it first", config.state_dir.display())
}

fn make_state_dir(config: &AgentConfig) -> anyhow::Result<()> {
    let dir = &config.state_dir;
    files::make_private_dir(dir).with_context(|| format!("cannot make the state directory {}", dir.display()))
}

/// Ticks the reconciler, and shows the service manager's watchdog that the reconciler is not stuck.
async fn tick(
    reconciler: ReconcilerHandle,
    tampering: Tampering,
    ask_again: Arc<Notify>,
) -> anyhow::Result<()> {
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        let outcome = reconciler.tick().await;
        if outcome.asks_broker {
            ask_again.notify_one();
        }
        tampering.report_unattributed(outcome);
        notify(&[NotifyState::Watchdog]);
    }
}

async fn certificate(
    config: Arc<AgentConfig>,
    current: renew::CurrentIdentity,
    tried: Arc<renew::TriedKeysSender>,
    renewal: Arc<Notify>,
) -> anyhow::Result<()> {
    renew::keep_renewed(&config.broker, &config.identity_dir(), &current, &tried, &renewal).await;
    Ok(())
}

async fn publish(config: Arc<AgentConfig>, status_file: Arc<StatusFile>) -> anyhow::Result<()> {
    status_file.publish(&config.state_dir).await;
    Ok(())
}

/// Notifies the service manager, if there is one.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
