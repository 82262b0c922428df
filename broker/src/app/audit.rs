//! The audit log: reading it, following it, and verifying its chain.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use postern_core::audit::{Broken, Head, Verifier};

use super::{App, Error};

/// The lines that one read of the store returns at most.
const PAGE_SIZE: usize = 500;
/// The interval at which a follower reads new lines.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(250);

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

/// The result of verifying the audit log.
#[derive(Debug)]
pub struct Verification {
    /// The head of the lines that verify.
    pub head: Head,
    /// The first line that does not verify, if there is one.
    pub broken: Option<Broken>,
}

/// Verifies the chain of the audit log, from its base to its last line or to the first that is broken.
///
/// # Errors
/// The store failed.
pub async fn verify(app: &Arc<App>) -> Result<Verification, Error> {
    let mut verifier = Verifier::after(app.store.audit_base().await?);
    let mut tail = Tail::new(Arc::clone(app), 0, false);
    let mut broken = None;
    while let Some((_, line)) = tail.next().await? {
        if let Err(found) = verifier.line(&line) {
            broken = Some(found);
            break;
        }
    }
    Ok(Verification { head: verifier.head(), broken })
}
