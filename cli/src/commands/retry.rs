//! Retries: the number of attempts and the pauses between them, before a command gives up on a broker.

use std::time::Duration;

use postern_runtime::backoff::{Backoff, Pauses};

use crate::error::Failure;

/// The pauses before jitter, which may double each.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(2) };

/// Counts the answers that were lost in a row, and pauses before the next attempt.
#[derive(Debug)]
pub(super) struct Retry {
    retries: usize,
    pauses: Pauses,
}

impl Retry {
    /// Makes the retries of one call, which take about a second.
    pub(super) fn for_call() -> Self {
        Self::times(3)
    }

    /// Makes the retries of a long-lived stream, which take 15 to 30 seconds.
    pub(super) fn for_stream() -> Self {
        Self::times(11)
    }

    fn times(retries: usize) -> Self {
        Self { retries, pauses: BACKOFF.times(retries) }
    }

    /// Resets the count after an answer.
    pub(super) fn answered(&mut self) {
        self.pauses = BACKOFF.times(self.retries);
    }

    /// Pauses before the next attempt.
    ///
    /// # Errors
    /// The failure itself, if another attempt would not help or no attempt is left.
    pub(super) async fn pause_after(&mut self, failure: Failure) -> Result<(), Failure> {
        if !failure.is_transient() {
            return Err(failure);
        }
        let Some(pause) = self.pauses.next() else { return Err(failure) };
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gives_every_attempt_back() {
        let mut retry = Retry::for_stream();
        assert_eq!(retry.pauses.by_ref().count(), 11);
        retry.answered();
        let least: Duration = retry.pauses.map(|pause| pause.min(BACKOFF.longest)).sum();
        assert!(least >= Duration::from_secs(15), "{least:?}");
    }

    #[tokio::test]
    async fn a_failure_that_is_not_transient_ends_the_retries() {
        let failure = Failure::BadAnswer { what: String::new() };
        assert!(Retry::for_stream().pause_after(failure).await.is_err());
    }
}
