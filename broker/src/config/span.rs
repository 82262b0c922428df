//! Spans of days in the configuration and on the command line.

use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};

/// Parses a lifetime such as `90d` or `12h`; a day has 24 hours.
///
/// # Errors
/// The text is not a span, or a negative one.
pub fn lifetime(text: &str) -> Result<Duration, String> {
    let span: Span = text.parse().map_err(|error: jiff::Error| error.to_string())?;
    let span: SignedDuration =
        span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|error| error.to_string())?;
    Duration::try_from(span).map_err(|_| "a lifetime cannot be negative".to_owned())
}
