//! The certificate: read when it appears on disk, renewed at half its life, and given to every new connection.
//!
//! The agent takes up a new identity on disk (the host was enrolled again) within seconds, without a restart.
//!
//! A renewed identity voids the one before as soon as the broker sees it used. So the agent takes it up only if it is good
//! ([`postern_pki::succession`]) and on disk: an agent that used it from memory would be locked out by its next start. While it
//! cannot be written the agent goes on with the old one, and renews again; the broker takes that for the repeat of a renewal whose
//! answer was lost. Only once the old one has ended does the agent use a renewed one from memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_pki::PkiError;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::renewal::{GRACE, renew_at};
use postern_pki::succession::SuccessionError;
use postern_pki::tls;
use postern_proto::client::{self, BadAddress};
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_runtime::backoff::{Backoff, Pauses};
use postern_runtime::error_chain::error_chain;
use tokio::sync::{Notify, watch};
use tonic::Status;

use crate::clock;
use crate::status_chain::status_chain;

/// The identity in use; `None` while there is no valid one.
pub type CurrentIdentity = watch::Sender<Option<Arc<Credentials>>>;

/// The interval at which the agent checks the disk for a new identity, and the clock, which may step, for the time to
/// renew.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The time over which agents that the broker asks for a renewal at one moment spread.
const ASKED_SPREAD: Duration = Duration::from_secs(10);
/// The longest wait for an answer of the broker.
const RENEW_TIMEOUT: Duration = Duration::from_secs(20);

/// The renewal of the certificate failed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The broker's address is malformed.
    #[error(transparent)]
    Address(#[from] BadAddress),
    /// A key could not be made, or the broker's answer is no identity.
    #[error("no identity could be made")]
    Pki(#[from] PkiError),
    /// The broker refused the renewal.
    #[error("the broker did not renew the certificate: {}", status_chain(.0))]
    Refused(Box<Status>),
    /// The broker did not answer.
    #[error("the broker did not answer within {} s", RENEW_TIMEOUT.as_secs())]
    NoAnswer,
    /// The broker sent an identity that must not take the place of this one.
    #[error("the broker sent an identity that this host does not take up")]
    NotTakenUp(#[from] SuccessionError),
}

/// Keeps the identity in `current` valid for as long as the broker renews it, and renews it when `asked` says that the broker asks for
/// it. Never ends.
pub async fn keep_renewed(broker: &str, identity_dir: &Path, current: &CurrentIdentity, asked: &Notify) {
    let mut log_once = LogOnce::default();
    let mut recovery = ExpiredRenewal::default();
    loop {
        match take_up_from_disk(identity_dir, current, clock::wall()) {
            Ok(true) => tracing::info!("using the identity that is on disk"),
            Ok(false) => {}
            Err(error) => log_once.warn(&error_chain(&error)),
        }
        let Some(credentials) = current.borrow().clone() else {
            match recovery.attempt(broker, identity_dir).await {
                Ok(Some(renewed)) => {
                    if let Err(error) = renewed.save(identity_dir) {
                        tracing::error!(
                            error = error_chain(&error),
                            "cannot write the renewed certificate to disk; the agent uses it from memory, and its next start needs \
                             a new enrolment"
                        );
                    }
                    take_up(renewed, current);
                }
                Ok(None) => {}
                Err(reason) => log_once.warn(&reason),
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
            continue;
        };
        (log_once, recovery) = (LogOnce::default(), ExpiredRenewal::default());
        use_until_renewed(broker, identity_dir, current, &credentials, asked).await;
    }
}

/// The renewal of a certificate that has ended, because the machine or the broker was down for longer than its life.
#[derive(Default)]
struct ExpiredRenewal {
    backoff: Option<Pauses>,
    next_try: Timestamp,
}

impl ExpiredRenewal {
    /// Makes one attempt, if it is time for one. Many agents may need this at once, so attempts back off.
    async fn attempt(&mut self, broker: &str, identity_dir: &Path) -> Result<Option<Credentials>, String> {
        let now = clock::wall();
        let ended = if Credentials::exist(identity_dir) {
            Some(Credentials::load(identity_dir).map_err(|error| error_chain(&error))?)
        } else {
            None
        };
        let grace = SignedDuration::try_from(GRACE).unwrap_or_default();
        let Some(ended) = ended.filter(|ended| now.duration_since(ended.not_after()) <= grace) else {
            let enrol =
                "this host has no valid certificate; enrol it with `postern-agent enroll --token-file FILE`";
            return Err(enrol.to_owned());
        };
        if now < self.next_try {
            return Ok(None);
        }
        let wait = self.backoff.get_or_insert_with(backoff).next().unwrap_or(CHECK_INTERVAL);
        self.next_try = now.saturating_add(wait).unwrap_or(Timestamp::MAX);
        renew(broker, &ended).await.map(Some).map_err(|error| error_chain(&error))
    }
}

/// Renews a certificate, and writes the new one to disk.
async fn renew_and_save(
    broker: &str,
    identity_dir: &Path,
    credentials: &Credentials,
) -> Result<Credentials, RenewError> {
    let renewed = renew(broker, credentials).await?;
    renewed.save(identity_dir)?;
    Ok(renewed)
}

fn take_up(renewed: Credentials, current: &CurrentIdentity) {
    tracing::info!(not_after = %renewed.not_after(), "renewed the certificate");
    current.send_replace(Some(Arc::new(renewed)));
}

/// Waits until the certificate is renewed, replaced on disk, or expired.
async fn use_until_renewed(
    broker: &str,
    identity_dir: &Path,
    current: &CurrentIdentity,
    credentials: &Credentials,
    asked: &Notify,
) {
    let mut due = renew_at(credentials.not_before(), credentials.not_after(), rand::random_range(0.0..=1.0));
    let mut retries = None;
    let mut next_try = Timestamp::MIN;
    loop {
        tokio::select! {
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
            () = asked.notified() => {
                let soon = clock::wall().saturating_add(ASKED_SPREAD.mul_f64(rand::random_range(0.0..=1.0)));
                due = due.min(soon.unwrap_or(due));
                tracing::info!("the broker asks this host to renew its certificate");
            }
        }
        let now = clock::wall();
        if now >= credentials.not_after() {
            tracing::error!("the certificate expired before the broker renewed it");
            current.send_replace(None);
            return;
        }
        if !matches!(take_up_from_disk(identity_dir, current, now), Ok(false)) {
            return;
        }
        if now < due || now < next_try {
            continue;
        }
        match renew_and_save(broker, identity_dir, credentials).await {
            Ok(renewed) => return take_up(renewed, current),
            Err(error) => {
                tracing::warn!(error = error_chain(&error), not_after = %credentials.not_after(), "cannot renew the certificate yet");
                let wait = retries.get_or_insert_with(backoff).next().unwrap_or(CHECK_INTERVAL);
                next_try = clock::wall().saturating_add(wait).unwrap_or(Timestamp::MAX);
            }
        }
    }
}

/// Renews a certificate once, with a new key. Nothing is written.
///
/// # Errors
/// The broker cannot be reached or refuses, or its answer must not take the place of this identity.
pub async fn renew(broker: &str, credentials: &Credentials) -> Result<Credentials, RenewError> {
    let key = KeyPair::generate()?;
    let channel = client::channel(broker, tls::client_config(credentials)?)?;
    let request = v1::RenewRequest { csr: key.csr()? };
    let mut client = AgentServiceClient::new(channel);
    let answer =
        tokio::time::timeout(RENEW_TIMEOUT, client.renew(request)).await.map_err(|_| RenewError::NoAnswer)?;
    let answer = answer.map_err(|status| RenewError::Refused(Box::new(status)))?.into_inner();
    let renewed = Credentials::new(key, answer.certificates, answer.roots)?;
    renewed.check_successor_of(credentials, clock::wall())?;
    Ok(renewed)
}

/// Takes up the identity on disk if it is valid, another than the one in use, and not older. Returns whether it did.
fn take_up_from_disk(
    identity_dir: &Path,
    current: &CurrentIdentity,
    now: Timestamp,
) -> Result<bool, PkiError> {
    if !Credentials::exist(identity_dir) {
        return Ok(false);
    }
    let found = Credentials::load(identity_dir)?;
    // Two certificates may begin and end at the same second: those of a young authority begin when it does.
    let life = |credentials: &Credentials| (credentials.not_before(), credentials.not_after());
    let newer = current
        .borrow()
        .as_ref()
        .is_none_or(|in_use| life(&found) >= life(in_use) && found.key_hash() != in_use.key_hash());
    let taken = newer && now < found.not_after();
    if taken {
        current.send_replace(Some(Arc::new(found)));
    }
    Ok(taken)
}

fn backoff() -> Pauses {
    Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) }.endless()
}

/// A log that writes a message once, until the message changes.
#[derive(Default)]
struct LogOnce {
    last: Option<String>,
}

impl LogOnce {
    fn warn(&mut self, text: &str) {
        if self.last.as_deref() != Some(text) {
            tracing::warn!("{text}");
            self.last = Some(text.to_owned());
        }
    }
}
