//! A broker that follows a test's script, behind the real TLS.

mod agents;
mod connection;
mod services;

use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use postern_core::{Name, Role};
use postern_pki::authority::Authority;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::{SpiffeId, TrustDomain};
use postern_pki::tls::{ServerIdentity, server_config};
use postern_proto::v1;
use postern_runtime::clock::wall;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tonic::Status;
use tonic::transport::Server;

use super::run::{self, Ran};

/// The script of the broker, and the calls that it has received.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// The status with which every call is refused.
    pub(crate) refusal: Option<Status>,
    /// The answer to a request.
    pub(crate) answer: v1::RequestAccessResponse,
    /// The number of answers to requests that are lost with their connection.
    pub(crate) cut: u32,
    /// True if the connection that writes next is cut.
    pub(crate) cut_now: bool,
    /// The events of each watch, one watch after another; the last stays open in silence.
    pub(crate) watches: Vec<Vec<v1::WatchGrantsResponse>>,
    /// The audit log's lines.
    pub(crate) log: Vec<String>,
    /// The policies that are kept.
    pub(crate) policies: Vec<v1::Policy>,
    /// The number of grants to list.
    pub(crate) grants: u32,
    /// The answer to an assessment.
    pub(crate) assessment_report: v1::AssessTargetsResponse,
    /// The answer to a lockdown and to a release.
    pub(crate) results: Vec<v1::LockdownResult>,
    /// The state of the brokers.
    pub(crate) status: v1::GetStatusResponse,
    /// The assessments that were requested.
    pub(crate) assessments: Vec<v1::AssessTargetsRequest>,
    /// The lockdowns that were requested.
    pub(crate) lockdowns: Vec<v1::LockdownTargetsRequest>,
    /// The releases that were requested.
    pub(crate) releases: Vec<v1::ReleaseTargetsRequest>,
    /// The access requests that were received.
    pub(crate) requests: Vec<v1::RequestAccessRequest>,
    /// The filters that were received, of lists and of watches.
    pub(crate) filters: Vec<v1::GrantFilter>,
}

/// A broker with one client.
pub(crate) struct Fake {
    pub(crate) address: String,
    pub(crate) script: Arc<Mutex<Script>>,
    authority: Authority,
    dir: TempDir,
    _serving: JoinSet<()>,
}

impl Fake {
    /// Starts a broker, and issues an identity to alice, a requester.
    pub(crate) async fn with(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(&dir.path().join("ca"), &TrustDomain::default(), ago(24)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("https://{}", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(script));
        let (tls, received) = (acceptor(&authority), Arc::clone(&script));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let server = services::all(Server::builder(), &received);
            server.serve_with_incoming(connection::accepted(listener, tls, received)).await.unwrap();
        });
        let fake = Self { address, script, authority, dir, _serving: serving };
        fake.issue("alice", wall());
        fake
    }

    /// Issues an identity that is valid for an hour from that time, in the directory that [`Self::postern`] uses.
    pub(crate) fn issue(&self, name: &str, from: Timestamp) {
        let id = SpiffeId::Principal { role: Role::Requester, name: Name::new(name).unwrap() };
        let key = KeyPair::generate().unwrap();
        let csr = key.csr().unwrap();
        let hour = std::time::Duration::from_secs(3600);
        let issued = self.authority.issue(&csr, &id, hour, from).unwrap();
        Credentials::new(key, issued.chain, self.authority.roots()).unwrap().save(&self.identity()).unwrap();
    }

    /// Returns the directory of the client's identity.
    pub(crate) fn identity(&self) -> std::path::PathBuf {
        self.dir.path().join("me")
    }

    /// Writes a file beside the identity, and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Makes the command as this client.
    pub(crate) fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = run::command(args);
        command.env("POSTERN_BROKER", &self.address).env("POSTERN_IDENTITY", self.identity());
        command
    }

    /// Runs the command as this client to its end.
    pub(crate) async fn postern(&self, args: &[&str]) -> Ran {
        let identity = self.identity();
        let us = ["--broker", &self.address, "--identity", identity.to_str().unwrap()];
        run::postern(&[&us[..], args].concat()).await
    }
}

/// A grant as a broker sends it: one window on host:web-1.
pub(crate) fn a_grant(state: v1::GrantState, layer: v1::WindowState) -> v1::Grant {
    let at = wall();
    let layer = v1::WindowLayer { layer: v1::Layer::Host.into(), state: layer.into(), detail: String::new() };
    v1::Grant {
        id: "01jx0000000000000000000000".to_owned(),
        principal: Some(v1::Principal {
            role: v1::Role::Requester.into(),
            name: "alice".to_owned(),
            ..v1::Principal::default()
        }),
        justification: "fix disk".to_owned(),
        requested_at: Some(prost_types::Timestamp { seconds: at.as_second(), nanos: 0 }),
        duration: Some(prost_types::Duration { seconds: 1800, nanos: 0 }),
        not_after: Some(prost_types::Timestamp { seconds: at.as_second() + 1800, nanos: 0 }),
        state: state.into(),
        windows: vec![v1::Window {
            target: "host:web-1".to_owned(),
            port: Some(v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 }),
            source: "127.0.0.1/32".to_owned(),
            connect_to: String::new(),
            layers: vec![layer],
        }],
        ..v1::Grant::default()
    }
}

/// Returns the time some hours ago.
pub(crate) fn ago(hours: i64) -> Timestamp {
    wall() - SignedDuration::from_hours(hours)
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let csr = key.csr().unwrap();
    let hour = std::time::Duration::from_secs(3600);
    let issued = authority.issue_server(&csr, &["127.0.0.1".to_owned()], hour, wall()).unwrap();
    let credentials = Credentials::new(key, issued.chain, authority.roots()).unwrap();
    TlsAcceptor::from(server_config(&ServerIdentity::new(credentials).unwrap()).unwrap())
}
