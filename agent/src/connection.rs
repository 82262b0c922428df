//! The link: keeps a session with the broker, for ever.
//!
//! A renewed certificate needs a new connection. The new session is opened before the old one is let go, so that the
//! broker never sees this host without one.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use postern_pki::credentials::Credentials;
use postern_pki::tls;
use postern_proto::client;
use tokio::sync::watch;

use crate::error_chain::error_chain;
use crate::host_reconciler::ReconcilerHandle;
use crate::reports::Reports;
use crate::session::Session;
use crate::status::StatusFile;

/// What the link works with.
#[derive(Debug)]
pub struct BrokerConnection {
    /// The broker's address.
    pub broker: String,
    /// The identity in use.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// Where desired states go.
    pub reconciler: ReconcilerHandle,
    /// Reports for the broker.
    pub reports: Reports,
    /// Where it is told how the link stands.
    pub status_file: Arc<StatusFile>,
}

impl BrokerConnection {
    /// Keeps a session. Never ends.
    pub async fn keep(mut self) {
        let mut backoff = backoff();
        loop {
            let credentials = self.credentials().await;
            let got_desired_state = match self.open(&credentials).await {
                Ok(session) => self.run(session).await,
                Err(reason) => {
                    self.log_once(&reason);
                    false
                }
            };
            if got_desired_state {
                backoff = self::backoff();
            }
            let wait = backoff.next().unwrap_or(MAX_RECONNECT_DELAY);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = self.credentials.changed() => {}
            }
        }
    }

    /// The identity in use; waits until there is one.
    async fn credentials(&mut self) -> Arc<Credentials> {
        loop {
            if let Some(credentials) = self.credentials.borrow_and_update().clone() {
                return credentials;
            }
            self.status_file.disconnected("this host has no valid certificate; enrol it");
            if self.credentials.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn open(&self, credentials: &Credentials) -> Result<Session, String> {
        let tls = tls::client_config(credentials).map_err(|error| error_chain(&error))?;
        let channel = client::channel(&self.broker, tls).map_err(|error| error_chain(&error))?;
        Session::open(channel, &self.reconciler).await.map_err(|error| error_chain(&error))
    }

    /// Runs a session until it ends. Returns whether the broker told it anything.
    async fn run(&mut self, mut session: Session) -> bool {
        tracing::info!(broker = self.broker, "connected");
        self.status_file.connected();
        self.reports.begin_session();
        loop {
            tokio::select! {
                end = session.run(&self.reconciler, &mut self.reports) => {
                    self.log_once(&error_chain(&end));
                    return session.got_desired_state();
                }
                Ok(()) = self.credentials.changed() => {
                    let Some(renewed) = self.credentials.borrow_and_update().clone() else { continue };
                    match self.open(&renewed).await {
                        Ok(new) => {
                            session = new;
                            self.reports.begin_session();
                            tracing::info!("connected with the new certificate");
                        }
                        Err(error) => {
                            tracing::warn!(error, "cannot connect with the new certificate yet; the session goes on");
                        }
                    }
                }
            }
        }
    }

    /// Why there is no session, once for each reason.
    fn log_once(&self, reason: &str) {
        if self.status_file.disconnected(reason) {
            tracing::warn!(
                broker = self.broker,
                reason,
                "not connected; what is open ends by itself, nothing new opens"
            );
        }
    }
}

const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(5);

/// For ever, from a tenth of a second up to [`MAX_RECONNECT_DELAY`], with as much again of jitter.
fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(MAX_RECONNECT_DELAY)
        .without_max_times()
        .with_jitter()
        .build()
}
