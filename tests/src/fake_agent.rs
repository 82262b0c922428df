//! An agent that a test leads: it enrols and connects as a real one does, and then answers late, twice, in
//! the wrong order, or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::join::JoinToken;
use postern_pki::tls::{client_config, pinned_client_config};
use postern_proto::client::channel;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_proto::v1::session_request::Message as Out;
use postern_proto::v1::session_response::Message as In;
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::clock::STEP_TIMEOUT;
use crate::net::Host;
use crate::netns::Netns;

/// An enrolled identity.
#[derive(Debug)]
pub struct FakeAgent {
    netns: Netns,
    url: String,
    identity: PathBuf,
}

/// A session that a test leads by hand.
#[derive(Debug)]
pub struct FakeSession {
    netns: Netns,
    send: mpsc::Sender<v1::SessionRequest>,
    receive: Arc<Mutex<Streaming<v1::SessionResponse>>>,
}

impl FakeAgent {
    /// Enrols with a join token; `identity` is the directory in which the identity is kept.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn enroll(host: &Host, url: &str, token: &str, identity: &Path) -> Result<Self, Status> {
        let key = KeyPair::generate().expect("a key can be made");
        let csr = key.csr().expect("a request can be signed");
        let parsed: JoinToken = token.parse().expect("the token is one");
        let tls = pinned_client_config(parsed.fingerprint()).expect("a fingerprint can be pinned");
        let (address, token) = (url.to_owned(), token.to_owned());
        let answer = host.netns().run(async move {
            let channel = channel(&address, tls).expect("the address is one");
            AgentServiceClient::new(channel).enroll(v1::EnrollRequest { token, csr }).await
        });
        let v1::EnrollResponse { certificates, roots, .. } = answer?.into_inner();
        let credentials = Credentials::new(key, certificates, roots).expect("the certificate is for the key");
        credentials.save(identity).expect("the identity can be kept");
        Ok(Self::with_identity(host, url, identity))
    }

    /// Makes an agent with the identity in a directory, also one of another principal.
    pub fn with_identity(host: &Host, url: &str, identity: &Path) -> Self {
        Self { netns: host.netns().clone(), url: url.to_owned(), identity: identity.to_owned() }
    }

    /// Renews the identity in its directory.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn renew(&self) -> Result<(), Status> {
        let credentials = Credentials::load(&self.identity).expect("the identity can be loaded");
        let tls = client_config(&credentials).expect("the identity can be used");
        let key = KeyPair::generate().expect("a key can be made");
        let csr = key.csr().expect("a request can be signed");
        let address = self.url.clone();
        let answer = self.netns.run(async move {
            let channel = channel(&address, tls).expect("the address is one");
            AgentServiceClient::new(channel).renew(v1::RenewRequest { csr }).await
        });
        let v1::RenewResponse { certificates, roots, .. } = answer?.into_inner();
        let credentials = Credentials::new(key, certificates, roots).expect("the certificate is for the key");
        credentials.save(&self.identity).expect("the identity can be kept");
        Ok(())
    }

    /// The directory of the agent's identity.
    pub fn identity(&self) -> &Path {
        &self.identity
    }

    /// Opens a session on a connection of its own and says hello.
    ///
    /// # Errors
    /// As the broker answers.
    pub fn session(&self) -> Result<FakeSession, Status> {
        let credentials = Credentials::load(&self.identity).expect("the identity can be loaded");
        let tls = client_config(&credentials).expect("the identity can be used");
        let (send, requests) = mpsc::channel(16);
        let hello = v1::Hello { agent_version: "fake".to_owned(), ..v1::Hello::default() };
        send.try_send(v1::SessionRequest { sent_at: 0, message: Some(Out::Hello(hello)) })
            .expect("there is room for one");
        let address = self.url.clone();
        let answer = self.netns.run(async move {
            let channel = channel(&address, tls).expect("the address is one");
            AgentServiceClient::new(channel).session(ReceiverStream::new(requests)).await
        });
        let receive = Arc::new(Mutex::new(answer?.into_inner()));
        Ok(FakeSession { netns: self.netns.clone(), send, receive })
    }
}

impl FakeSession {
    /// Sends a message; lost where the session has ended.
    pub fn say(&self, message: Out) {
        let send = self.send.clone();
        let message = v1::SessionRequest { sent_at: 0, message: Some(message) };
        // What happens to a message of a session that has ended is the broker's to say.
        let _ = self.netns.run(async move { send.send(message).await });
    }

    /// Reports that a generation is applied.
    pub fn applied(&self, generation: u64) {
        self.say(Out::Applied(v1::Applied { generation, error: String::new() }));
    }

    /// Reports that a generation cannot be applied.
    pub fn refused(&self, generation: u64, error: &str) {
        self.say(Out::Applied(v1::Applied { generation, error: error.to_owned() }));
    }

    /// The next desired state that the broker sends.
    ///
    /// # Panics
    /// None comes, or the session ends.
    pub fn desired(&self) -> v1::DesiredState {
        self.desired_within(STEP_TIMEOUT).expect("the broker sends a desired state")
    }

    /// The next desired state, if one comes in time.
    ///
    /// # Panics
    /// The session ends.
    pub fn desired_within(&self, limit: Duration) -> Option<v1::DesiredState> {
        let receive = Arc::clone(&self.receive);
        self.netns.run(async move {
            let next = async {
                let mut receive = receive.lock().await;
                loop {
                    let message =
                        receive.message().await.expect("the session holds").expect("the session holds");
                    if let Some(In::Desired(desired)) = message.message {
                        return desired;
                    }
                }
            };
            timeout(limit, next).await.ok()
        })
    }

    /// Waits until the broker ends the session, and returns what it says.
    ///
    /// # Panics
    /// It does not within [`STEP_TIMEOUT`].
    pub fn end(&self) -> Option<Status> {
        let receive = Arc::clone(&self.receive);
        self.netns.run(async move {
            let ended = async {
                let mut receive = receive.lock().await;
                loop {
                    match receive.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => return None,
                        Err(status) => return Some(status),
                    }
                }
            };
            timeout(STEP_TIMEOUT, ended).await.expect("the broker ends the session")
        })
    }
}
