//! Retries: the number of attempts and the pauses between them, before a command gives up on a broker.

use std::time::Duration;

use crate::error::Failure;

const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Counts the answers that were lost in a row, and pauses before the next attempt.
#[derive(Debug)]
pub(super) struct Retry {
    attempts: u32,
    lost: u32,
}

impl Retry {
    /// Makes the retries of one call, which take about a second.
    pub(super) fn for_call() -> Self {
        Self { attempts: 4, lost: 0 }
    }

    /// Makes the retries of a long-lived stream, which take about 15 seconds.
    pub(super) fn for_stream() -> Self {
        Self { attempts: 12, lost: 0 }
    }

    /// Resets the count after an answer.
    pub(super) fn answered(&mut self) {
        self.lost = 0;
    }

    /// Pauses before the next attempt.
    ///
    /// # Errors
    /// The failure itself, if another attempt would not help or no attempt is left.
    pub(super) async fn pause_after(&mut self, failure: Failure) -> Result<(), Failure> {
        self.lost += 1;
        if !failure.is_transient() || self.lost >= self.attempts {
            return Err(failure);
        }
        tokio::time::sleep(backoff(self.lost)).await;
        Ok(())
    }
}

/// Returns the pause, which doubles with each loss up to a bound.
fn backoff(lost: u32) -> Duration {
    MIN_BACKOFF.saturating_mul(1 << lost.saturating_sub(1).min(10)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let pauses = [1, 2, 3, 5, 6, 99].map(|lost| backoff(lost).as_millis());
        assert_eq!(pauses, [100, 200, 400, 1600, 2000, 2000]);
    }

    #[tokio::test]
    async fn a_failure_that_is_not_transient_ends_the_retries() {
        let failure = Failure::BadAnswer { what: String::new() };
        assert!(Retry::for_stream().pause_after(failure).await.is_err());
    }
}
