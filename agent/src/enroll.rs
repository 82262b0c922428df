//! Enrolment: exchanges a join token for the certificate of a key that never leaves this host.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_core::TargetId;
use postern_pki::PkiError;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::identity::SpiffeId;
use postern_pki::join::JoinToken;
use postern_pki::succession::SuccessionError;
use postern_pki::tls;
use postern_proto::client::{self, BadAddress};
use postern_proto::convert::optional_timestamp;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_runtime::files;
use tonic::{Code, Status};

use crate::clock::{self, Moment};
use crate::enrolment_mark::EnrolmentMark;
use crate::lock::IdentityLock;
use crate::receipt::{self, Receipt};
use crate::status_chain::status_chain;

/// The longest wait for an answer of the broker.
const ENROLL_TIMEOUT: Duration = Duration::from_secs(20);

/// The enrolment failed. The identity on disk is the one before, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The broker's address is malformed.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// A key could not be made, or the broker's answer is no identity.
    #[error("no identity could be made")]
    Pki(#[from] PkiError),
    /// The agent cannot connect, or the address leads to another broker than the one that made the token.
    #[error(
        "cannot connect to the broker {broker} ({}); check its address, that its port is open, and that it is the one that \
         made the token",
        status_chain(.status)
    )]
    NotConnected {
        /// The address of the broker.
        broker: String,
        /// The cause.
        status: Box<Status>,
    },
    /// The broker refused the token or the request.
    #[error("the broker did not enrol this host ({}); ask for a fresh token with `postern agents token TARGET`", status_chain(.0))]
    Refused(Box<Status>),
    /// The broker did not answer.
    #[error(
        "the broker did not answer within {}; check its address and that its port is open",
        seconds(ENROLL_TIMEOUT)
    )]
    NoAnswer,
    /// The broker sent an identity that is not valid, or not under the root that the token names.
    #[error("the broker sent an identity that this host does not take up")]
    NotTakenUp(#[from] SuccessionError),
    /// The broker sent a certificate for another target.
    #[error(
        "the broker sent a certificate that does not name {target}, the target it enrolled; check its version"
    )]
    WrongTarget {
        /// The target that the broker says it enrolled.
        target: String,
    },
    /// The broker has enrolled this host, and its identity cannot be written whole.
    #[error(
        "the broker has enrolled this host, but the identity cannot be written; check the disk, and enrol it again with a fresh token"
    )]
    NotSaved(#[source] PkiError),
    /// The identity is written, and the moment of its receipt cannot be written beside it.
    #[error(
        "this host is enrolled, but {} cannot be written, so the agent judges the certificate by this host's wall clock until the next \
         renewal; check the disk and the clock",
        path.display()
    )]
    Receipt {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Enrols this host and saves its identity under `identity_dir`. Returns its target.
///
/// # Errors
/// The broker cannot be reached, is not the one that made the token, or refuses the token; or the identity cannot be written.
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
    let target = target.ok_or_else(|| EnrollError::WrongTarget { target: answer.target.clone() })?;
    let received = clock::moment();
    let signed_at = optional_timestamp(answer.wall_clock.as_ref()).unwrap_or(received.wall);
    let credentials = credentials.into_first_under(token.fingerprint(), signed_at)?;
    save(&credentials, &received, identity_dir).await?;
    Ok(target)
}

/// Writes the mark of the enrolment, the identity, and its receipt. The mark is first: a running agent takes the identity up at once, and
/// without the mark its first session would be none of an enrolment. The lock keeps the agent from reading half of it, and from writing an
/// identity that it renews meanwhile over it.
async fn save(credentials: &Credentials, received: &Moment, identity_dir: &Path) -> Result<(), EnrollError> {
    let key = credentials.key_hash().map_err(SuccessionError::from)?;
    let failed =
        |path: &Path, source| EnrollError::NotSaved(PkiError::File { path: path.to_owned(), source });
    files::make_private_dir_all(identity_dir).map_err(|source| failed(identity_dir, source))?;
    let _lock = IdentityLock::take(identity_dir).await.map_err(|source| failed(identity_dir, source))?;
    let mark = EnrolmentMark::beside(identity_dir);
    let on_disk = Credentials::load(identity_dir).ok().and_then(|on_disk| on_disk.key_hash().ok());
    mark.set(key, on_disk).map_err(|source| failed(&mark.path(), source))?;
    credentials.save(identity_dir).map_err(EnrollError::NotSaved)?;
    if let Some(receipt) = Receipt::of(credentials, received) {
        let failed = |source| EnrollError::Receipt { path: receipt::path(identity_dir), source };
        receipt.save(identity_dir).map_err(failed)?;
    }
    Ok(())
}

/// Returns the target that an agent's certificate names; `None` where the certificate is not an agent's.
pub fn target_of(credentials: &Credentials) -> Option<TargetId> {
    match credentials.identity(&credentials.trust_domain().ok()?).ok()? {
        SpiffeId::Agent(target) => Some(target),
        SpiffeId::Broker | SpiffeId::Principal { .. } => None,
    }
}

fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs())
}
