//! The connection to the broker: keeps one session open for as long as the agent runs.
//!
//! An agent without a session still protects its host: the kernel holds the table and ends every window on time. The
//! session brings what is new, so this module tries for ever to have one, and logs each reason for not having one once.
//!
//! - The *credentials* are the host's certificate and key. They come from [`crate::renew`], which replaces them before
//!   they end. While there are none, the connection waits for them.
//! - A *session* ([`crate::session`]) is one stream to the broker. It ends with an error, never by itself.
//! - The *backoff* between two attempts starts at 0.1 s and doubles up to 5 s, with jitter. It starts again only after a
//!   session in which the broker sent a desired state, so a broker that accepts sessions and closes them at once is not
//!   flooded.
//!
//! A renewed certificate needs a new connection. The new session is opened before the old one is dropped, so that the
//! broker never sees this host without a session; if it cannot be opened, the old session continues, and
//! the next renewal or reconnect uses the new one. Two reasons for a new session do not let the old one continue. The reconciler doubts
//! the ends of windows: it cuts them soon, and a broker sends the true ends only in a new session. The host was enrolled again: no state of
//! the old identity's session may count as one of the enrolment. Any other failure (the network, the broker, TLS) ends the session as well,
//! and the next attempt follows the backoff.

use std::sync::Arc;
use std::time::Duration;

use postern_pki::credentials::Credentials;
use postern_pki::tls;
use postern_proto::client;
use postern_runtime::backoff::{Backoff, Pauses};
use postern_runtime::error_chain::error_chain;
use tokio::sync::{Notify, watch};

use crate::checkpoint::CheckpointHandle;
use crate::clock;
use crate::host_reconciler::ReconcilerHandle;
use crate::limits::StateLimits;
use crate::renew::TriedKeysSender;
use crate::reports::Reports;
use crate::session::{BrokerSession, BrokerTrust};
use crate::status::StatusFile;

/// The connection to the broker, with what it needs to stay open.
#[derive(Debug)]
pub struct BrokerConnection {
    /// The broker's address.
    pub broker: String,
    /// The identity in use; `None` while there is no valid one.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// The handle that takes desired states.
    pub reconciler: ReconcilerHandle,
    /// The reports that wait for the broker.
    pub reports: Reports,
    /// The handle of the keeper of the audit log's checkpoints.
    pub checkpoints: CheckpointHandle,
    /// The file that shows whether there is a session.
    pub status_file: Arc<StatusFile>,
    /// The bounds on a desired state, and so on a message.
    pub limits: StateLimits,
    /// Notified when the broker asks for a renewal of the certificate.
    pub renewal: Arc<Notify>,
    /// Receives the key of a certificate with which no session can be opened because it has ended: by the broker's word or, if the
    /// connection is lost before there is one, by this host's wall clock.
    pub tried: Arc<TriedKeysSender>,
    /// Wakes the connection when the reconciler doubts the ends of windows: a new session brings the true ones.
    pub ask_again: Arc<Notify>,
}

impl BrokerConnection {
    /// Keeps a session open. Never ends.
    pub async fn keep(mut self) {
        let mut backoff = backoff();
        loop {
            let credentials = self.credentials().await;
            let got_desired_state = match self.open(&credentials).await {
                Ok(session) => self.run(session).await,
                Err(NotOpened { reason, .. }) => {
                    self.log_once(&reason);
                    false
                }
            };
            if got_desired_state {
                backoff = self::backoff();
                let worked = credentials.key_hash().ok();
                self.tried.send_modify(|tried| tried.worked = worked);
            }
            let wait = backoff.next().unwrap_or(MAX_RECONNECT_DELAY);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = self.credentials.changed() => {}
            }
        }
    }

    /// Returns the identity in use; waits until there is one.
    async fn credentials(&mut self) -> Arc<Credentials> {
        loop {
            if let Some(credentials) = self.credentials.borrow_and_update().clone() {
                return credentials;
            }
            self.status_file.disconnected(NO_CERTIFICATE);
            if self.credentials.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn open(&self, credentials: &Arc<Credentials>) -> Result<BrokerSession, NotOpened> {
        let key = credentials.key_hash().ok();
        let followed = self.reconciler.begin_session(key).await;
        let is_enrolment = followed.is_enrolment;
        let not_opened =
            |error: &dyn std::error::Error| NotOpened { reason: error_chain(error), is_enrolment };
        let tls = tls::client_config(credentials).map_err(|error| not_opened(&error))?;
        let channel = client::channel(&self.broker, tls).map_err(|error| not_opened(&error))?;
        let trusted_roots = credentials.root_keys().iter().map(ToString::to_string).collect();
        let trust = BrokerTrust { trusted_roots, renewal: Arc::clone(&self.renewal) };
        let checkpoint = self.checkpoints.line(Arc::clone(credentials), is_enrolment).await;
        let status_file = Arc::clone(&self.status_file);
        let opened =
            BrokerSession::open(channel, followed, self.limits, trust, checkpoint, status_file).await;
        let session = opened.map_err(|error| {
            // A connection that the broker closes may lose the alert that says why. What the broker answers counts more than a wall
            // clock, which may be wrong.
            let ended_by_clock = || error.is_connection_lost() && clock::wall() >= credentials.not_after();
            if error.is_certificate_refused() || ended_by_clock() {
                self.tried.send_modify(|tried| tried.ended = key);
            }
            not_opened(&error)
        })?;
        self.checkpoints.trust(Arc::clone(credentials), is_enrolment).await;
        Ok(session)
    }

    /// Runs a session until it ends. Returns whether the broker sent a desired state in it.
    async fn run(&mut self, mut session: BrokerSession) -> bool {
        tracing::info!(broker = self.broker, "connected to the broker");
        self.status_file.connected();
        self.reports.begin_session();
        loop {
            tokio::select! {
                end = session.run(&self.reconciler, &mut self.reports, &self.checkpoints) => {
                    self.log_once(&error_chain(&end));
                    return session.got_desired_state();
                }
                Ok(()) = self.credentials.changed() => match self.open_another(&mut session).await {
                    Ok(()) => tracing::info!("connected to the broker with the new certificate"),
                    Err(NotOpened { reason, is_enrolment: false }) => {
                        tracing::warn!(error = reason, "cannot open another session yet; the old session continues");
                    }
                    Err(NotOpened { reason, is_enrolment: true }) => {
                        self.log_once(&reason);
                        return session.got_desired_state();
                    }
                },
                () = self.ask_again.notified() => match self.open_another(&mut session).await {
                    Ok(()) => tracing::info!("asked the broker for the true ends of windows"),
                    Err(NotOpened { reason, .. }) => {
                        self.log_once(&reason);
                        return session.got_desired_state();
                    }
                },
            }
        }
    }

    /// Opens another session in the place of one, which stays as it is if that fails.
    async fn open_another(&mut self, session: &mut BrokerSession) -> Result<(), NotOpened> {
        let Some(credentials) = self.credentials.borrow_and_update().clone() else {
            return Err(NotOpened { reason: NO_CERTIFICATE.to_owned(), is_enrolment: false });
        };
        *session = self.open(&credentials).await?;
        self.reports.begin_session();
        Ok(())
    }

    /// Logs why there is no session, once for each reason.
    fn log_once(&self, reason: &str) {
        if self.status_file.disconnected(reason) {
            tracing::warn!(
                broker = self.broker,
                reason,
                "not connected to the broker; open windows still end on time, and no new window opens"
            );
        }
    }
}

/// A session could not be opened.
#[derive(Debug)]
struct NotOpened {
    /// The error with its causes, on one line.
    reason: String,
    /// True if it would have been the first of an enrolment.
    is_enrolment: bool,
}

/// The reason for no session without an identity.
const NO_CERTIFICATE: &str = "this host has no valid certificate; enrol it";
/// The longest wait between two attempts to connect, before jitter.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(5);

/// Returns endless delays from 0.1 s up to [`MAX_RECONNECT_DELAY`], each with up to as much again of jitter.
fn backoff() -> Pauses {
    Backoff { first: Duration::from_millis(100), longest: MAX_RECONNECT_DELAY }.endless()
}
