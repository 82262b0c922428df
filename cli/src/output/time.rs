//! Times and spans for people: UTC, whole seconds, and how far away that is.

use std::time::Duration;

use jiff::fmt::friendly::SpanPrinter;
use jiff::{SignedDuration, Timestamp};

/// Formats a time as `2025-06-01 12:00:00Z`.
pub(crate) fn utc(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

/// Formats a time as `2025-06-01 12:00:00Z (in 29m 5s)`, or as `-` if it is not set.
pub(crate) fn when(at: Option<Timestamp>, now: Timestamp) -> String {
    at.map_or_else(dash, |at| format!("{} ({})", utc(at), relative(at, now)))
}

/// Formats the distance to a time as `in 29m 5s`, `12s ago`, or `now`.
pub(crate) fn relative(at: Timestamp, now: Timestamp) -> String {
    let away = at.duration_since(now);
    let span = span(away.unsigned_abs());
    match span.as_str() {
        "0s" => "now".to_owned(),
        _ if away > SignedDuration::ZERO => format!("in {span}"),
        _ => format!("{span} ago"),
    }
}

/// Formats a span in whole seconds below an hour, and in whole minutes from there on.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let unit = if seconds < 3600 { 1 } else { 60 };
    exact(Duration::from_secs(seconds / unit * unit))
}

/// Formats the exact span in the form that every flag and file accepts: `1h 30m`.
pub(crate) fn exact(span: Duration) -> String {
    SpanPrinter::new().unsigned_duration_to_string(&span)
}

/// Returns the mark for a missing value.
pub(crate) fn dash() -> String {
    "-".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_time_is_utc_and_says_how_far_away_it_is() {
        let now = at("2025-06-01T12:00:00.25Z");
        assert_eq!(when(Some(at("2025-06-01T12:29:05.5Z")), now), "2025-06-01 12:29:05Z (in 29m 5s)");
        assert_eq!(when(Some(at("2025-06-01T11:59:48Z")), now), "2025-06-01 11:59:48Z (12s ago)");
        assert_eq!(when(Some(now), now), "2025-06-01 12:00:00Z (now)");
        assert_eq!(when(None, now), "-");
    }

    #[test]
    fn a_long_span_leaves_the_seconds_out() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (3599, "59m 59s"), (3661, "1h 1m"), (90_000, "25h")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }
}
