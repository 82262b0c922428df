//! `serve`: puts a broker together, runs its tasks, and shuts it down in order.
//!
//! A broker is made in three steps. First everything that can refuse is asked: the store, the authority's certificates, the
//! port. Then the `Parts` are made, which share the store, the two layers and the signals between them. Last the tasks
//! start, each of which must run for as long as the broker: the first that ends takes the process down, so that no dead
//! loop hides behind a broker that looks alive.
//!
//! Two orders matter. The broker joins the cluster before it acts on anything, so that it works only on targets whose leases
//! it holds. At its end it first says that it will stop, and goes on serving while load balancers take notice; then it takes
//! nothing new, sends its agents to other brokers, lets the last answers out, and leaves the cluster.

mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::SignedDuration;
use postern_core::target::CloudKind;
use postern_pki::life::Life;
use postern_pki::tls::{self, ServerIdentity};
use postern_pki::{Authority, PkiError};
use postern_provider::Provider;
use postern_runtime::tasks::Tasks;
use postern_store::{Coordination, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::api::{self, Authenticators, Listener};
use crate::app::access::{Deciding, RequestQuotas};
use crate::app::audit::Verifications;
use crate::app::audit::{FULL_INTERVAL, keep_verifying};
use crate::app::caller_address::AddressProofs;
use crate::app::denials::{self, Denials, SUMMARY_INTERVAL};
use crate::app::{About, App, CloneAttempts};
use crate::authority::{
    CLOCK_TOLERANCE, Keeper, LOOK_EVERY, RollReport, Standing, first_serving, show_readiness,
};
use crate::checkpoints::{self, CheckpointKeeper, Checkpoints, MemoryFile};
use crate::clock::{Clock, boottime, wall};
use crate::cluster::Cluster;
use crate::cluster::follower::{Follower, LATE_AFTER};
use crate::cluster::membership::{MembershipKeeper, RENEWAL_INTERVAL};
use crate::config::BrokerConfig;
use crate::forgeries::{ForgeryReporter, REPORT_INTERVAL};
use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::layers::observer::Observer;
use crate::limits::{self, Limits};
use crate::monitoring::{self, MonitoringState, UPKEEP_INTERVAL};
use crate::policies_seen::PoliciesSeen;
use crate::principals::{Journal, LOOK_INTERVAL, PrincipalKeeper, Revocations};
use crate::readiness::{self, CHECK_INTERVAL, Readiness, in_words};
use crate::reconcile::{LONGEST_SLEEP, Reconciler};
use crate::records_key::RecordsKeyFile;
use crate::retention::{ROUND_INTERVAL, RetentionKeeper};
use crate::signals::rounds::{RoundReporter, Rounds, Task};
use crate::signals::{GrantChanges, ShutdownPhase, Wakeups, parts};
use crate::telemetry::{self, GrantProgress, InstrumentedStore, SAMPLE_INTERVAL};
pub use store::{OpenedStore, open as open_store};

/// The time limit of the last answers when the broker shuts down.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause between two looks at the wall clock.
const CLOCK_INTERVAL: Duration = Duration::from_secs(1);

/// The providers of the clouds that are driven.
pub type Providers = BTreeMap<CloudKind, Arc<dyn Provider>>;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or one of its tasks ended.
pub async fn serve(config: BrokerConfig, providers: Providers) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    config.check_private_files()?;
    let opened = open_store(&config).await?;
    let (phase, shutdown) = watch::channel(ShutdownPhase::Running);
    let readiness = Readiness::default();
    let RunningBroker { mut tasks, sessions, cluster, app } =
        start(&config, opened, providers, &readiness, shutdown).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = tasks.first_end() => return Err(error),
    }
    readiness.set(parts::ENDING, "the broker is ending");
    tracing::info!("ending");
    phase.send_replace(ShutdownPhase::Draining);
    // The broker still answers while load balancers find out that they must send it nothing more.
    tokio::select! {
        () = tokio::time::sleep(config.drain) => {}
        error = tasks.first_end() => return Err(error),
    }
    // The server takes nothing new and ends by itself once its last answer is out; agents go to another broker.
    phase.send_replace(ShutdownPhase::Stopping);
    sessions.end_all("the broker is ending; connect to another");
    tokio::time::timeout(ANSWERS_TIMEOUT, tasks.first_end()).await.ok();
    record_omitted_denials(&app).await;
    if let Err(error) = cluster.coordination.leave().await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "cannot leave the cluster; the other brokers notice when this membership ends"
        );
    }
    Ok(())
}

/// A broker that runs, as far as its shutdown is concerned.
struct RunningBroker {
    tasks: Tasks,
    sessions: Arc<AgentSessions>,
    cluster: Arc<Cluster>,
    app: Arc<App>,
}

/// Records the refusals that no record has yet, while this broker is still a member.
async fn record_omitted_denials(app: &App) {
    match tokio::time::timeout(ANSWERS_TIMEOUT, app.summarize_denials(true)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot record omitted refusals");
        }
        Err(_) => tracing::error!("cannot record omitted refusals: the store did not answer in time"),
    }
}

/// Starts every task. The server ends when `shutdown` says so.
async fn start(
    config: &BrokerConfig,
    (store, coordination): OpenedStore,
    providers: Providers,
    readiness: &Readiness,
    shutdown: watch::Receiver<ShutdownPhase>,
) -> anyhow::Result<RunningBroker> {
    let store = InstrumentedStore::over(&store).keeping(config.limits.store_reserve());
    // Before anything reads a policy.
    let policies_seen = Arc::new(PoliciesSeen::load(&config.data_dir)?);
    policies_seen.tell(&store);
    let clock = Clock::start(store::newest_record(&store).await?);
    let now = wall();
    let authority = Authority::load(&config.authority_dir(), &config.trust_domain)?;
    let authority = Arc::new(authority.with_people_key(&config.people_key));
    let standing = Arc::new(Standing::of(config));
    standing.note_clock(clock.wall_ahead());
    refuse_exposed_root_key(&authority, config)?;
    // Before the first renewal, so that the other brokers and the readiness know of an ended authority from the start.
    show_readiness(&authority, readiness, &standing.look(&authority, now), now);
    let credentials = first_serving(&authority, &config.names, now)?;
    let serving = Life { not_before: credentials.not_before(), not_after: credentials.not_after() };
    let identity = ServerIdentity::new(credentials)?;
    let tls = tls::server_config(&identity)?;
    let listener = Listener::bind(config.listen, tls, config.trust_domain.clone(), limits_of(config))?;
    let address = listener.address()?;

    let parts = Parts::new(store, coordination, providers, clock, readiness.clone(), policies_seen, shutdown);
    // Before the first call: no revoked proof is admitted while the first round is on its way.
    parts.revocations.read(&parts.store).await?;
    parts.revocations.learn_intermediates(authority.revoked()?);
    let (head, heads) = watch::channel(parts.store.audit_head().await?.seq);
    let app = Arc::new(parts.app(config, Arc::clone(&authority), Arc::clone(&standing)));
    let keeper = Keeper {
        authority: Arc::clone(&authority),
        standing: Arc::clone(&standing),
        store: parts.store.clone(),
        readiness: readiness.clone(),
        clock,
        identity,
        serving,
        names: config.names.clone(),
        roll_report: RollReport::of(config),
        revocations: Arc::clone(&parts.revocations),
    };

    let mut tasks = Tasks::default();
    if let Some(listen) = config.metrics_listen {
        let metrics = telemetry::install(&readiness.reasons())?;
        let shown =
            MonitoringState { metrics, readiness: readiness.clone(), rounds: Arc::clone(&parts.rounds) };
        let reporter = parts.reporter(Task::Metrics, Some(UPKEEP_INTERVAL));
        tasks.spawn("metrics", monitoring::serve(monitoring::bind(listen).await?, shown, reporter));
    }
    // Also without a port for metrics: this task forgets the progress of grants that are over.
    let progress = Arc::clone(&parts.progress);
    let reporter = parts.reporter(Task::Sample, Some(SAMPLE_INTERVAL));
    tasks.spawn("sample", telemetry::keep_sampling(parts.store.clone(), progress, clock, reporter));
    let sealing = RecordsKeyFile::of(config).load_or_make()?;
    let reopening = config.redis.clone().map(|settings| (settings, sealing));
    tasks.spawn("store", store::watch_for_loss(parts.store.clone(), reopening, clock));
    let (joined, is_joined) = tokio::sync::oneshot::channel();
    let reporter = parts.reporter(Task::Membership, Some(RENEWAL_INTERVAL));
    tasks.spawn("membership", parts.membership(config, Arc::clone(&standing), head).keep(joined, reporter));
    // Nothing begins before this broker is a member, and has taken over the targets on which no broker works.
    tokio::select! {
        _ = is_joined => {}
        error = tasks.first_end() => return Err(error),
    }
    tasks.spawn("follower", parts.follower(heads).follow());
    let cluster = Arc::clone(&parts.cluster);
    let reporter = parts.reporter(Task::PeerStatus, None);
    tasks.spawn("peer status", async move { cluster.peer_status.keep_publishing(reporter).await });
    tasks.spawn("reconciler", parts.reconciler().run(parts.reporter(Task::Reconciler, Some(LONGEST_SLEEP))));
    let cloud = || Arc::clone(&parts.cloud);
    tasks.spawn("cloud layer", cloud().run(parts.reporter(Task::CloudLayer, parts.cloud.tick())));
    let reporter = parts.reporter(Task::Sweep, Some(config.sweep_every));
    tasks.spawn("sweep", cloud().keep_sweeping(config.sweep_every, reporter));
    let reporter = parts.reporter(Task::AuditOutbox, None);
    tasks.spawn("audit outbox", cloud().keep_writing_records(parts.store.clone(), reporter));
    let (store, rounds) = (parts.store.clone(), Arc::clone(&parts.rounds));
    let reporter = parts.reporter(Task::Readiness, Some(CHECK_INTERVAL));
    tasks.spawn("readiness", readiness::keep_checking(readiness.clone(), store, rounds, reporter));
    let (statuses, health) = tonic_health::server::health_reporter();
    let reporter = parts.reporter(Task::Health, None);
    tasks.spawn("health", api::report_health(statuses, readiness.clone(), reporter));
    tasks.spawn("authority", keeper.keep(parts.reporter(Task::Authority, Some(LOOK_EVERY))));
    tasks.spawn("clock", watch_clock(clock, standing, parts.reporter(Task::Clock, Some(CLOCK_INTERVAL))));
    let reporter = parts.reporter(Task::Principals, Some(LOOK_INTERVAL));
    tasks.spawn("principals", parts.principals(config, authority).keep(reporter));
    let reporter = parts.reporter(Task::Forgeries, Some(REPORT_INTERVAL));
    tasks.spawn("forgeries", parts.forgery_reporter().keep_reporting(reporter));
    let reporter = parts.reporter(Task::Denials, Some(SUMMARY_INTERVAL));
    tasks.spawn("denials", denials::keep_summarizing(Arc::clone(&app), reporter));
    let reporter = parts.reporter(Task::Retention, Some(ROUND_INTERVAL));
    tasks.spawn("retention", parts.retention(config).keep(reporter));
    let reporter = parts.reporter(Task::Checkpoints, Some(checkpoints::LOOK_INTERVAL));
    tasks.spawn("checkpoints", parts.checkpoint_keeper(config, &app).keep(reporter));
    let reporter = parts.reporter(Task::Verification, Some(FULL_INTERVAL));
    tasks.spawn("verification", keep_verifying(Arc::clone(&app), reporter));
    let mut phase = parts.shutdown.clone();
    let stopping = async move {
        phase.wait_for(|phase| *phase == ShutdownPhase::Stopping).await.ok();
    };
    tasks
        .spawn("server", api::serve(Arc::clone(&app), listener, health, Authenticators::default(), stopping));
    tracing::info!(%address, "listening");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
    Ok(RunningBroker { tasks, sessions: parts.sessions, cluster: parts.cluster, app })
}

/// The parts that a broker's tasks share.
struct Parts {
    store: Store,
    sessions: Arc<AgentSessions>,
    cloud: Arc<CloudLayer>,
    cluster: Arc<Cluster>,
    wakeups: Arc<Wakeups>,
    grant_changes: GrantChanges,
    revocations: Arc<Revocations>,
    checkpoints: Arc<Checkpoints>,
    policies_seen: Arc<PoliciesSeen>,
    progress: Arc<GrantProgress>,
    readiness: Readiness,
    rounds: Arc<Rounds>,
    shutdown: watch::Receiver<ShutdownPhase>,
    clock: Clock,
}

impl Parts {
    fn new(
        store: Store,
        coordination: Arc<dyn Coordination>,
        providers: Providers,
        clock: Clock,
        readiness: Readiness,
        policies_seen: Arc<PoliciesSeen>,
        shutdown: watch::Receiver<ShutdownPhase>,
    ) -> Self {
        let wakeups = Arc::new(Wakeups::default());
        let cluster = Cluster::of(coordination);
        Self {
            store,
            sessions: AgentSessions::new(clock, Arc::clone(&wakeups)),
            cloud: CloudLayer::new(providers, clock, Arc::clone(&wakeups), Arc::clone(&cluster.leases)),
            cluster,
            wakeups,
            grant_changes: GrantChanges::default(),
            revocations: Arc::default(),
            checkpoints: Arc::default(),
            policies_seen,
            progress: Arc::default(),
            readiness,
            rounds: Arc::default(),
            shutdown,
            clock,
        }
    }

    /// Enters a task that begins now into the table of rounds; `every` is its period, if it does not only wait for events.
    fn reporter(&self, task: Task, every: Option<Duration>) -> RoundReporter {
        self.rounds.reporter(task, every, boottime())
    }

    fn observer(&self) -> Observer {
        Observer {
            sessions: Arc::clone(&self.sessions),
            cloud: Arc::clone(&self.cloud),
            leases: Arc::clone(&self.cluster.leases),
        }
    }

    fn reconciler(&self) -> Reconciler {
        Reconciler {
            store: self.store.clone(),
            sessions: Arc::clone(&self.sessions),
            cloud: Arc::clone(&self.cloud),
            observer: self.observer(),
            cluster: Arc::clone(&self.cluster),
            wakeups: Arc::clone(&self.wakeups),
            grant_changes: self.grant_changes.clone(),
            clock: self.clock,
            progress: Arc::clone(&self.progress),
        }
    }

    fn membership(
        &self,
        config: &BrokerConfig,
        standing: Arc<Standing>,
        head: watch::Sender<u64>,
    ) -> MembershipKeeper {
        let (readiness, checkpoints) = (self.readiness.clone(), Arc::clone(&self.checkpoints));
        let store = self.store.clone();
        let warnings = move || {
            let shortages = in_words(&readiness.shortages());
            [standing.warnings(), shortages, checkpoints.warnings(), store.forgeries().warnings()].concat()
        };
        MembershipKeeper {
            cluster: Arc::clone(&self.cluster),
            sessions: Arc::clone(&self.sessions),
            cloud: Arc::clone(&self.cloud),
            wakeups: Arc::clone(&self.wakeups),
            clock: self.clock,
            name: config.replica_name.clone(),
            head,
            readiness: self.readiness.clone(),
            warnings: Box::new(warnings),
            shutdown: self.shutdown.clone(),
        }
    }

    fn follower(&self, head: watch::Receiver<u64>) -> Follower {
        Follower {
            cluster: Arc::clone(&self.cluster),
            store: self.store.clone(),
            sessions: Arc::clone(&self.sessions),
            cloud: Arc::clone(&self.cloud),
            wakeups: Arc::clone(&self.wakeups),
            grant_changes: self.grant_changes.clone(),
            revocations: Arc::clone(&self.revocations),
            head,
            // A broker with a store to itself receives no event.
            reporter: self.reporter(Task::Follower, self.cluster.peer_status.is_read().then_some(LATE_AFTER)),
        }
    }

    fn checkpoint_keeper(&self, config: &BrokerConfig, app: &App) -> CheckpointKeeper {
        CheckpointKeeper {
            store: self.store.clone(),
            authority: Arc::clone(&app.authority),
            revocations: Arc::clone(&self.revocations),
            checkpoints: Arc::clone(&self.checkpoints),
            file: MemoryFile::of(&config.data_dir),
            records: config.audit.checkpoint_records,
            every: config.audit.checkpoint_every,
            trust_domain: config.trust_domain.to_string(),
            log: config.log_name(),
            clock: self.clock,
        }
    }

    fn forgery_reporter(&self) -> ForgeryReporter {
        ForgeryReporter {
            store: self.store.clone(),
            seen: Arc::clone(&self.policies_seen),
            sessions: Arc::clone(&self.sessions),
            cluster: Arc::clone(&self.cluster),
            cloud: Arc::clone(&self.cloud),
            wakeups: Arc::clone(&self.wakeups),
            clock: self.clock,
        }
    }

    fn principals(&self, config: &BrokerConfig, authority: Arc<Authority>) -> PrincipalKeeper {
        PrincipalKeeper {
            store: self.store.clone(),
            revocations: Arc::clone(&self.revocations),
            journal: Journal::of(&config.data_dir),
            authority,
            clock: self.clock,
        }
    }

    fn retention(&self, config: &BrokerConfig) -> RetentionKeeper {
        RetentionKeeper {
            store: self.store.clone(),
            cluster: Arc::clone(&self.cluster),
            cloud: Arc::clone(&self.cloud),
            checkpoints: Arc::clone(&self.checkpoints),
            settings: config.retention.clone(),
            clock: self.clock,
        }
    }

    fn app(&self, config: &BrokerConfig, authority: Arc<Authority>, standing: Arc<Standing>) -> App {
        App {
            store: self.store.clone(),
            sessions: Arc::clone(&self.sessions),
            cloud: Arc::clone(&self.cloud),
            observer: self.observer(),
            cluster: Arc::clone(&self.cluster),
            clone_attempts: CloneAttempts::default(),
            wakeups: Arc::clone(&self.wakeups),
            grant_changes: self.grant_changes.clone(),
            revocations: Arc::clone(&self.revocations),
            readiness: self.readiness.clone(),
            rounds: Arc::clone(&self.rounds),
            about: About::of(config),
            address_proofs: AddressProofs::default(),
            deciding: Deciding::default(),
            denials: Denials::new(&config.limits),
            quotas: RequestQuotas::new(&config.quotas),
            retention: config.retention.clone(),
            shutdown: self.shutdown.clone(),
            checkpoints: Arc::clone(&self.checkpoints),
            policies_seen: Arc::clone(&self.policies_seen),
            verifications: Verifications::default(),
            clock: self.clock,
            authority,
            standing,
            trust_domain: config.trust_domain.clone(),
            management_ports: config.management_ports.clone(),
        }
    }
}

/// Returns the configured limits, within the limit on this process's file descriptors.
fn limits_of(config: &BrokerConfig) -> Limits {
    let limits = config.limits.clone().within(limits::descriptors());
    if limits != config.limits {
        tracing::warn!(
            connections = limits.connections,
            wanted = config.limits.connections,
            "the limit on file descriptors allows fewer connections than [limits]; raise LimitNOFILE"
        );
    }
    limits
}

/// Refuses to start with a root key that other users can read: it is leaked, and an operator has to know before it signs.
fn refuse_exposed_root_key(authority: &Authority, config: &BrokerConfig) -> anyhow::Result<()> {
    match authority.check_root_key(&config.root_key) {
        Err(error @ (PkiError::ExposedKey { .. } | PkiError::ForeignKey(_))) => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Shows the difference between the wall clock and the broker's own, and logs it at the start and after each step: ends of
/// grants stand still on the broker's own clock.
async fn watch_clock(clock: Clock, standing: Arc<Standing>, reporter: RoundReporter) -> anyhow::Result<()> {
    let mut logged = SignedDuration::ZERO;
    loop {
        let ahead = clock.wall_ahead();
        telemetry::clock_ahead(ahead);
        standing.note_clock(ahead);
        if ahead.checked_sub(logged).is_none_or(|moved| moved.unsigned_abs() > CLOCK_TOLERANCE) {
            tracing::warn!(
                event = "clock.differs",
                seconds_ahead = ahead.as_secs(),
                "the wall clock differs from the broker's own: it was stepped, or the newest audit record is ahead of it; \
                 grants go on by the broker's own clock"
            );
            logged = ahead;
        }
        reporter.succeeded(boottime());
        tokio::time::sleep(CLOCK_INTERVAL).await;
    }
}
