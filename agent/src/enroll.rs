//! Enrolment: a join token, and a key that never leaves this host, become an identity.

use std::path::Path;
use std::time::Duration;

use postern_core::TargetId;
use postern_pki::PkiError;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::Identity;
use postern_pki::join::JoinToken;
use postern_pki::tls;
use postern_proto::client::{self, BadAddress};
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use tonic::{Code, Status};

use crate::error_chain::status_chain;

/// How long the broker may take to answer.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(20);

/// Enrolment did not succeed; nothing on disk was changed.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The broker's address is not one.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// A key could not be made, or what the broker sent is no identity.
    #[error("no identity could be made")]
    Pki(#[from] PkiError),
    /// There is no connection, or it is to another broker than the one that made the token.
    #[error("cannot connect to the broker {broker} ({}); check its address, that its port is open, and that it is the one that made the token", status_chain(.status))]
    NotConnected {
        /// Its address.
        broker: String,
        /// Why.
        status: Box<Status>,
    },
    /// The broker refused.
    #[error("the broker did not enrol this host ({}); ask for a fresh token with `postern agents token TARGET`", status_chain(.0))]
    Refused(Box<Status>),
    /// The broker did not answer.
    #[error(
        "the broker did not answer within {}; check its address and that its port is open",
        seconds(ENROLL_TIMEOUT)
    )]
    NoAnswer,
    /// The broker sent a certificate for someone else.
    #[error(
        "the broker sent a certificate that does not name {target}, the target it enrolled; check its version"
    )]
    WrongTarget {
        /// Whom the broker says it enrolled.
        target: String,
    },
}

/// Enrols this host and saves its identity under `identity_dir`. Returns its target.
///
/// # Errors
/// The broker cannot be reached, is not the one that made the token, or refuses the token.
pub async fn enroll(broker: &str, token: &JoinToken, identity_dir: &Path) -> Result<TargetId, EnrollError> {
    let key = KeyPair::generate()?;
    let channel = client::channel(broker, tls::pinned_client_config(token.fingerprint())?)?;
    let request = v1::EnrollRequest { token: token.to_text(), csr: key.csr()? };
    let mut client = AgentServiceClient::new(channel);
    let answer = tokio::time::timeout(ENROLL_TIMEOUT, client.enroll(request))
        .await
        .map_err(|_| EnrollError::NoAnswer)?;
    let failed = |status: Status| {
        let not_connected = status.code() == Code::Unavailable;
        let status = Box::new(status);
        if not_connected {
            EnrollError::NotConnected { broker: broker.to_owned(), status }
        } else {
            EnrollError::Refused(status)
        }
    };
    let answer = answer.map_err(failed)?.into_inner();
    let credentials = Credentials::new(key, answer.certificates, answer.roots)?;
    let target = target_of(&credentials).filter(|target| target.to_string() == answer.target);
    let target = target.ok_or(EnrollError::WrongTarget { target: answer.target })?;
    credentials.save(identity_dir)?;
    Ok(target)
}

/// The target that an agent's certificate names; none where it is not an agent's.
pub fn target_of(credentials: &Credentials) -> Option<TargetId> {
    match credentials.identity(&credentials.trust_domain().ok()?).ok()? {
        Identity::Agent(target) => Some(target),
        Identity::Broker | Identity::Principal(_) => None,
    }
}

fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs())
}
