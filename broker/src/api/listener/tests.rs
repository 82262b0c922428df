//! The limits on connections and calls, over TCP, TLS and HTTP/2 as a peer speaks them.

#![allow(clippy::disallowed_methods, reason = "tests start what they need, and wait by tokio's clock")]

mod answers;

use std::time::Duration;

use futures_util::FutureExt as _;
use h2::client::SendRequest;
use http::HeaderMap;
use hyper::body::Bytes;
use postern_core::Role;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::SpiffeId;
use postern_pki::tls::{ServerIdentity, client_config, pinned_client_config, server_config};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio_rustls::{TlsConnector, client};
use tonic::{Code, Status};

use super::*;
use crate::api::authentication::Authenticators;
use crate::app::agents;
use crate::clock::wall;
use crate::testing::builders::name;
use crate::testing::counted::Counted;
use crate::testing::{TestApp, caller};

const WATCH: &str = "/grpc.health.v1.Health/Watch";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const LIST: &str = "/postern.v1.AccessService/ListGrants";
const WATCH_GRANTS: &str = "/postern.v1.AccessService/WatchGrants";
/// The time within which a broker on the same machine acts.
const STEP: Duration = Duration::from_secs(30);

/// A broker that serves on a port of this machine, in the test's own thread.
struct Served {
    test: TestApp,
    address: SocketAddr,
}

impl Served {
    fn with(limits: Limits) -> Self {
        let test = TestApp::new();
        let authority = Arc::clone(&test.app.authority);
        let key = KeyPair::generate().unwrap();
        let names = ["127.0.0.1".to_owned()];
        let day = Duration::from_secs(86_400);
        let issued = authority.issue_server(&key.csr().unwrap(), &names, day, wall()).unwrap();
        let credentials = Credentials::new(key, issued.chain, authority.roots()).unwrap();
        let tls = server_config(&ServerIdentity::new(credentials).unwrap()).unwrap();
        let domain = test.app.trust_domain.clone();
        let listener = Listener::bind(([127, 0, 0, 1], 0).into(), tls, domain, limits).unwrap();
        let address = listener.address().unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let app = Arc::clone(&test.app);
        let forever = std::future::pending();
        tokio::spawn(async move {
            crate::api::serve(app, listener, health, Authenticators::default(), forever).await.unwrap();
        });
        Self { test, address }
    }

    /// The configuration of a client with a certificate for this id; without one, of a stranger.
    async fn client(&self, id: Option<SpiffeId>) -> ClientConfig {
        let authority = &self.test.app.authority;
        let config = match id {
            None => pinned_client_config(authority.fingerprint()).unwrap(),
            Some(SpiffeId::Agent(target)) => {
                let (key, root) = (KeyPair::generate().unwrap(), caller(Role::Administrator, "root"));
                let app = &self.test.app;
                let (token, _) = agents::create_token(app, &root, target, None).await.unwrap();
                let (_, issued) = agents::enroll(app, &token.to_text(), &key.csr().unwrap()).await.unwrap();
                client_config(&Credentials::new(key, issued.chain, authority.roots()).unwrap()).unwrap()
            }
            Some(id) => {
                let (key, hour) = (KeyPair::generate().unwrap(), Duration::from_secs(3_600));
                let issued = authority.issue(&key.csr().unwrap(), &id, hour, wall()).unwrap();
                client_config(&Credentials::new(key, issued.chain, authority.roots()).unwrap()).unwrap()
            }
        };
        ClientConfig::clone(&config)
    }

    async fn tcp(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn tls(&self, config: ClientConfig) -> std::io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::IpAddress(self.address.ip().into());
        TlsConnector::from(Arc::new(config)).connect(name, self.tcp().await).await
    }

    /// An HTTP/2 connection that may send this many streams at once, whatever the broker says.
    async fn http2(&self, id: Option<SpiffeId>) -> SendRequest<Bytes> {
        let tls = self.tls(self.client(id).await).await.unwrap();
        let (send, connection) =
            h2::client::Builder::new().initial_max_send_streams(1_000).handshake(tls).await.unwrap();
        tokio::spawn(connection.map(drop));
        send
    }
}

fn agent() -> SpiffeId {
    SpiffeId::Agent("host:vm-1".parse().unwrap())
}

fn person(role: Role, who: &str) -> SpiffeId {
    SpiffeId::Principal { role, name: name(who) }
}

/// A call with a message of so many bytes, and its answer's status.
async fn call(
    send: &mut SendRequest<Bytes>,
    path: &str,
    header: usize,
    message: &[u8],
) -> Result<Status, h2::Error> {
    let mut request = Request::post(format!("https://broker{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if header > 0 {
        request = request.header("x-padding", "x".repeat(header));
    }
    std::future::poll_fn(|context| send.poll_ready(context)).await?;
    let (answer, mut body) = send.send_request(request.body(()).unwrap(), false)?;
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    body.send_data(Bytes::from([&[0], &length[..], message].concat()), true)?;
    let answer = answer.await?;
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return Ok(status);
    }
    let mut body = answer.into_body();
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
    }
    let trailers = body.trailers().await?.unwrap_or_else(HeaderMap::new);
    Ok(Status::from_header_map(&trailers).unwrap())
}

/// Begins a call whose answer has not ended, and returns its status if it was refused at once.
async fn begin(
    send: &mut SendRequest<Bytes>,
    path: &str,
) -> Result<(Option<Status>, h2::RecvStream), h2::Error> {
    let request = Request::post(format!("https://broker{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    std::future::poll_fn(|context| send.poll_ready(context)).await?;
    let (answer, mut body) = send.send_request(request.body(()).unwrap(), false)?;
    body.send_data(Bytes::from_static(&[0, 0, 0, 0, 0]), true)?;
    let answer = answer.await?;
    Ok((Status::from_header_map(answer.headers()), answer.into_body()))
}

/// Waits until a limit is counted.
async fn counts(counted: &Counted, limit: Limit, least: u64) {
    let counts = async {
        while counted.of(limit) < least {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(STEP, counts).await.unwrap_or_else(|_| panic!("{} is not counted", limit.word()));
}

#[tokio::test]
async fn i10_a_client_that_does_not_offer_http2_is_refused_with_the_alert_for_it() {
    let served = Served::with(Limits::default());
    for protocols in [vec![], vec![b"http/1.1".to_vec()], vec![b"h2c".to_vec(), b"http/1.1".to_vec()]] {
        let mut config = served.client(None).await;
        config.alpn_protocols = protocols.clone();
        let refused = served.tls(config).await.unwrap_err().to_string();
        assert!(refused.contains("NoApplicationProtocol"), "{protocols:?}: {refused}");
    }
    let mut both = served.client(None).await;
    both.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    assert_eq!(served.tls(both).await.unwrap().get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn i10_handshakes_past_the_rate_are_closed_before_tls() {
    let limits = Limits { handshakes_per_second_per_address: 3, ..Limits::default() };
    let (counted, served) = (Counted::here(), Served::with(limits));
    let mut done = 0;
    while counted.of(Limit::HandshakeRatePerAddress) == 0 {
        let (all, one) = (served.client(None).await, |config| served.tls(config));
        let together = (0..20).map(|_| one(all.clone()));
        done = futures_util::future::join_all(together).await.iter().filter(|tls| tls.is_ok()).count();
    }
    // They may fall into two seconds.
    assert!(done <= 6, "{done}");
}

#[tokio::test]
async fn i10_each_deadline_of_a_connection_is_counted() {
    let short = Duration::from_millis(50);
    let limits = Limits { first_byte: short, ..Limits::default() };
    let (counted, served) = (Counted::here(), Served::with(limits));
    assert_eq!(served.tcp().await.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(counted.of(Limit::FirstByte), 1);

    let served = Served::with(Limits { handshake: short, ..Limits::default() });
    let mut tcp = served.tcp().await;
    tcp.write_all(&[22, 3, 1]).await.unwrap();
    assert_eq!(tcp.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(counted.of(Limit::Handshake), 1);

    let served = Served::with(Limits { preface: short, ..Limits::default() });
    let mut tls = served.tls(served.client(None).await).await.unwrap();
    let _ = timeout(STEP, tls.read_to_end(&mut Vec::new())).await.expect("the broker ends it");
    counts(&counted, Limit::Preface, 1).await;

    let served = Served::with(Limits { anonymous_age: short, ..Limits::default() });
    let _send = served.http2(None).await;
    counts(&counted, Limit::AnonymousAge, 1).await;
}

#[tokio::test]
async fn i10_the_bytes_of_a_connection_without_a_certificate_are_counted() {
    let limits = Limits { anonymous_bytes: 10_000, anonymous_headers: 4_096, ..Limits::default() };
    let (counted, served) = (Counted::here(), Served::with(limits));
    let mut send = served.http2(None).await;
    // A field that the call does not know, of 2,000 bytes.
    let message = [&[0x7a, 0xd0, 0x0f][..], &[b'x'; 2_000]].concat();
    for _ in 0..20 {
        if call(&mut send, CHECK, 0, &message).await.is_err() {
            break;
        }
    }
    counts(&counted, Limit::AnonymousBytes, 1).await;
}

#[tokio::test]
async fn i10_streams_past_the_limit_of_each_class_are_refused() {
    let limits = Limits { anonymous_streams: 2, agent_streams: 3, streams: 4, ..Limits::default() };
    let (counted, served) = (Counted::here(), Served::with(limits));
    for (id, most, limit) in [
        (None, 2, Limit::AnonymousStreams),
        (Some(agent()), 3, Limit::AgentStreams),
        (Some(person(Role::Reader, "rita")), 4, Limit::Streams),
    ] {
        // All are sent before the broker's settings can be read.
        let send = served.http2(id).await;
        let watches = (0..most + 2).map(|_| {
            let mut send = send.clone();
            async move { begin(&mut send, WATCH).await }
        });
        let begun = futures_util::future::join_all(watches).await;
        let refused = begun.iter().filter(|begun| begun.is_err()).count();
        assert_eq!(refused, 2, "{}", limit.word());
        counts(&counted, limit, 2).await;
        assert_eq!(counted.of(limit), 2);
    }
}

#[tokio::test]
async fn i10_headers_past_the_limit_of_each_class_are_refused() {
    let limits =
        Limits { anonymous_headers: 2_048, agent_headers: 3_000, headers: 4_096, ..Limits::default() };
    let (counted, served) = (Counted::here(), Served::with(limits));
    for (id, most, limit) in [
        (None, 2_048, Limit::AnonymousHeaders),
        (Some(agent()), 3_000, Limit::AgentHeaders),
        (Some(person(Role::Reader, "rita")), 4_096, Limit::Headers),
    ] {
        let mut send = served.http2(id).await;
        let fits = call(&mut send, CHECK, most - 600, &[]).await.unwrap();
        assert_eq!(fits.code(), Code::Ok, "{fits}");
        let refused = call(&mut send, CHECK, most + 10, &[]).await.unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(refused.message().contains(&format!("[limits] {}", limit.word())), "{refused}");
        assert_eq!(counted.of(limit), 1);
    }
}

#[tokio::test]
async fn i10_a_principal_has_a_number_of_calls_that_are_not_answered() {
    let limits = Limits { calls_per_principal: 8, ..Limits::default() };
    let (counted, served) = (Counted::here(), Served::with(limits));
    let rita = || Some(person(Role::Reader, "rita"));
    let (mut one, mut other) = (served.http2(rita()).await, served.http2(rita()).await);
    let mut held = Vec::new();
    for send in [&mut one, &mut other] {
        for _ in 0..4 {
            let (status, body) = begin(send, WATCH_GRANTS).await.unwrap();
            assert!(status.is_none(), "{status:?}");
            held.push(body);
        }
    }
    let refused = call(&mut other, LIST, 0, &[]).await.unwrap();
    assert!(refused.message().contains("[limits] calls_per_principal"), "{refused}");
    assert_eq!(counted.of(Limit::CallsPerPrincipal), 1);
    let mut admin = served.http2(Some(person(Role::Administrator, "root"))).await;
    assert_eq!(call(&mut admin, LIST, 0, &[]).await.unwrap().code(), Code::Ok, "others have their own");
    held.pop();
    let again = async {
        while call(&mut other, LIST, 0, &[]).await.unwrap().code() != Code::Ok {
            tokio::task::yield_now().await;
        }
    };
    timeout(STEP, again).await.expect("a call that ends gives its place back");
}

#[tokio::test]
async fn i10_a_process_without_descriptors_counts_that() {
    let (counted, admission) = (Counted::here(), Admission::new(Limits::default()));
    accept_failed(&admission, &std::io::Error::from(rustix::io::Errno::MFILE));
    accept_failed(&admission, &std::io::Error::from(rustix::io::Errno::CONNABORTED));
    assert_eq!(counted.of(Limit::Descriptors), 1);
}

#[tokio::test]
async fn i10_the_backlog_is_the_configured_one() {
    // Connections that fit wait for `accept`, which no test calls here; one more gets no answer.
    let listening = bound(([127, 0, 0, 1], 0).into(), 16).unwrap();
    let address = listening.local_addr().unwrap();
    let mut held = Vec::new();
    // Linux holds one more than the backlog.
    for _ in 0..17 {
        held.push(timeout(STEP, TcpStream::connect(address)).await.expect("it has room").unwrap());
    }
    let further = timeout(Duration::from_millis(200), TcpStream::connect(address)).await;
    assert!(further.is_err(), "the backlog holds more than it should");
}
