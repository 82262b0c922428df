//! A broker that sends an agent what a test wants: twice, late, or in the wrong order.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use postern_core::TargetId;
use postern_pki::authority::{AGENT_LIFETIME, Authority};
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::{SpiffeId, TrustDomain};
use postern_pki::tls::{ServerIdentity, server_config};
use postern_proto::convert::duration_to_wire;
use postern_proto::v1;
use postern_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use postern_proto::v1::session_request::Message as In;
use postern_proto::v1::session_response::Message as Out;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::broker::PORT;
use crate::clock::{monotonic, wall};
use crate::net::Host;
use crate::netns::Netns;
use crate::process::STEP_TIMEOUT;

/// A broker that waits for agents on its host.
#[derive(Debug)]
pub struct FakeBroker {
    netns: Netns,
    url: String,
    authority: Authority,
    sessions: Arc<Mutex<mpsc::Receiver<Opened>>>,
}

/// An agent's session.
#[derive(Debug)]
pub struct AgentSession {
    netns: Netns,
    opened: Arc<Mutex<Opened>>,
    hello: (u64, Instant),
}

#[derive(Debug)]
struct Opened {
    send: mpsc::Sender<Result<v1::SessionResponse, Status>>,
    receive: Streaming<v1::SessionRequest>,
}

impl FakeBroker {
    /// Starts to listen. `dir` takes its authority.
    ///
    /// # Panics
    /// It cannot.
    pub fn start(host: &Host, dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a directory can be made");
        let authority =
            Authority::init(dir, &TrustDomain::default(), wall()).expect("an authority can be made");
        let key = KeyPair::generate().expect("a key can be made");
        let csr = key.csr().expect("a request can be signed");
        let names = [host.v4().to_string()];
        let issued = authority
            .issue_server(&csr, &names, AGENT_LIFETIME, wall())
            .expect("a certificate can be issued");
        let own =
            Credentials::new(key, issued.chain, authority.roots()).expect("the certificate is for the key");
        let identity = ServerIdentity::new(own).expect("the identity can be used");
        let tls = TlsAcceptor::from(server_config(&identity).expect("the identity can be used"));
        let (opened, sessions) = mpsc::channel(16);
        let listener = host.netns().run(TcpListener::bind((host.v4(), PORT))).expect("the port is free");
        host.netns().start(serve(listener, tls, Sessions { opened }));
        let sessions = Arc::new(Mutex::new(sessions));
        Self {
            netns: host.netns().clone(),
            url: format!("https://{}:{PORT}", host.v4()),
            authority,
            sessions,
        }
    }

    /// The broker's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Puts an agent's identity into a directory, as its enrolment would.
    ///
    /// # Panics
    /// It cannot.
    pub fn issue(&self, target: &str, identity: &Path) {
        let target: TargetId = target.parse().expect("a target");
        let key = KeyPair::generate().expect("a key can be made");
        let csr = key.csr().expect("a request can be signed");
        let issued = self.authority.issue(&csr, &SpiffeId::Agent(target), AGENT_LIFETIME, wall());
        let issued = issued.expect("a certificate can be issued");
        let own = Credentials::new(key, issued.chain, self.authority.roots())
            .expect("the certificate is for the key");
        own.save(identity).expect("the identity can be kept");
    }

    /// Waits for the next session, and receives its hello.
    ///
    /// # Panics
    /// None begins in time.
    pub fn session(&self) -> AgentSession {
        let sessions = Arc::clone(&self.sessions);
        let (opened, sent_at) = self.netns.run(async move {
            let opened = timeout(STEP_TIMEOUT, async { sessions.lock().await.recv().await }).await;
            let mut opened = opened.expect("an agent connects").expect("the broker listens");
            let hello =
                opened.receive.message().await.expect("the session holds").expect("the session holds");
            (opened, hello.sent_at)
        });
        AgentSession {
            netns: self.netns.clone(),
            opened: Arc::new(Mutex::new(opened)),
            hello: (sent_at, monotonic()),
        }
    }
}

impl AgentSession {
    /// Sends the agent a desired state. The windows' remaining time counts from now.
    pub fn send(&self, desired: v1::DesiredState) {
        let (heard, at) = self.hello;
        let message = v1::SessionResponse {
            heard,
            heard_ago: Some(duration_to_wire(at.elapsed())),
            message: Some(Out::Desired(desired)),
        };
        let opened = Arc::clone(&self.opened);
        let sent = self.netns.run(async move { opened.lock().await.send.send(Ok(message)).await });
        sent.expect("the session holds");
    }

    /// Waits for the answer to a generation, and returns its error; empty where it was applied.
    ///
    /// # Panics
    /// None comes in time.
    pub fn answer_to(&self, generation: u64) -> String {
        let opened = Arc::clone(&self.opened);
        self.netns.run(async move {
            let answer = async {
                let mut opened = opened.lock().await;
                loop {
                    let message = opened
                        .receive
                        .message()
                        .await
                        .expect("the session holds")
                        .expect("the session holds");
                    if let Some(In::Applied(applied)) = message.message
                        && applied.generation == generation
                    {
                        return applied.error;
                    }
                }
            };
            timeout(STEP_TIMEOUT, answer)
                .await
                .unwrap_or_else(|_| panic!("no answer to generation {generation}"))
        })
    }

    /// Ends the session.
    pub fn end(self) {
        let opened = Arc::clone(&self.opened);
        // Where the agent has gone already, there is nothing to end.
        let _ = self
            .netns
            .run(async move { opened.lock().await.send.send(Err(Status::aborted("a test"))).await });
        std::thread::sleep(Duration::from_millis(10));
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, sessions: Sessions) {
    let mut connections = JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, sessions) = (tls.clone(), sessions.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(tcp).await else { return };
            let service = TowerToHyperService::new(AgentServiceServer::new(sessions));
            // However the connection ends, that is the agent's doing or the test's.
            let _ = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The service: a session is handed to the test, everything else is not there.
#[derive(Clone)]
struct Sessions {
    opened: mpsc::Sender<Opened>,
}

fn absent<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("this broker leads sessions only"))
}

#[tonic::async_trait]
impl AgentService for Sessions {
    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (send, responses) = mpsc::channel(16);
        let opened = Opened { send, receive: request.into_inner() };
        self.opened.send(opened).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn create_join_token(
        &self,
        _: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        absent()
    }

    async fn enroll(&self, _: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollResponse>, Status> {
        absent()
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        absent()
    }

    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        absent()
    }

    async fn forget_agent(
        &self,
        _: Request<v1::ForgetAgentRequest>,
    ) -> Result<Response<v1::ForgetAgentResponse>, Status> {
        absent()
    }

    async fn ban_agent(
        &self,
        _: Request<v1::BanAgentRequest>,
    ) -> Result<Response<v1::BanAgentResponse>, Status> {
        absent()
    }
}
