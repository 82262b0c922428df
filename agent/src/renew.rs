//! The certificate: read when it appears on disk, renewed at half its life, and given to every new connection.
//!
//! The agent judges its certificate by its age ([`crate::receipt`]), never by the wall clock, which may be wrong. The broker judges it by
//! the broker's clock: if it refuses a session because the certificate has ended (the machine was paused, or set back to a snapshot), the
//! agent renews at once, which the broker admits for 30 days.
//!
//! The agent takes up a new identity on disk (the host was enrolled again) within seconds, without a restart. A renewal that is in flight
//! meanwhile is dropped: before the agent writes a renewed identity, it takes the lock of the identity and reads the disk again.
//!
//! A broker may call a certificate ended that by its age has not, and refuse the renewed one as well. So the pause between such renewals
//! grows, up to an hour. It ends with a renewal that is due, and with a certificate with which the broker has sent a state in a
//! session.
//!
//! A renewed identity voids the one before as soon as the broker sees it used. So the agent takes it up only if it is good
//! ([`postern_pki::succession`]) and on disk: an agent that used it from memory would be locked out by its next start. While it
//! cannot be written the agent goes on with the old one, and renews again; the broker takes that for the repeat of a renewal whose
//! answer was lost. Only once the old one has ended does the agent use a renewed one from memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use postern_core::KeyHash;
use postern_pki::PkiError;
use postern_pki::credentials::{Credentials, KeyPair};
use postern_pki::renewal::{GRACE, renew_at};
use postern_pki::succession::SuccessionError;
use postern_pki::tls;
use postern_proto::client::{self, BadAddress};
use postern_proto::convert::optional_timestamp;
use postern_proto::v1;
use postern_proto::v1::agent_service_client::AgentServiceClient;
use postern_runtime::backoff::{Backoff, Pauses};
use postern_runtime::error_chain::error_chain;
use postern_runtime::files;
use tokio::sync::{Notify, watch};
use tonic::Status;

use crate::clock::{self, BootTime, Moment};
use crate::enrolment_mark::EnrolmentMark;
use crate::lock::IdentityLock;
use crate::receipt::{self, Receipt};
use crate::status_chain::{is_past_grace, status_chain};

/// The identity in use; `None` while there is no valid one.
pub type CurrentIdentity = watch::Sender<Option<Arc<Credentials>>>;

/// The keys of the certificates with which the agent has tried to open a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TriedKeys {
    /// The one with which no session could be opened last because it has ended, if there is one.
    pub ended: Option<KeyHash>,
    /// The one with which the agent had its last session in which the broker sent a state, if there is one.
    pub worked: Option<KeyHash>,
}

/// The keys that were tried; the connection writes them.
pub type TriedKeysSender = watch::Sender<TriedKeys>;

/// The interval at which the agent checks the disk for a new identity, and the age of the present one.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);
/// The time over which agents that the broker asks for a renewal at one moment spread.
const ASKED_SPREAD: Duration = Duration::from_secs(10);
/// The longest pause between two renewals of certificates that the broker calls ended although none was due, before jitter.
const MAX_EARLY_PAUSE: Duration = Duration::from_secs(3600);
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
    /// By the broker's clock the certificate ended too long ago, or has not begun.
    #[error(
        "by the broker's clock the certificate ended more than 30 days ago, or has not begun; if the broker's clock is right, this host \
         has no valid certificate; enrol it with `postern-agent enroll --token-file FILE`"
    )]
    PastGrace,
    /// The broker did not answer.
    #[error("the broker did not answer within {} s", RENEW_TIMEOUT.as_secs())]
    NoAnswer,
    /// The broker sent an identity that must not take the place of this one.
    #[error("the broker sent an identity that this host does not take up")]
    NotTakenUp(#[from] SuccessionError),
    /// Another identity came to the disk during the renewal.
    #[error("this host was enrolled during the renewal, so the renewed identity is dropped")]
    EnrolledMeanwhile,
    /// The renewed identity cannot be written.
    #[error("the renewed identity cannot be written")]
    NotSaved(#[source] PkiError),
}

/// Keeps the identity in `current` valid for as long as the broker renews it, and renews it when `asked` says that the broker asks for
/// it. Never ends.
pub async fn keep_renewed(
    broker: &str,
    identity_dir: &Path,
    current: &CurrentIdentity,
    tried: &TriedKeysSender,
    asked: &Notify,
) {
    let mut keeper = Keeper {
        broker,
        identity_dir,
        current,
        tried: tried.subscribe(),
        asked,
        on_disk: None,
        receipt: None,
        early: EarlyRenewals::default(),
        disk_log: LogOnce::default(),
    };
    let mut log_once = LogOnce::default();
    let mut recovery = ExpiredRenewal::default();
    loop {
        keeper.read_disk(&clock::moment());
        let Some(credentials) = current.borrow().clone() else {
            if let Err(reason) = keeper.recover(&mut recovery).await {
                log_once.warn(&reason);
            }
            tokio::time::sleep(CHECK_INTERVAL).await;
            continue;
        };
        (log_once, recovery) = (LogOnce::default(), ExpiredRenewal::default());
        keeper.use_until_renewed(&credentials).await;
    }
}

/// The renewal of a certificate that has ended, because the machine or the broker was down for longer than its life. Many agents may
/// need this at once, so attempts back off.
#[derive(Default)]
struct ExpiredRenewal {
    backoff: Option<Pauses>,
    next_try: BootTime,
}

/// The renewals of certificates that the broker calls ended although by their age none was due.
#[derive(Default)]
struct EarlyRenewals {
    pauses: Option<Pauses>,
    next_try: BootTime,
}

impl EarlyRenewals {
    /// Notes that there was one.
    fn made(&mut self, now: BootTime) {
        let pause = self.pauses.get_or_insert_with(early_pauses).next().unwrap_or(MAX_EARLY_PAUSE);
        self.next_try = now.plus(pause);
    }
}

/// A renewed identity, with the receipt of its certificate.
struct Renewed {
    credentials: Credentials,
    receipt: Option<Receipt>,
}

/// The keeper of an identity.
struct Keeper<'a> {
    broker: &'a str,
    identity_dir: &'a Path,
    current: &'a CurrentIdentity,
    tried: watch::Receiver<TriedKeys>,
    asked: &'a Notify,
    /// The key of the identity on disk, as this keeper has read or written it last.
    on_disk: Option<KeyHash>,
    /// The receipt of the identity in use.
    receipt: Option<Receipt>,
    early: EarlyRenewals,
    disk_log: LogOnce,
}

impl Keeper<'_> {
    /// Makes one attempt to renew a certificate that has ended, if it is time for one, and takes the new one up.
    async fn recover(&mut self, recovery: &mut ExpiredRenewal) -> Result<(), String> {
        let now = clock::moment();
        let found = if Credentials::exist(self.identity_dir) {
            Some(Credentials::load(self.identity_dir).map_err(|error| error_chain(&error))?)
        } else {
            None
        };
        let is_in_grace = |ended: &Credentials| {
            let receipt = Receipt::load(self.identity_dir, ended);
            receipt::age(ended, receipt.as_ref(), &now) <= receipt::life(ended).saturating_add(GRACE)
        };
        let ended = found.filter(is_in_grace);
        let Some(ended) = ended else {
            let enrol =
                "this host has no valid certificate; enrol it with `postern-agent enroll --token-file FILE`";
            return Err(enrol.to_owned());
        };
        if now.boottime < recovery.next_try {
            return Ok(());
        }
        let wait = recovery.backoff.get_or_insert_with(backoff).next().unwrap_or(CHECK_INTERVAL);
        recovery.next_try = now.boottime.plus(wait);
        self.on_disk = ended.key_hash().ok();
        let renewed = self.renew(&ended).await.map_err(|error| error_chain(&error))?;
        match self.save(&ended, &renewed).await {
            Ok(()) => {}
            Err(error @ RenewError::EnrolledMeanwhile) => return Err(error_chain(&error)),
            Err(error) => tracing::error!(
                error = error_chain(&error),
                "cannot write the renewed certificate to disk; the agent uses it from memory, and its next start needs a new enrolment"
            ),
        }
        self.take_up(renewed);
        Ok(())
    }

    /// Waits until the certificate is renewed, replaced on disk, or has ended.
    async fn use_until_renewed(&mut self, credentials: &Credentials) {
        let mut due = renew_at(receipt::life(credentials), rand::random_range(0.0..=1.0));
        let key = credentials.key_hash().ok();
        let mut retries = None;
        let mut next_try = BootTime(0);
        loop {
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                Ok(()) = self.tried.changed() => {}
                () = self.asked.notified() => {
                    tracing::info!("the broker asks this host to renew its certificate");
                    let spread = ASKED_SPREAD.mul_f64(rand::random_range(0.0..=1.0));
                    due = due.min(self.age_in_use(credentials, &clock::moment()).saturating_add(spread));
                }
            }
            let now = clock::moment();
            let age = self.age_in_use(credentials, &now);
            if age >= receipt::life(credentials) {
                tracing::error!("the certificate expired before the broker renewed it");
                self.current.send_replace(None);
                return;
            }
            if self.read_disk(&now) {
                return;
            }
            // That counts for the certificate with which it was tried.
            let tried = *self.tried.borrow();
            let has_ended = key.is_some() && tried.ended == key;
            if key.is_some() && tried.worked == key {
                self.early = EarlyRenewals::default();
            }
            let (is_due, is_early) = (age >= due, has_ended && now.boottime >= self.early.next_try);
            if !(is_due || is_early) || now.boottime < next_try {
                continue;
            }
            match self.renew_and_save(credentials).await {
                Ok(renewed) => {
                    if is_due {
                        self.early = EarlyRenewals::default();
                    } else {
                        self.early.made(clock::boottime());
                    }
                    return self.take_up(renewed);
                }
                // The disk has the identity to take up.
                Err(error @ RenewError::EnrolledMeanwhile) => {
                    tracing::info!("{}", error_chain(&error));
                    return;
                }
                Err(error) => {
                    let error = with_remedy(&error, credentials, &now);
                    tracing::warn!(error, not_after = %credentials.not_after(), "cannot renew the certificate yet");
                    let wait = retries.get_or_insert_with(backoff).next().unwrap_or(CHECK_INTERVAL);
                    next_try = clock::boottime().plus(wait);
                }
            }
        }
    }

    /// Renews a certificate, and writes the new one to disk.
    async fn renew_and_save(&mut self, credentials: &Credentials) -> Result<Renewed, RenewError> {
        let renewed = self.renew(credentials).await?;
        self.save(credentials, &renewed).await?;
        Ok(renewed)
    }

    async fn renew(&self, credentials: &Credentials) -> Result<Renewed, RenewError> {
        let credentials = renew(self.broker, credentials).await?;
        let receipt = Receipt::of(&credentials, &clock::moment());
        Ok(Renewed { credentials, receipt })
    }

    /// Writes a renewed identity in the place of the `old` one, if no other has come to the disk during the renewal.
    async fn save(&mut self, old: &Credentials, renewed: &Renewed) -> Result<(), RenewError> {
        let dir = self.identity_dir;
        let failed = |source| RenewError::NotSaved(PkiError::File { path: dir.to_owned(), source });
        files::make_private_dir_all(dir).map_err(failed)?;
        let _lock = IdentityLock::take(dir).await.map_err(failed)?;
        if matches!(self.other_on_disk(self.on_disk, &clock::moment()), Ok(Some(_))) {
            return Err(RenewError::EnrolledMeanwhile);
        }
        let new_key = renewed.credentials.key_hash().ok();
        if let (Ok(from), Some(to)) = (old.key_hash(), new_key) {
            EnrolmentMark::beside(dir).carry_over(from, to).map_err(failed)?;
        }
        renewed.credentials.save(dir).map_err(RenewError::NotSaved)?;
        self.on_disk = new_key;
        if let Some(Err(error)) = renewed.receipt.as_ref().map(|receipt| receipt.save(dir)) {
            tracing::warn!(%error, "cannot write the time at which the certificate came; after a restart the wall clock judges it");
        }
        Ok(())
    }

    fn take_up(&mut self, renewed: Renewed) {
        let Renewed { credentials, receipt } = renewed;
        tracing::info!(not_after = %credentials.not_after(), "renewed the certificate");
        self.receipt = receipt;
        self.current.send_replace(Some(Arc::new(credentials)));
    }

    /// Takes up another identity that is on disk, and returns whether there is one. One that cannot be read is logged; the agent goes on
    /// with the one in use, and the next renewal replaces what is there.
    fn read_disk(&mut self, now: &Moment) -> bool {
        let taken = self.take_up_from_disk(now);
        match &taken {
            Ok(false) => self.disk_log = LogOnce::default(),
            Ok(true) => tracing::info!("using the identity that is on disk"),
            Err(error) => self.disk_log.warn(&error_chain(error)),
        }
        taken.unwrap_or_default()
    }

    /// Takes up the identity on disk if it has not ended, and another process wrote it or none is in use. Returns whether it did. The
    /// dates of the two do not matter: the clock of the broker in which the host was enrolled may be behind that of the one before.
    fn take_up_from_disk(&mut self, now: &Moment) -> Result<bool, PkiError> {
        // While another process writes the identity, its files may not belong together yet. A disk that takes no lock can be read all the
        // same.
        let lock = Credentials::exist(self.identity_dir).then(|| IdentityLock::try_take(self.identity_dir));
        if matches!(lock, None | Some(Ok(None))) {
            return Ok(false);
        }
        let known = self.on_disk.filter(|_| self.current.borrow().is_some());
        let Some((found, receipt)) = self.other_on_disk(known, now)? else { return Ok(false) };
        self.on_disk = found.key_hash().ok();
        self.receipt = receipt;
        self.current.send_replace(Some(Arc::new(found)));
        Ok(true)
    }

    /// Returns the identity on disk with its receipt, if it has not ended and its key is another than the known one.
    fn other_on_disk(
        &self,
        known: Option<KeyHash>,
        now: &Moment,
    ) -> Result<Option<(Credentials, Option<Receipt>)>, PkiError> {
        if !Credentials::exist(self.identity_dir) {
            return Ok(None);
        }
        let found = Credentials::load(self.identity_dir)?;
        if known.is_some() && found.key_hash().ok() == known {
            return Ok(None);
        }
        let receipt = Receipt::load(self.identity_dir, &found);
        let has_ended = receipt::age(&found, receipt.as_ref(), now) >= receipt::life(&found);
        Ok(Some((found, receipt)).filter(|_| !has_ended))
    }

    /// Returns the age of the certificate in use.
    fn age_in_use(&self, credentials: &Credentials, now: &Moment) -> Duration {
        receipt::age(credentials, self.receipt.as_ref(), now)
    }
}

/// Returns an error in words, with the remedy if by this host's wall clock the certificate is past the grace.
fn with_remedy(error: &RenewError, credentials: &Credentials, now: &Moment) -> String {
    let ended_for = Duration::try_from(now.wall.duration_since(credentials.not_after())).unwrap_or_default();
    let error_text = error_chain(error);
    if ended_for <= GRACE || matches!(error, RenewError::PastGrace) {
        return error_text;
    }
    format!(
        "{error_text}; by this host's clock the certificate ended more than 30 days ago: if the clock is right, enrol it with \
         `postern-agent enroll --token-file FILE`"
    )
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
    let refused = |status: Status| {
        if is_past_grace(&status) { RenewError::PastGrace } else { RenewError::Refused(Box::new(status)) }
    };
    let answer = answer.map_err(refused)?.into_inner();
    let renewed = Credentials::new(key, answer.certificates, answer.roots)?;
    // The wall clock of this host may be wrong, and the certificate was signed just now.
    let signed_at = optional_timestamp(answer.wall_clock.as_ref()).unwrap_or_else(clock::wall);
    Ok(renewed.into_successor_of(credentials, signed_at)?)
}

fn backoff() -> Pauses {
    Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) }.endless()
}

fn early_pauses() -> Pauses {
    Backoff { first: Duration::from_secs(1), longest: MAX_EARLY_PAUSE }.endless()
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
