//! What a connected idle agent costs the broker in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::TrustDomain;
use postern_pki::tls::{client_config, pinned_client_config};
use postern_pki::{Authority, JoinToken};
use postern_proto::client::channel;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::session_request::Message as Out;
use postern_tests::clock::{wait_until, wall};
use postern_tests::{Host, World, tied, usual_policy};
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::IntervalStream;
use tonic::transport::Channel;

use crate::bare;
use crate::lines::{line, note};
use crate::many::kibibytes;

const SESSIONS: usize = 2_000;
/// How often agents are heard from.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How many connect at once.
const AT_ONCE: usize = 32;
const BARE: &str = "192.0.2.1:7444";

pub(crate) fn measure() {
    let mut world = World::without_agent(usual_policy());
    let identities = Arc::new(enroll_all(&world));
    // What enrolling took is not what a session takes.
    world.broker.restart();
    let pid = world.broker.process().pid();
    let postern = per_session(&world.net.alice, world.broker.url(), pid, &identities);

    let mut server = start_bare(&world);
    let url = format!("https://{BARE}");
    let bare = per_session(&world.net.alice, &url, server.id(), &identities);
    server.kill().unwrap();
    server.wait().unwrap();
    note("target: within 1.25 times the bare stream, at 2,000 sessions");
    line("memory-per-idle-session", postern, "bare-tonic-stream", bare, "KiB");
}

/// The growth of a server's memory by one session, in KiB. The first few make it warm.
fn per_session(host: &Host, url: &str, pid: u32, identities: &Arc<Vec<Credentials>>) -> f64 {
    let resident = || kibibytes(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "VmRSS:");
    let (url, all) = (url.to_owned(), Arc::clone(identities));
    let (ready, heard) = std::sync::mpsc::channel();
    let (go_on, more) = tokio::sync::oneshot::channel::<()>();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let running = host.room().start(async move {
        let (warm, cold) = all.split_at(50);
        let mut sessions = JoinSet::new();
        connect_all(warm, &url, &mut sessions).await;
        ready.send(()).unwrap();
        more.await.unwrap();
        connect_all(cold, &url, &mut sessions).await;
        ready.send(()).unwrap();
        ended.await.unwrap();
    });
    heard.recv().unwrap();
    std::thread::sleep(HEARTBEAT);
    let before = resident();
    go_on.send(()).unwrap();
    heard.recv().unwrap();
    // Long enough for the last of them to have come to rest.
    std::thread::sleep(HEARTBEAT * 2);
    let after = resident();
    end.send(()).unwrap();
    running.join();
    (after - before) / (identities.len() - 50) as f64
}

async fn connect_all(identities: &[Credentials], url: &str, sessions: &mut JoinSet<()>) {
    for some in identities.chunks(AT_ONCE) {
        let mut connecting = JoinSet::new();
        for credentials in some {
            let channel = channel(url, client_config(credentials).unwrap()).unwrap();
            connecting.spawn(connect(channel));
        }
        for mut session in connecting.join_all().await {
            sessions.spawn(async move { while let Ok(Some(_)) = session.message().await {} });
        }
    }
}

async fn connect(channel: Channel) -> tonic::Streaming<v1::SessionResponse> {
    let hello = Out::Hello(v1::Hello { agent_version: "bench".to_owned(), ..v1::Hello::default() });
    let message = |message| v1::SessionRequest { sent_at: 0, message: Some(message) };
    let heartbeats = IntervalStream::new(tokio::time::interval(HEARTBEAT)).skip(1);
    let heartbeats = heartbeats.map(move |_| message(Out::Heartbeat(v1::Heartbeat {})));
    let requests = tokio_stream::once(message(hello)).chain(heartbeats);
    AgentServiceClient::new(channel).session(requests).await.unwrap().into_inner()
}

fn enroll_all(world: &World) -> Vec<Credentials> {
    let url = world.broker.url().to_owned();
    let tokens: Vec<String> =
        (0..SESSIONS).map(|n| world.admin.join_token(&format!("host:idle-{n}"), None).unwrap()).collect();
    world.net.alice.room().run(async move {
        let mut enrolled = Vec::new();
        for some in tokens.chunks(AT_ONCE) {
            let mut enrolling = JoinSet::new();
            for token in some {
                enrolling.spawn(enroll(url.clone(), token.clone()));
            }
            enrolled.extend(enrolling.join_all().await);
        }
        enrolled
    })
}

async fn enroll(url: String, token: String) -> Credentials {
    let key = KeyPair::generate().unwrap();
    let csr = key.csr().unwrap();
    let pinned: JoinToken = token.parse().unwrap();
    let channel = channel(&url, pinned_client_config(pinned.fingerprint()).unwrap()).unwrap();
    let answer =
        AgentServiceClient::new(channel).enroll(v1::EnrollRequest { token, csr }).await.unwrap().into_inner();
    Credentials::new(key, answer.certificates, answer.roots).unwrap()
}

/// Starts the bare server on the broker's host, with a certificate of the broker's own authority.
fn start_bare(world: &World) -> std::process::Child {
    let identity = bare_identity(world);
    let mut command = tied(std::env::current_exe().unwrap());
    command.args([bare::SERVER, &identity.to_string_lossy(), BARE]);
    let server = world.net.hub.room().spawn(command).unwrap();
    let listening = || {
        let connect = async { tokio::net::TcpStream::connect(BARE).await.is_ok() };
        world.net.alice.room().run(connect)
    };
    wait_until("the bare server to listen", Duration::from_secs(10), listening);
    server
}

fn bare_identity(world: &World) -> PathBuf {
    let authority =
        Authority::load(&world.broker.data_dir().join("ca"), &TrustDomain::default(), wall()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = [world.net.hub.v4().to_string()];
    let issued =
        authority.issue_server(&key.csr().unwrap(), &names, Duration::from_secs(3600), wall()).unwrap();
    let directory: &Path = &world.dir().join("bare");
    Credentials::new(key, issued.chain, authority.roots()).unwrap().save(directory).unwrap();
    directory.to_owned()
}
