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

use crate::explain::chain;
use crate::keeper::KeeperHandle;
use crate::reports::Reports;
use crate::session::Session;
use crate::status::Board;

/// What the link works with.
#[derive(Debug)]
pub struct Link {
    /// The broker's address.
    pub broker: String,
    /// The identity in use.
    pub credentials: watch::Receiver<Option<Arc<Credentials>>>,
    /// Where desired states go.
    pub keeper: KeeperHandle,
    /// Reports for the broker.
    pub reports: Reports,
    /// Where it is told how the link stands.
    pub board: Arc<Board>,
}

impl Link {
    /// Keeps a session. Never ends.
    pub async fn keep(mut self) {
        let mut patience = patience();
        loop {
            let credentials = self.credentials().await;
            let told = match self.open(&credentials).await {
                Ok(session) => self.hold(session).await,
                Err(reason) => {
                    self.complain(&reason);
                    false
                }
            };
            if told {
                patience = self::patience();
            }
            let wait = patience.next().unwrap_or(MAX_DELAY);
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
            self.board.disconnected("this host has no valid certificate; enrol it");
            if self.credentials.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn open(&self, credentials: &Credentials) -> Result<Session, String> {
        let tls = tls::client_config(credentials).map_err(|error| chain(&error))?;
        let channel = client::channel(&self.broker, tls).map_err(|error| chain(&error))?;
        Session::open(channel, &self.keeper).await.map_err(|error| chain(&error))
    }

    /// Runs a session until it ends. Returns whether the broker told it anything.
    async fn hold(&mut self, mut session: Session) -> bool {
        tracing::info!(broker = self.broker, "connected");
        self.board.connected();
        self.reports.begin_session();
        loop {
            tokio::select! {
                end = session.run(&self.keeper, &mut self.reports) => {
                    self.complain(&chain(&end));
                    return session.was_told();
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
    fn complain(&self, reason: &str) {
        if self.board.disconnected(reason) {
            tracing::warn!(
                broker = self.broker,
                reason,
                "not connected; what is open ends by itself, nothing new opens"
            );
        }
    }
}

const MAX_DELAY: Duration = Duration::from_secs(5);

/// For ever, from a tenth of a second up to [`MAX_DELAY`], with as much again of jitter.
fn patience() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(MAX_DELAY)
        .without_max_times()
        .with_jitter()
        .build()
}
