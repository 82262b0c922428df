//! The bare cost of sessions: a server of tonic alone, in a process of its own, that does what any such server must. It
//! speaks TLS 1.3 with clients' certificates, answers a hello with a first message and each heartbeat with another, and
//! pushes to the agent that a caller names.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use postern_pki::Authority;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::TrustDomain;
use postern_pki::tls::{ServerIdentity, server_config};
use postern_proto::v1;
use postern_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use postern_proto::v1::session_request::Message as In;
use postern_proto::v1::session_response::Message as Out;
use postern_tests::clock::{monotonic, wait_until, wall};
use postern_tests::{Host, HostWorld, tied};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

/// The child process that serves bare sessions: `bare-server IDENTITY ADDRESS`.
pub(crate) const SERVER: &str = "bare-server";
/// The server's address on the broker's host.
const ADDRESS: &str = "192.0.2.1:7444";

/// The URL of the server that [`start`] starts.
pub(crate) fn url() -> String {
    format!("https://{ADDRESS}")
}

/// Makes an identity for the server, of the broker's own authority.
pub(crate) fn identity(world: &HostWorld) -> PathBuf {
    let authority = authority(world);
    let key = KeyPair::generate().unwrap();
    let names = [world.net.hub.v4().to_string()];
    let issued =
        authority.issue_server(&key.csr().unwrap(), &names, Duration::from_secs(3600), wall()).unwrap();
    let directory = world.dir().join("bare");
    Credentials::new(key, issued.chain, authority.roots()).unwrap().save(&directory).unwrap();
    directory
}

/// The broker's authority.
pub(crate) fn authority(world: &HostWorld) -> Authority {
    Authority::load(&world.broker.data_dir().join("ca"), &TrustDomain::default()).unwrap()
}

/// Starts the server on the broker's host, and waits until it listens.
pub(crate) fn start(host: &Host, identity: &Path) -> Child {
    let mut command = tied(std::env::current_exe().unwrap());
    command.args([SERVER, &identity.to_string_lossy(), ADDRESS]);
    let server = host.netns().spawn(command).unwrap();
    let listening = || host.netns().run(async { TcpStream::connect(ADDRESS).await.is_ok() });
    wait_until("the bare server to listen", Duration::from_secs(10), listening);
    server
}

/// Serves until the process is killed.
pub(crate) fn serve(arguments: &[String]) {
    let [identity, address] = arguments else { panic!("{SERVER} takes an identity and an address") };
    let identity = ServerIdentity::new(Credentials::load(Path::new(identity)).unwrap()).unwrap();
    let tls = TlsAcceptor::from(server_config(&identity).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let listener = TcpListener::bind(address).await.unwrap();
        let bare = Bare::default();
        let mut connections = JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            let (tls, bare) = (tls.clone(), bare.clone());
            connections.spawn(async move {
                tcp.set_nodelay(true).unwrap();
                let Ok(stream) = tls.accept(tcp).await else { return };
                let service = TowerToHyperService::new(AgentServiceServer::new(bare));
                http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await
                    .ok();
            });
        }
    });
}

/// The sessions, by target.
#[derive(Clone, Default)]
struct Bare(Arc<Mutex<HashMap<String, Pushes>>>);

/// The queue of pushes to a session; each names the channel on which its acknowledgement is reported.
type Pushes = mpsc::Sender<oneshot::Sender<()>>;

struct Session {
    incoming: Streaming<v1::SessionRequest>,
    pushes: mpsc::Receiver<oneshot::Sender<()>>,
    generation: u64,
    acknowledged: Option<oneshot::Sender<()>>,
}

impl Bare {
    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Pushes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    /// The next message for the agent; none where it has gone.
    async fn next(&mut self) -> Option<Out> {
        loop {
            tokio::select! {
                push = self.pushes.recv() => {
                    self.acknowledged = Some(push?);
                    return Some(self.desired());
                }
                received = self.incoming.message() => match received.ok()??.message {
                    Some(In::Heartbeat(_)) => return Some(Out::Heartbeat(v1::HeartbeatReply {})),
                    Some(In::Applied(applied)) => {
                        let acknowledged = self.acknowledged.take_if(|_| applied.generation == self.generation);
                        if let Some(acknowledged) = acknowledged {
                            acknowledged.send(()).ok();
                        }
                    }
                    Some(In::Hello(_) | In::Tampering(_) | In::CheckpointReport(_) | In::Enforcement(_)) | None => {}
                },
            }
        }
    }

    /// Builds a message with one port and one window, as a broker would send it.
    fn desired(&mut self) -> Out {
        self.generation += 1;
        let port = Some(v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 });
        let window = v1::HostWindow {
            grant_id: "01JD0000000000000000000000".to_owned(),
            port,
            source: "192.0.2.20/32".to_owned(),
            remaining: Some(postern_proto::convert::duration_to_wire(Duration::from_secs(3600))),
        };
        let (ports, windows) = (port.into_iter().collect(), vec![window]);
        Out::Desired(v1::DesiredState {
            generation: self.generation,
            mode: v1::Mode::Enforce.into(),
            ports,
            windows,
            keep_protection: false,
            policy_generation: 0,
        })
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<v1::SessionResponse, Status>> + Send>>;

fn response(message: Out) -> v1::SessionResponse {
    v1::SessionResponse { message: Some(message), ..v1::SessionResponse::default() }
}

#[tonic::async_trait]
impl AgentService for Bare {
    type SessionStream = Answers;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|first| first.message);
        let Some(In::Hello(hello)) = first else { return Err(Status::invalid_argument("")) };
        let (sender, pushes) = mpsc::channel(1);
        self.sessions().insert(hello.agent_version, sender);
        let mut session = Session { incoming, pushes, generation: 0, acknowledged: None };
        let first = session.desired();
        let more = stream::unfold(session, |mut session| async move {
            let next = session.next().await?;
            Some((next, session))
        });
        let answers = tokio_stream::once(first).chain(more).map(|message| Ok(response(message)));
        Ok(Response::new(Box::pin(answers)))
    }

    /// A push to the target's agent. The answer has the microseconds until its acknowledgement in the place of a token.
    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let pushes = self.sessions().get(&request.get_ref().target).cloned();
        let gone = || Status::unavailable("it has no session");
        let (acknowledge, acknowledged) = oneshot::channel();
        let began = monotonic();
        pushes.ok_or_else(gone)?.send(acknowledge).await.map_err(|_| gone())?;
        acknowledged.await.map_err(|_| gone())?;
        let token = began.elapsed().as_micros().to_string();
        Ok(Response::new(v1::CreateJoinTokenResponse { token, expires_at: None }))
    }

    async fn enroll(&self, _: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn renew(&self, _: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn forget_agent(
        &self,
        _: Request<v1::ForgetAgentRequest>,
    ) -> Result<Response<v1::ForgetAgentResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn ban_agent(
        &self,
        _: Request<v1::BanAgentRequest>,
    ) -> Result<Response<v1::BanAgentResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
