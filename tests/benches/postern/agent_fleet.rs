//! A fleet of many agents in this process, each with a session of its own as a real one has it: mutual TLS on its own
//! connection, a hello, heartbeats, and an acknowledgement of every desired state.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postern_pki::credentials::Credentials;
use postern_pki::tls::client_config;
use postern_proto::client::channel;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::session_request::Message as Out;
use postern_proto::v1::session_response::Message as In;
use postern_tests::clock::{monotonic, wait_until};
use postern_tests::{Host, Running};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{interval_at, sleep};
use tokio_rustls::rustls::ClientConfig;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// The interval of the agents' heartbeats.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);
/// The number of agents of one host that connect at once; the others wait for their turn.
const AT_ONCE: usize = 128;
/// The pause before an agent connects again.
const RETRY: Duration = Duration::from_millis(100);
/// The time within which all agents must be in the wanted state.
const FLEET_TIMEOUT: Duration = Duration::from_secs(300);

/// The agents of one broker. They run until they are dropped.
pub(crate) struct AgentFleet {
    shared: Arc<Shared>,
    running: Vec<Running<()>>,
}

struct Shared {
    url: String,
    agents: Vec<Agent>,
    /// True while the agents may connect.
    gate: watch::Sender<bool>,
    /// The number of agents that have a session and received the desired state in it.
    synced: AtomicUsize,
}

struct Agent {
    /// The target that it speaks for.
    target: String,
    tls: Arc<ClientConfig>,
    /// The time of the last desired state that the agent received in its present session.
    received_at: Mutex<Option<Instant>>,
}

/// An agent's session.
struct Session {
    outgoing: mpsc::Sender<v1::SessionRequest>,
    incoming: Streaming<v1::SessionResponse>,
}

impl AgentFleet {
    /// Makes agents with these targets and identities. None of them runs yet.
    pub(crate) fn of(url: &str, identities: &[(String, Credentials)]) -> Self {
        let agent = |(target, credentials): &(String, Credentials)| Agent {
            target: target.clone(),
            tls: client_config(credentials).unwrap(),
            received_at: Mutex::default(),
        };
        let agents = identities.iter().map(agent).collect();
        let (gate, synced) = (watch::channel(true).0, AtomicUsize::new(0));
        Self { shared: Arc::new(Shared { url: url.to_owned(), agents, gate, synced }), running: Vec::new() }
    }

    /// Runs some of them on a host.
    pub(crate) fn run(&mut self, host: &Host, agents: Range<usize>) {
        let shared = Arc::clone(&self.shared);
        self.running.push(host.netns().start(async move {
            let turns = Arc::new(Semaphore::new(AT_ONCE));
            let mut all: JoinSet<()> =
                agents.map(|number| keep(Arc::clone(&shared), number, Arc::clone(&turns))).collect();
            while all.join_next().await.is_some() {}
        }));
    }

    /// Waits until so many have a session and received the desired state.
    pub(crate) fn wait_synced(&self, count: usize) {
        wait_until("the fleet", FLEET_TIMEOUT, || self.shared.synced.load(Ordering::Relaxed) == count);
    }

    /// Lets no agent connect any more, or lets them again.
    pub(crate) fn set_gate(&self, open: bool) {
        self.shared.gate.send_replace(open);
    }

    /// The target of an agent.
    pub(crate) fn target(&self, number: usize) -> &str {
        &self.shared.agents[number].target
    }

    /// Returns when an agent last received a desired state; none where it has no session.
    pub(crate) fn received_at(&self, number: usize) -> Option<Instant> {
        *self.shared.agents[number].received_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AgentFleet {
    fn drop(&mut self) {
        self.running.drain(..).for_each(Running::stop);
    }
}

/// Keeps one agent's session.
async fn keep(shared: Arc<Shared>, number: usize, turns: Arc<Semaphore>) {
    let agent = &shared.agents[number];
    let mut gate = shared.gate.subscribe();
    loop {
        gate.wait_for(|open| *open).await.unwrap();
        let turn = turns.acquire().await.unwrap();
        match Session::open(&shared.url, agent).await {
            Ok(session) => {
                session.hold(&shared, agent, turn).await;
                let mut received_at = agent.received_at.lock().unwrap_or_else(PoisonError::into_inner);
                if received_at.take().is_some() {
                    shared.synced.fetch_sub(1, Ordering::Relaxed);
                }
            }
            Err(_) => {
                drop(turn);
                sleep(RETRY).await;
            }
        }
    }
}

impl Session {
    async fn open(url: &str, agent: &Agent) -> Result<Self, Status> {
        let (outgoing, requests) = mpsc::channel(4);
        // The bare server has no other way to learn who it is.
        let hello = v1::Hello { agent_version: agent.target.clone(), ..v1::Hello::default() };
        outgoing.try_send(message(Out::Hello(hello))).unwrap();
        let channel = channel(url, Arc::clone(&agent.tls)).unwrap();
        let answer = AgentServiceClient::new(channel).session(ReceiverStream::new(requests)).await?;
        Ok(Self { outgoing, incoming: answer.into_inner() })
    }

    /// Plays the agent until the session ends. The next may take its turn once this one has received the desired state.
    async fn hold(mut self, shared: &Shared, agent: &Agent, turn: SemaphorePermit<'_>) {
        let mut turn = Some(turn);
        let mut heartbeats = interval_at(tokio::time::Instant::now() + HEARTBEAT, HEARTBEAT);
        loop {
            let answer = tokio::select! {
                _ = heartbeats.tick() => Out::Heartbeat(v1::Heartbeat {}),
                received = self.incoming.message() => match received {
                    Ok(Some(v1::SessionResponse { message: Some(In::Desired(desired)), .. })) => {
                        let now = monotonic();
                        *agent.received_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
                        if turn.take().is_some() {
                            shared.synced.fetch_add(1, Ordering::Relaxed);
                        }
                        Out::Applied(v1::Applied { generation: desired.generation, error: String::new() })
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) | Err(_) => return,
                },
            };
            if self.outgoing.send(message(answer)).await.is_err() {
                return;
            }
        }
    }
}

fn message(message: Out) -> v1::SessionRequest {
    v1::SessionRequest { sent_at: 0, message: Some(message) }
}
