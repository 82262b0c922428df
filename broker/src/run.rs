//! `serve`: the composition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord};
use postern_core::target::CloudKind;
use postern_pki::life::Life;
use postern_pki::tls::{self, ServerIdentity};
use postern_pki::{Authority, PkiError};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, Listener};
use crate::app::status::About;
use crate::app::{App, Feed};
use crate::authority::{Keeper, Standing, first_serving, show_readiness};
use crate::clock::Clock;
use crate::cloud::Clouds;
use crate::config::Config;
use crate::ending::Ending;
use crate::hub::Hub;
use crate::limits;
use crate::measure::{self, Ways};
use crate::readiness::{self, Readiness};
use crate::reconcile::{Pulse, Reconciler, Wakeups};
use crate::replica::{Follower, Member, Replica};
use crate::store::alone::Alone;
use crate::store::embedded::Embedded;
use crate::store::measured::Measured;
use crate::store::redis::{Redis, RedisSettings};
use crate::store::{Members, Store, Transaction};
use crate::tasks::Tasks;
use crate::watchers::{self, Shown};
use postern_provider::Provider;

/// How long the last answers may take when the broker ends.
const DRAIN: Duration = Duration::from_secs(3);
/// How far the wall clock may be off before the log says so.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(5);

/// The clouds that are driven.
pub type Providers = BTreeMap<CloudKind, Arc<dyn Provider>>;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or one of its tasks ended.
pub async fn serve(config: Config, providers: Providers) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let (store, members) = open_store(&config).await?;
    let (end, ended) = tokio::sync::watch::channel(Ending::NotYet);
    let readiness = Readiness::default();
    let Running { mut tasks, hub, replica } =
        start(&config, store, members, providers, &readiness, ended).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        error = tasks.first_end() => return Err(error),
    }
    readiness.set(readiness::ENDING, "the broker is ending");
    tracing::info!("ending");
    end.send_replace(Ending::Announced);
    // Load balancers find out that this broker is not to be sent anything any more, while it still answers.
    tokio::select! {
        () = tokio::time::sleep(config.drain) => {}
        error = tasks.first_end() => return Err(error),
    }
    // The server takes nothing new and ends by itself once its last answer is out; agents go to another broker.
    end.send_replace(Ending::Begun);
    hub.end_all("the broker is ending; connect to another");
    tokio::time::timeout(DRAIN, tasks.first_end()).await.ok();
    if let Err(error) = replica.members.leave().await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the others find out by themselves that this broker left"
        );
    }
    Ok(())
}

/// A broker that runs, as far as its end is concerned.
struct Running {
    tasks: Tasks,
    hub: Arc<Hub>,
    replica: Arc<Replica>,
}

/// The store, and who else uses it.
pub type Opened = (Arc<dyn Store>, Arc<dyn Members>);

/// Opens the store that the configuration names. What its settings cannot promise is logged.
///
/// # Errors
/// It cannot be opened.
pub async fn open_store(config: &Config) -> anyhow::Result<Opened> {
    let Some(settings) = &config.redis else {
        let store = Embedded::open(&config.store_path()).with_context(|| {
            format!("cannot open {}; was `postern-broker init` run?", config.store_path().display())
        })?;
        return Ok((Arc::new(store), Arc::new(Alone::default())));
    };
    let store = Arc::new(Redis::open(settings).await.context("cannot open the store on Redis")?);
    for warning in Redis::warnings(settings).await.context("cannot look at Redis's settings")? {
        tracing::warn!(%warning, "Redis cannot keep what is promised");
    }
    let members: Arc<dyn Members> = Arc::clone(&store) as _;
    Ok((store, members))
}

/// Starts every task. The server ends when `ended` says so.
async fn start(
    config: &Config,
    store: Arc<dyn Store>,
    members: Arc<dyn Members>,
    providers: Providers,
    readiness: &Readiness,
    ended: tokio::sync::watch::Receiver<Ending>,
) -> anyhow::Result<Running> {
    let store: Arc<dyn Store> = Arc::new(Measured::new(store));
    let clock = Clock::start(newest_record(store.as_ref()).await?);
    let authority = Authority::load(&config.authority_dir(), &config.trust_domain)?;
    let standing = Arc::new(Standing::of(config));
    refuse_exposed_root_key(&authority, config)?;
    // Before the first beat, so that the other brokers and the readiness know of an ended authority from the start.
    show_readiness(&authority, readiness, &standing.look(&authority, clock.now()), clock.now());
    let credentials = first_serving(&authority, &config.names, clock.now())?;
    let serving = Life { not_before: credentials.not_before(), not_after: credentials.not_after() };
    let identity = ServerIdentity::new(credentials)?;
    let tls = tls::server_config(&identity)?;
    let limits = config.limits.clone().within(limits::descriptors());
    if limits != config.limits {
        tracing::warn!(
            connections = limits.connections,
            wanted = config.limits.connections,
            "the limit on file descriptors allows fewer connections than [limits]; raise LimitNOFILE"
        );
    }
    let listener = Listener::bind(config.listen, tls, config.trust_domain.clone(), limits).await?;
    let address = listener.address()?;

    let wakeups = Arc::new(Wakeups::default());
    let (hub, replica) = (Hub::new(clock, Arc::clone(&wakeups)), Replica::of(members));
    let clouds = Clouds::new(providers, clock, Arc::clone(&wakeups), Arc::clone(&replica));
    let (feed, pulse, ways) = (Feed::default(), Arc::new(Pulse::default()), Arc::new(Ways::default()));
    let reconciler = Reconciler {
        store: Arc::clone(&store),
        hub: Arc::clone(&hub),
        clouds: Arc::clone(&clouds),
        replica: Arc::clone(&replica),
        wakeups: Arc::clone(&wakeups),
        feed: feed.clone(),
        clock,
        pulse: Arc::clone(&pulse),
        ways: Arc::clone(&ways),
    };
    let (head, heads) = tokio::sync::watch::channel(store.audit_head().await?.seq);
    let member = Member {
        replica: Arc::clone(&replica),
        hub: Arc::clone(&hub),
        clouds: Arc::clone(&clouds),
        wakeups: Arc::clone(&wakeups),
        clock,
        name: config.replica_name.clone(),
        head,
        readiness: readiness.clone(),
        standing: Arc::clone(&standing),
        ending: ended.clone(),
    };
    let follower = Follower {
        replica: Arc::clone(&replica),
        store: Arc::clone(&store),
        hub: Arc::clone(&hub),
        clouds: Arc::clone(&clouds),
        wakeups: Arc::clone(&wakeups),
        feed: feed.clone(),
        head: heads,
    };
    let trust_domain = config.trust_domain.clone();
    let app = App {
        store: Arc::clone(&store),
        hub: Arc::clone(&hub),
        clouds: Arc::clone(&clouds),
        replica: Arc::clone(&replica),
        wakeups,
        feed,
        readiness: readiness.clone(),
        about: About::of(config),
        ending: ended.clone(),
        clock,
        authority,
        standing,
        trust_domain,
        management_ports: config.management_ports.clone(),
    };
    let app = Arc::new(app);
    let (reporter, health) = tonic_health::server::health_reporter();

    let mut tasks = Tasks::default();
    if let Some(listen) = config.metrics_listen {
        let (metrics, readiness) = (measure::install(readiness)?, readiness.clone());
        let shown = Shown { metrics, readiness, pulse: Arc::clone(&pulse), clock };
        tasks.spawn("metrics", watchers::serve(watchers::bind(listen).await?, shown));
    }
    // Also where nobody looks at metrics: it is what forgets the ways of grants that are over.
    tasks.spawn("sample", measure::keep_sampling(Arc::clone(&store), ways, clock));
    let kept = Arc::clone(&store);
    let settings = config.redis.clone();
    tasks.spawn("store", async move {
        let reason = kept.lost().await;
        if let Some(settings) = settings {
            tell_of_loss(&settings, &reason, clock).await;
        }
        Err(anyhow::anyhow!(reason))
    });
    let (joined, is_joined) = tokio::sync::oneshot::channel();
    tasks.spawn("membership", member.keep(joined));
    // Nothing is begun before this broker is one of the members, and has taken over what nobody works on.
    tokio::select! {
        _ = is_joined => {}
        error = tasks.first_end() => return Err(error),
    }
    tasks.spawn("follower", follower.follow());
    let telling = Arc::clone(&replica);
    tasks.spawn("views", async move { telling.views.keep_telling().await });
    tasks.spawn("reconciler", reconciler.run());
    tasks.spawn("clouds", Arc::clone(&clouds).run());
    tasks.spawn("sweep", Arc::clone(&clouds).keep_sweeping(config.sweep_every));
    tasks.spawn("journal", clouds.keep_journal(Arc::clone(&store)));
    tasks.spawn("readiness", readiness::keep_looking(readiness.clone(), store, pulse, clock));
    tasks.spawn("health", api::report_health(reporter, readiness.clone()));
    let keeper = Keeper { app: Arc::clone(&app), identity, serving, names: config.names.clone() };
    tasks.spawn("authority", keeper.keep());
    tasks.spawn("clock", watch_clock(clock));
    let mut begun = ended;
    let shutdown = async move {
        begun.wait_for(|ending| *ending == Ending::Begun).await.ok();
    };
    tasks.spawn("server", api::serve(app, listener, health, shutdown));
    tracing::info!(%address, "listening");
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
    Ok(Running { tasks, hub, replica })
}

/// Leaves a word in the audit log that goes on without what it had (I9). The store as it was opened is not believed any more.
async fn tell_of_loss(settings: &RedisSettings, reason: &str, clock: Clock) {
    let event = AuditEvent::done(clock.now(), "broker", "store.went_back").with("reason", reason);
    let telling = async {
        let store = Redis::open(settings).await?;
        store.commit(Transaction::default().audit(event)).await?;
        store.leave().await
    };
    match tokio::time::timeout(DRAIN, telling).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::error!(error = &error as &dyn std::error::Error, "the loss is in no audit log")
        }
        Err(_) => tracing::error!("the loss is in no audit log: the store did not answer in time"),
    }
}

/// When the newest audit record was written; the clock never falls behind it.
async fn newest_record(store: &dyn Store) -> anyhow::Result<Timestamp> {
    let head = store.audit_head().await?;
    let Some(before) = head.seq.checked_sub(1) else { return Ok(Timestamp::UNIX_EPOCH) };
    let lines = store.audit_lines(before, 1).await?;
    let record = lines.first().and_then(|(_, line)| serde_json::from_str::<AuditRecord>(line).ok());
    // A broken line is for `audit verify` to name; it must not keep the broker from closing what is open.
    Ok(record.map_or(Timestamp::UNIX_EPOCH, |record| record.event.at))
}

/// Refuses to start with a root key that others can read: it is leaked, and an operator has to know before it signs.
fn refuse_exposed_root_key(authority: &Authority, config: &Config) -> anyhow::Result<()> {
    match authority.check_root_key(&config.root_key) {
        Err(error @ PkiError::ExposedKey { .. }) => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Says so when the wall clock was stepped: ends of grants stand still on the broker's own clock.
async fn watch_clock(clock: Clock) -> anyhow::Result<()> {
    let mut said = clock.wall_ahead();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let ahead = clock.wall_ahead();
        measure::clock_ahead(ahead);
        if ahead.checked_sub(said).is_none_or(|moved| moved.unsigned_abs() > CLOCK_TOLERANCE) {
            tracing::warn!(
                seconds_ahead = ahead.as_secs(),
                "the wall clock was stepped; grants go on by the broker's own clock until it is restarted"
            );
            said = ahead;
        }
    }
}
