//! The audit log: reading it, following it, and verifying its chain.

mod verifications;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{App, Error};
use crate::clock::boottime;
use crate::signals::rounds::RoundReporter;
pub(crate) use verifications::AuditedStore;
pub use verifications::{FULL_INTERVAL, Verification, Verifications};

/// The lines that one read of the store returns at most.
const PAGE_SIZE: usize = 500;
/// The interval at which a follower reads new lines.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

/// The time after which a verification that the store failed is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// A reader of the audit log.
pub struct Tail {
    app: Arc<App>,
    after: u64,
    follow: bool,
    queue: VecDeque<(u64, String)>,
}

impl Tail {
    /// Makes a reader of the lines after this sequence number. A follower waits for new lines at the end of the log.
    pub fn new(app: Arc<App>, after: u64, follow: bool) -> Self {
        Self { app, after, follow, queue: VecDeque::new() }
    }

    /// Returns the sequence number after which the next line is read from the store; none if it was read before.
    pub fn reads_after(&self) -> Option<u64> {
        self.queue.is_empty().then_some(self.after)
    }

    /// Returns the next line with its sequence number; `None` at the end of the log.
    ///
    /// # Errors
    /// The store failed.
    pub async fn next(&mut self) -> Result<Option<(u64, String)>, Error> {
        loop {
            if let Some((seq, line)) = self.queue.pop_front() {
                self.after = seq;
                return Ok(Some((seq, line)));
            }
            self.queue.extend(self.app.store.audit_lines(self.after, PAGE_SIZE).await?);
            match (self.queue.is_empty(), self.follow) {
                (false, _) => {}
                (true, true) => tokio::time::sleep(FOLLOW_INTERVAL).await,
                (true, false) => return Ok(None),
            }
        }
    }
}

/// Verifies the audit log. `full` asks for every record to be read.
///
/// # Errors
/// The store failed.
pub async fn verify(app: &App, full: bool) -> Result<Verification, Error> {
    let trust = app.revocations.checkpoint_trust(app.authority.roots());
    let audited = AuditedStore { store: &app.store, checkpoints: &app.checkpoints, trust };
    Ok(app.verifications.verify(&audited, full).await?)
}

/// Verifies the whole audit log at the start and then every [`FULL_INTERVAL`], until the process ends. A log that is broken
/// raises the alarm ([`crate::checkpoints`]).
///
/// # Errors
/// Never: a verification that the store fails is tried again.
pub async fn keep_verifying(app: Arc<App>, reporter: RoundReporter) -> anyhow::Result<()> {
    loop {
        let round = verify(&app, true).await;
        let pause = if round.is_ok() { FULL_INTERVAL } else { RETRY_AFTER };
        reporter.report(boottime(), round.map(drop).map_err(|error| error.to_string()));
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests;
