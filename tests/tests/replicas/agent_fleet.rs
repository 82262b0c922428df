//! A fleet of many agents in this process. Each is the real one (its sessions, its reconciler, its ledger, its certificate from
//! a real enrolment) on a host layer in memory.

mod host;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use postern_agent::checkpoint::{self, CheckpointHandle, CheckpointKeeper};
use postern_agent::config::{AgentConfig, LogFormat};
use postern_agent::enroll::enroll;
use postern_agent::host_reconciler::{self, HostReconciler, ReconcilerHandle};
use postern_agent::ledger::Ledger;
use postern_agent::limits::StateLimits;
use postern_agent::session::{BrokerSession, BrokerTrust};
use postern_agent::status::StatusFile;
use postern_agent::{clock, reports};
use postern_pki::credentials::Credentials;
use postern_pki::tls::client_config;
use postern_proto::client::channel;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_runtime::backoff::{Backoff, Pauses};
use postern_tests::clock::monotonic;
use postern_tests::{Client, Host};
use tokio::task::JoinSet;

pub(crate) use host::FleetRecord;
use host::MemoryHost;

/// The number of agents that enrol at once.
const AT_ONCE: usize = 16;
/// The interval at which each reconciler reads the clocks.
const TICK: Duration = Duration::from_secs(1);
/// The longest pause before an agent connects again.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// The agents, which run until they are dropped with their host.
#[derive(Debug)]
pub(crate) struct AgentFleet {
    record: Arc<FleetRecord>,
}

/// An agent's link to its broker.
struct Link {
    target: String,
    broker: String,
    credentials: Arc<Credentials>,
    reconciler: ReconcilerHandle,
    state_dir: PathBuf,
    record: Arc<FleetRecord>,
}

impl AgentFleet {
    /// Enrols an agent for each target, through the administrator's broker, and runs them on a host.
    pub(crate) fn gather(host: &Host, admin: &Client, targets: &[String], dir: &Path) -> Self {
        let record = Arc::new(FleetRecord::default());
        let state_dir = |number: usize| dir.join(number.to_string());
        let orders: Vec<_> =
            targets.iter().enumerate().map(|(number, target)| (target.clone(), state_dir(number))).collect();
        let broker = admin.url().to_owned();
        let enrolling = broker.clone();
        admin.run(|channel| async move {
            for some in orders.chunks(AT_ONCE) {
                let mut enrolments = JoinSet::new();
                for order in some {
                    let ((target, dir), channel, broker) =
                        (order.clone(), channel.clone(), enrolling.clone());
                    enrolments.spawn(async move {
                        let request = v1::CreateJoinTokenRequest { target: target.clone(), valid_for: None };
                        let made = AgentServiceClient::new(channel).create_join_token(request).await.unwrap();
                        let token = made.into_inner().token.parse().unwrap();
                        std::fs::create_dir_all(&dir).unwrap();
                        let enrolled = enroll(&broker, &token, &dir.join("identity")).await.unwrap();
                        assert_eq!(enrolled.to_string(), target);
                    });
                }
                enrolments.join_all().await;
            }
        });
        let mut reconcilers = Vec::new();
        for (number, target) in targets.iter().enumerate() {
            let dir = state_dir(number);
            let credentials = Arc::new(Credentials::load(&dir.join("identity")).unwrap());
            let reconciler = keep(target, &broker, &dir, &record);
            reconcilers.push(reconciler.clone());
            let (target, broker, record) = (target.clone(), broker.clone(), Arc::clone(&record));
            let link = Link { target, broker, credentials, reconciler, state_dir: dir, record };
            host.netns().start(link.keep());
        }
        host.netns().start(tick(reconcilers));
        Self { record }
    }

    /// The record of what the agents saw.
    pub(crate) fn record(&self) -> &FleetRecord {
        &self.record
    }
}

/// Starts an agent's reconciler on a thread of its own, which ends with the last handle.
fn keep(target: &str, broker: &str, state_dir: &Path, record: &Arc<FleetRecord>) -> ReconcilerHandle {
    let host = MemoryHost::new(target, Arc::clone(record));
    let config = AgentConfig {
        broker: broker.to_owned(),
        state_dir: state_dir.to_owned(),
        log_format: LogFormat::Text,
        limits: StateLimits::default(),
        confirm_within: None,
        bootstrap: Default::default(),
    };
    let now = clock::moment();
    let suspended = host_reconciler::suspended(now.boottime);
    let reconciler = HostReconciler::start(host, Ledger::in_dir(state_dir), &config, &now, suspended);
    let (handle, commands) = host_reconciler::channel();
    thread::spawn(move || host_reconciler::serve(reconciler, commands, &StatusFile::default()));
    handle
}

async fn tick(reconcilers: Vec<ReconcilerHandle>) {
    let mut interval = tokio::time::interval(TICK);
    loop {
        interval.tick().await;
        for reconciler in &reconcilers {
            reconciler.tick().await;
        }
    }
}

impl Link {
    /// Keeps a session, as the agent's own link does.
    async fn keep(self) {
        let (reporter, mut reports) = reports::channel();
        let keeper = CheckpointKeeper::in_dir(&self.state_dir, reporter);
        let (checkpoints, commands) = checkpoint::channel();
        thread::spawn(move || checkpoint::serve(keeper, commands));
        checkpoints.trust(Arc::clone(&self.credentials), false).await;
        let mut backoff = backoff();
        loop {
            let start = monotonic();
            let was_served = match self.open(&checkpoints).await {
                Ok(mut session) => {
                    self.record.session_began(&self.target, start.elapsed());
                    reports.begin_session();
                    let end = session.run(&self.reconciler, &mut reports, &checkpoints).await;
                    self.record.session_ended(&self.target, &end.to_string());
                    session.got_desired_state()
                }
                Err(error) => {
                    self.record.not_connected(&error);
                    false
                }
            };
            if was_served {
                backoff = self::backoff();
            }
            tokio::time::sleep(backoff.next().unwrap_or(MAX_DELAY)).await;
        }
    }

    async fn open(&self, checkpoints: &CheckpointHandle) -> Result<BrokerSession, String> {
        let tls = client_config(&self.credentials).unwrap();
        let channel = channel(&self.broker, tls).unwrap();
        BrokerSession::open(
            channel,
            self.reconciler.begin_session(self.credentials.key_hash().ok()).await,
            StateLimits::default(),
            BrokerTrust::default(),
            checkpoints.line(Arc::clone(&self.credentials), false).await,
            Arc::new(StatusFile::default()),
        )
        .await
        .map_err(|error| error.to_string())
    }
}

fn backoff() -> Pauses {
    Backoff { first: Duration::from_millis(100), longest: MAX_DELAY }.endless()
}
