//! A broker that a test controls, behind real TLS, and a host layer in memory.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use postern_agent::clock::{self, BootTime};
use postern_agent::firewall::policy::HostPolicy;
use postern_agent::host_reconciler::HostLayer;
use postern_core::TargetId;
use postern_pki::authority::Authority;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::{SpiffeId, TrustDomain};
use postern_pki::join::JoinToken;
use postern_pki::tls::{self, ServerIdentity};
use postern_proto::v1;
use postern_proto::v1::agent_service_server::{AgentService, AgentServiceServer};
use postern_proto::v1::session_request::Message as FromAgent;
use postern_proto::v1::session_response::Message as ToAgent;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

/// The longest wait of these tests.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The broker of one test. Dropping it cuts every connection.
pub(crate) struct FakeBroker {
    pub(crate) address: String,
    pub(crate) sessions: mpsc::UnboundedReceiver<FakeSession>,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
    _dir: tempfile::TempDir,
}

struct Shared {
    authority: Authority,
    tokens: Mutex<HashSet<String>>,
    sessions: mpsc::UnboundedSender<FakeSession>,
    renewals: Mutex<u32>,
    /// The answer to a renewal, where a test has another than a broker's.
    answer: Mutex<Option<RenewalAnswer>>,
}

/// Makes the answer to a renewal from the certificate request.
type RenewalAnswer = Box<dyn Fn(&[u8]) -> v1::RenewResponse + Send>;

/// A session of an agent, seen from the broker.
pub(crate) struct FakeSession {
    pub(crate) hello: v1::Hello,
    /// The stamp of the hello.
    pub(crate) hello_at: u64,
    incoming: mpsc::UnboundedReceiver<v1::SessionRequest>,
    outgoing: mpsc::Sender<Result<v1::SessionResponse, Status>>,
}

pub(crate) fn target() -> TargetId {
    "host:web-1".parse().unwrap()
}

impl FakeBroker {
    pub(crate) async fn start(address: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let domain = TrustDomain::default();
        let authority = Authority::init(dir.path(), &domain, clock::wall()).unwrap();
        let key = KeyPair::generate().unwrap();
        let names = [address.to_owned()];
        let issued = authority
            .issue_server(&key.csr().unwrap(), &names, Duration::from_secs(3600), clock::wall())
            .unwrap();
        let own = Credentials::new(key, issued.chain, authority.roots()).unwrap();
        let acceptor = TlsAcceptor::from(tls::server_config(&ServerIdentity::new(own).unwrap()).unwrap());
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();

        let (sender, sessions) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            authority,
            tokens: Mutex::default(),
            sessions: sender,
            renewals: Mutex::default(),
            answer: Mutex::default(),
        });
        let (connections, queue) = mpsc::channel(8);
        let service = AgentServiceServer::new(Service(Arc::clone(&shared)));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, connections));
        tasks.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(ReceiverStream::new(queue)).await.unwrap();
        });
        Self { address: format!("https://{address}:{port}"), sessions, shared, _tasks: tasks, _dir: dir }
    }

    pub(crate) fn token(&self) -> JoinToken {
        let token = JoinToken::generate(self.shared.authority.fingerprint()).unwrap();
        self.shared.tokens.lock().unwrap().insert(token.to_text());
        token
    }

    /// Issues an identity of the target's agent, valid for this long.
    pub(crate) fn identity(&self, lifetime: Duration) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let identity = SpiffeId::Agent(target());
        let issued =
            self.shared.authority.issue(&key.csr().unwrap(), &identity, lifetime, clock::wall()).unwrap();
        Credentials::new(key, issued.chain, self.shared.authority.roots()).unwrap()
    }

    /// The authority of this broker.
    pub(crate) fn authority(&self) -> &Authority {
        &self.shared.authority
    }

    /// The authority of this broker once more, over its files.
    pub(crate) fn same_authority(&self) -> Authority {
        Authority::load(self._dir.path(), &TrustDomain::default()).unwrap()
    }

    /// Answers renewals so from now on.
    pub(crate) fn answer_renewals(&self, answer: impl Fn(&[u8]) -> v1::RenewResponse + Send + 'static) {
        *self.shared.answer.lock().unwrap() = Some(Box::new(answer));
    }

    pub(crate) fn renewals(&self) -> u32 {
        *self.shared.renewals.lock().unwrap()
    }

    pub(crate) async fn session(&mut self) -> FakeSession {
        tokio::time::timeout(SOON, self.sessions.recv()).await.expect("a session soon").unwrap()
    }
}

impl FakeSession {
    /// Sends a state: this generation, tcp/22, and a window with this many seconds left.
    pub(crate) async fn send_state(&self, generation: u64, remaining: u64, received: u64) {
        let port = v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 };
        let window = v1::HostWindow {
            grant_id: "01arz3ndektsv4rrffq69g5fav".into(),
            port: Some(port),
            source: "192.0.2.7/32".into(),
            remaining: Some(seconds(remaining)),
        };
        let desired = v1::DesiredState {
            keep_protection: false,
            generation,
            mode: v1::Mode::Enforce.into(),
            ports: vec![port],
            windows: vec![window],
        };
        self.send(received, ToAgent::Desired(desired)).await;
    }

    pub(crate) async fn send(&self, received: u64, message: ToAgent) {
        let response =
            v1::SessionResponse { heard: received, heard_ago: Some(seconds(0)), message: Some(message) };
        self.outgoing.send(Ok(response)).await.unwrap();
    }

    /// Returns the next message that is no heartbeat, with its stamp.
    pub(crate) async fn next(&mut self) -> (u64, FromAgent) {
        loop {
            let message = tokio::time::timeout(SOON, self.incoming.recv()).await.expect("a message soon");
            let message = message.expect("the session continues");
            let said = message.message.unwrap();
            if !matches!(said, FromAgent::Heartbeat(_)) {
                return (message.sent_at, said);
            }
        }
    }

    pub(crate) async fn applied(&mut self) -> v1::Applied {
        let said = self.next().await.1;
        let FromAgent::Applied(applied) = said else { panic!("{said:?}") };
        applied
    }

    /// Waits until the agent has ended this session.
    pub(crate) async fn ended(&mut self) {
        let end = async { while self.incoming.recv().await.is_some() {} };
        tokio::time::timeout(SOON, end).await.expect("the session ends");
    }
}

fn seconds(seconds: u64) -> prost_types::Duration {
    prost_types::Duration { seconds: i64::try_from(seconds).unwrap(), nanos: 0 }
}

struct Service(Arc<Shared>);

#[tonic::async_trait]
impl AgentService for Service {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollResponse>, Status> {
        let asked = request.into_inner();
        if !self.0.tokens.lock().unwrap().remove(&asked.token) {
            return Err(Status::permission_denied("the token is not known or was used before"));
        }
        let issued = self.issue(&asked.csr)?;
        let target = target().to_string();
        Ok(Response::new(v1::EnrollResponse {
            certificates: issued,
            roots: self.0.authority.roots(),
            target,
        }))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        *self.0.renewals.lock().unwrap() += 1;
        if let Some(answer) = self.0.answer.lock().unwrap().as_ref() {
            return Ok(Response::new(answer(&request.get_ref().csr)));
        }
        let certificates = self.issue(&request.into_inner().csr)?;
        Ok(Response::new(v1::RenewResponse { certificates, roots: self.0.authority.roots() }))
    }

    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut stream = request.into_inner();
        let first = stream.message().await?.unwrap();
        let Some(FromAgent::Hello(hello)) = first.message else { panic!("no hello first") };
        let (sender, incoming) = mpsc::unbounded_channel();
        let (outgoing, responses) = mpsc::channel(16);
        let session = FakeSession { hello, hello_at: first.sent_at, incoming, outgoing };
        self.0.sessions.send(session).unwrap();
        // The task ends with its stream; the tests read what it forwards.
        let mut forward = JoinSet::new();
        forward.spawn(async move {
            while let Ok(Some(message)) = stream.message().await {
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        forward.detach_all();
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn create_join_token(
        &self,
        _: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        Err(Status::unimplemented("not for agents"))
    }

    async fn list_agents(
        &self,
        _: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        Err(Status::unimplemented("not for agents"))
    }

    async fn forget_agent(
        &self,
        _: Request<v1::ForgetAgentRequest>,
    ) -> Result<Response<v1::ForgetAgentResponse>, Status> {
        Err(Status::unimplemented("not for agents"))
    }

    async fn ban_agent(
        &self,
        _: Request<v1::BanAgentRequest>,
    ) -> Result<Response<v1::BanAgentResponse>, Status> {
        Err(Status::unimplemented("not for agents"))
    }
}

impl Service {
    fn issue(&self, csr: &[u8]) -> Result<Vec<Vec<u8>>, Status> {
        let issued =
            self.0.authority.issue(csr, &SpiffeId::Agent(target()), Duration::from_secs(3600), clock::wall());
        Ok(issued.map_err(|error| Status::invalid_argument(error.to_string()))?.chain)
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    connections: mpsc::Sender<std::io::Result<TlsConnection>>,
) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        if let Ok(stream) = tls.accept(tcp).await {
            let _ = connections.send(Ok(TlsConnection(stream))).await;
        }
    }
}

struct TlsConnection(TlsStream<TcpStream>);

impl Connected for TlsConnection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A host layer in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryHost(Arc<Mutex<Option<HostPolicy>>>);

impl MemoryHost {
    /// Returns the deadlines of the windows that the host holds.
    pub(crate) fn deadlines(&self) -> Vec<BootTime> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .flat_map(|held| held.windows.iter().map(|window| window.deadline))
            .collect()
    }
}

impl HostLayer for MemoryHost {
    type Error = std::convert::Infallible;

    fn ensure(&mut self, policy: &HostPolicy, _now: BootTime) -> Result<(), Self::Error> {
        *self.0.lock().unwrap() = Some(policy.clone());
        Ok(())
    }

    fn is_loaded(&mut self) -> Result<bool, Self::Error> {
        Ok(self.0.lock().unwrap().is_some())
    }

    fn damage(&mut self) -> Option<String> {
        None
    }
}
