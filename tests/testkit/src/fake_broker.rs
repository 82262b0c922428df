//! A broker that a test leads, behind the real TLS: it follows a [`Script`], records what it is asked, and hands each session of an
//! agent to the test. Its [`FaultPlan`] refuses calls, answers them late or never, and loses answers with their connection.

mod access;
mod admin;
mod agents;
mod rpc;
mod script;
mod server;
mod services;
mod session;
mod shared;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_core::TargetId;
use postern_pki::authority::{AGENT_LIFETIME, Authority};
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::{SpiffeId, TrustDomain};
use postern_pki::join::JoinToken;
use postern_pki::tls::{ServerIdentity, server_config};
use postern_proto::v1;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::Status;

use crate::clock::{wall, within};
use crate::faults::{Fault, FaultPlan};

pub use rpc::RpcCall;
pub use script::{Script, TARGET, a_grant};
pub use session::AgentSession;
use shared::{Shared, lock};

/// The time for which the authority has existed, so that a test can issue a certificate that has ended.
const AUTHORITY_AGE: SignedDuration = SignedDuration::from_hours(24);

/// A broker of one test. Dropping it cuts every connection.
#[derive(Debug)]
pub struct FakeBroker {
    url: String,
    shared: Arc<Shared>,
    sessions: tokio::sync::Mutex<mpsc::UnboundedReceiver<AgentSession>>,
    #[allow(dead_code, reason = "the broker serves until this is dropped")]
    serving: JoinSet<()>,
    dir: TempDir,
}

impl FakeBroker {
    /// Starts a broker on a free port of the loopback.
    pub async fn start() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    /// Starts a broker at an address.
    ///
    /// # Panics
    /// The address is taken.
    pub async fn at(address: SocketAddr) -> Self {
        let dir = TempDir::with_prefix("postern-").expect("a temporary directory can be made");
        let authority =
            Authority::init(&dir.path().join("ca"), &TrustDomain::default(), wall() - AUTHORITY_AGE)
                .expect("an authority can be made");
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let address = listener.local_addr().expect("a listener has an address");
        let key = KeyPair::generate().expect("a key can be made");
        let csr = key.csr().expect("a request can be signed");
        let names = [address.ip().to_string()];
        let issued = authority.issue_server(&csr, &names, AGENT_LIFETIME, wall());
        let chain = issued.expect("a certificate can be issued").chain;
        let own = Credentials::new(key, chain, authority.roots()).expect("the certificate is for the key");
        let identity = ServerIdentity::new(own).expect("the identity can be used");
        let tls = server_config(&identity).expect("the identity can be used");

        let (sender, sessions) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            authority,
            script: Mutex::default(),
            faults: FaultPlan::default(),
            tokens: Mutex::default(),
            renewals: Mutex::default(),
            renewal_answer: shared::RenewalScript::default(),
            sessions: sender,
        });
        let mut serving = JoinSet::new();
        serving.spawn(server::serve(listener, tls, Arc::clone(&shared)));
        let sessions = tokio::sync::Mutex::new(sessions);
        Self { url: format!("https://{address}"), shared, sessions, serving, dir }
    }

    /// Returns the broker's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the script, and the calls that were recorded in it.
    pub fn script(&self) -> MutexGuard<'_, Script> {
        self.shared.script()
    }

    /// Returns the plan of the calls that go wrong. A pattern is the name of an RPC, or `*`.
    pub fn faults(&self) -> &FaultPlan<RpcCall> {
        &self.shared.faults
    }

    /// Refuses every call from now on.
    pub fn refuse(&self, status: Status) {
        self.faults().fail("*", usize::MAX, Fault::Refused(status));
    }

    /// Issues an identity that is valid from a time on.
    pub fn issue(&self, identity: &SpiffeId, lifetime: Duration, from: Timestamp) -> Credentials {
        let key = KeyPair::generate().expect("a key can be made");
        let csr = key.csr().expect("a request can be signed");
        let issued = self.shared.authority.issue(&csr, identity, lifetime, from);
        let chain = issued.expect("a certificate can be issued").chain;
        Credentials::new(key, chain, self.shared.authority.roots()).expect("the certificate is for the key")
    }

    /// Issues an identity of a target's agent, valid from now on.
    pub fn issue_agent(&self, target: &TargetId, lifetime: Duration) -> Credentials {
        self.issue(&SpiffeId::Agent(target.clone()), lifetime, wall())
    }

    /// Makes a join token for [`TARGET`].
    pub fn join_token(&self) -> JoinToken {
        let token = JoinToken::generate(self.shared.authority.fingerprint()).expect("a token can be made");
        lock(&self.shared.tokens).insert(token.to_text());
        token
    }

    /// Returns the number of certificates that the broker has renewed.
    pub fn renewals(&self) -> u32 {
        *lock(&self.shared.renewals)
    }

    /// Returns the broker's authority once more, over the same files.
    pub fn same_authority(&self) -> Authority {
        Authority::load(&self.dir.path().join("ca"), &TrustDomain::default()).expect("the authority is there")
    }

    /// Answers renewals with what this function makes of their certificate requests, from now on.
    pub fn answer_renewals(&self, answer: impl Fn(&[u8]) -> v1::RenewResponse + Send + 'static) {
        *lock(&self.shared.renewal_answer.0) = Some(Box::new(answer));
    }

    /// Waits for the next session of an agent.
    ///
    /// # Panics
    /// No session begins in time.
    pub async fn session(&self) -> AgentSession {
        let mut sessions = self.sessions.lock().await;
        within("an agent to connect", sessions.recv()).await.expect("the broker listens")
    }
}
