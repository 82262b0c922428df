//! Counts the refusals of the limits, and logs them at a bounded rate: a stranger must not be able to fill the log either.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use postern_core::TargetId;
use postern_core::text::clipped;

use super::{Buckets, Limit, MAX_OWNERS, Owner};
use crate::clock::boottime;
use crate::telemetry;

/// The least time between two lines on the same limit.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The characters that the log keeps of an error that a peer causes.
const MAX_LOGGED: usize = 200;

/// The lines on what any caller can cause, from the parts that have no report of their own.
static USE_CASES: LazyLock<Throttle> = LazyLock::new(Throttle::default);

/// The most lines in the log that one agent causes in a minute by what it sends.
const LINES_PER_MINUTE: u32 = 60;

/// The lines of each agent, on whatever session it sends its messages.
static LINES: LazyLock<Mutex<Buckets>> =
    LazyLock::new(|| Mutex::new(Buckets::per_minute(LINES_PER_MINUTE, MAX_OWNERS)));

/// Counts refusals, and logs some of them.
#[derive(Debug, Default)]
pub(crate) struct RefusalReport {
    throttle: Throttle,
}

/// The subjects that were logged a moment ago.
#[derive(Debug, Default)]
struct Throttle {
    subjects: Mutex<HashMap<&'static str, Throttled>>,
}

/// The time of the last line on a subject, and the number of lines left out since.
#[derive(Debug, Default)]
struct Throttled {
    last: Option<Duration>,
    omitted: u64,
}

impl RefusalReport {
    /// Counts that `peer` reached a limit.
    pub(crate) fn hit(&self, limit: Limit, peer: &dyn Display) {
        telemetry::limited(limit);
        // A connection that has reached its age is normal.
        if limit == Limit::AnonymousAge {
            tracing::debug!(%peer, limit = limit.word(), "a connection has reached its age");
        } else if let Some(omitted) = self.throttle.due(limit.word()) {
            tracing::warn!(event = "limit.reached", limit = limit.word(), %peer, omitted, "a limit was reached");
        }
    }

    /// Logs that a handshake failed. The peer chooses much of the error's text, so that it is clipped.
    pub(crate) fn handshake_failed(&self, peer: &dyn Display, error: &dyn Display) {
        let error = clipped(error, MAX_LOGGED);
        match self.throttle.due("handshake failed") {
            Some(omitted) => tracing::info!(address = %peer, %error, omitted, "handshake failed"),
            None => tracing::debug!(address = %peer, %error, "handshake failed"),
        }
    }
}

/// Returns the number of lines on a subject that a use case has left out since its last one, if a line is due now.
pub(crate) fn log_due(what: &'static str) -> Option<u64> {
    USE_CASES.due(what)
}

/// Reports whether an agent may cause another line in the log now.
pub(crate) fn line_due(agent_of: &TargetId) -> bool {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).take(&Owner::from(agent_of), boottime())
}

impl Throttle {
    /// Returns the number of lines left out since the last one, if a line is due now.
    fn due(&self, what: &'static str) -> Option<u64> {
        let now = boottime();
        let mut subjects = self.subjects.lock().unwrap_or_else(PoisonError::into_inner);
        let throttled = subjects.entry(what).or_default();
        if throttled.last.is_some_and(|last| now.saturating_sub(last) < LOG_INTERVAL) {
            throttled.omitted += 1;
            return None;
        }
        throttled.last = Some(now);
        Some(std::mem::take(&mut throttled.omitted))
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;
    use crate::testing::captured_log::capture_log;

    #[test]
    fn i10_a_flood_of_refusals_is_one_line() {
        let (report, (logged, _guard)) = (RefusalReport::default(), capture_log(Level::INFO));
        for _ in 0..1_000 {
            report.hit(Limit::Anonymous, &"192.0.2.1:1");
            report.handshake_failed(&"192.0.2.1:1", &"eof");
        }
        assert_eq!(logged.lines(), 2);
        report.hit(Limit::Message, &"192.0.2.1:1");
        assert_eq!(logged.lines(), 3, "another limit has a line of its own");
        report.hit(Limit::AnonymousAge, &"192.0.2.1:1");
        assert_eq!(logged.lines(), 3);
    }

    #[test]
    fn i10_an_agent_causes_a_number_of_lines_each_minute() {
        let [one, other] = ["host:reports-1", "host:reports-2"].map(|id| id.parse().unwrap());
        assert_eq!((0..1_000).filter(|_| line_due(&one)).count(), 60);
        assert!(line_due(&other));
    }

    #[test]
    fn i10_a_use_case_logs_a_subject_once_in_a_while() {
        assert_eq!(log_due("a subject"), Some(0));
        assert_eq!((log_due("a subject"), log_due("another subject")), (None, Some(0)));
    }
}
