//! Counts what the limits refuse, and warns of it at a bounded rate: a stranger must not be able to fill the log either.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Mutex;
use std::time::Duration;

use super::lock;
use crate::clock::boottime;
use crate::measure;

/// The least time between two lines on the same limit.
const EVERY: Duration = Duration::from_secs(10);

/// A limit that something ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// No byte came in time.
    FirstByte,
    /// The TLS handshake took too long.
    Handshake,
    /// HTTP/2 was not begun in time.
    Preface,
    /// Too many handshakes in all.
    Handshakes,
    /// Too many handshakes of one address.
    HandshakesPerAddress,
    /// Too many connections without a certificate.
    Anonymous,
    /// Too many of them from one address.
    AnonymousPerAddress,
    /// Too many connections of principals.
    People,
    /// Too many connections of one principal.
    PerPrincipal,
    /// Too many connections of agents.
    Agents,
    /// Too many connections of one agent.
    PerAgent,
    /// A connection without a certificate has reached its age.
    AnonymousAge,
    /// A request was not received in time.
    Receive,
    /// A call was not answered in time.
    Answer,
    /// A message was too large.
    Message,
}

impl Limit {
    /// The word in the metric's label, which is the key in the section `[limits]` or its plural.
    pub const fn word(self) -> &'static str {
        match self {
            Self::FirstByte => "first_byte",
            Self::Handshake => "handshake",
            Self::Preface => "preface",
            Self::Handshakes => "handshakes",
            Self::HandshakesPerAddress => "handshakes_per_address",
            Self::Anonymous => "anonymous",
            Self::AnonymousPerAddress => "anonymous_per_address",
            Self::People => "people",
            Self::PerPrincipal => "per_principal",
            Self::Agents => "agents",
            Self::PerAgent => "per_agent",
            Self::AnonymousAge => "anonymous_age",
            Self::Receive => "receive",
            Self::Answer => "answer",
            Self::Message => "message",
        }
    }
}

/// Counts refusals, and logs some of them.
#[derive(Debug, Default)]
pub(crate) struct Report {
    throttle: Mutex<HashMap<&'static str, Throttled>>,
}

/// When the log last had a line on something, and how many there would have been since.
#[derive(Debug, Default)]
struct Throttled {
    last: Option<Duration>,
    omitted: u64,
}

impl Report {
    /// Counts that `peer` ran into a limit.
    pub(crate) fn hit(&self, limit: Limit, peer: &dyn Display) {
        measure::limited(limit);
        // A connection that has reached its age is no trouble.
        if limit == Limit::AnonymousAge {
            tracing::debug!(%peer, limit = limit.word(), "a connection has reached its age");
        } else if let Some(omitted) = self.due(limit.word()) {
            tracing::warn!(event = "limit.reached", limit = limit.word(), %peer, omitted, "a limit was reached");
        }
    }

    /// Logs that a handshake failed.
    pub(crate) fn handshake_failed(&self, peer: &dyn Display, error: &dyn Display) {
        match self.due("handshake failed") {
            Some(omitted) => tracing::info!(address = %peer, %error, omitted, "handshake failed"),
            None => tracing::debug!(address = %peer, %error, "handshake failed"),
        }
    }

    /// Returns how many lines were left out since the last one, if there may be one now.
    fn due(&self, what: &'static str) -> Option<u64> {
        let now = boottime();
        let mut throttle = lock(&self.throttle);
        let throttled = throttle.entry(what).or_default();
        if throttled.last.is_some_and(|last| now.saturating_sub(last) < EVERY) {
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
    use crate::logged::logged;

    #[test]
    fn i10_a_flood_of_refusals_is_one_line() {
        let (report, (logged, _guard)) = (Report::default(), logged(Level::INFO));
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
}
