//! The audit log in the configuration.

use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::SignedDuration;
use postern_core::Invalid;
use serde::Deserialize;

use super::number::number;

/// The range of the number of records between two checkpoints.
const RECORDS_RANGE: RangeInclusive<u64> = 1..=100_000;
/// The range of the time between two checkpoints.
const EVERY_RANGE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// The settings of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// The number of new records after which the broker signs a checkpoint, 1 to 100000.
    pub checkpoint_records: u64,
    /// The time after which the broker signs a checkpoint if there are new records, 1 s to 1 h.
    pub checkpoint_every: Duration,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self { checkpoint_records: 1000, checkpoint_every: Duration::from_secs(60) }
    }
}

/// The section `[audit]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AuditSection {
    checkpoint_records: Option<u64>,
    checkpoint_every: Option<String>,
}

impl AuditSection {
    /// Returns the settings, each key that is left out at its default.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self) -> Result<AuditSettings, Invalid> {
        let usual = AuditSettings::default();
        let every = self.checkpoint_every.as_deref().map(every).transpose()?;
        Ok(AuditSettings {
            checkpoint_records: number(
                ("audit", "checkpoint_records"),
                self.checkpoint_records,
                RECORDS_RANGE,
                usual.checkpoint_records,
            )?,
            checkpoint_every: every.unwrap_or(usual.checkpoint_every),
        })
    }
}

fn every(text: &str) -> Result<Duration, Invalid> {
    let span = text.parse::<SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    span.filter(|span| EVERY_RANGE.contains(span)).ok_or_else(|| {
        let problem = format!("{text:?} is not a span of 1s to 1h");
        Invalid::new("audit.checkpoint_every", problem, "write it like 1m")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AuditSettings, String> {
        let section: AuditSection = toml::from_str(text).map_err(|error| error.to_string())?;
        section.checked().map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_that_is_left_out_has_its_default() {
        assert_eq!(parse(""), Ok(AuditSettings::default()));
        let expected = AuditSettings { checkpoint_records: 7, ..AuditSettings::default() };
        assert_eq!(parse("checkpoint_records = 7"), Ok(expected));
    }

    #[test]
    fn a_bad_section_names_the_key_and_the_remedy() {
        for (text, key, remedy) in [
            ("checkpoints = 1", "checkpoints", "checkpoint_records"),
            ("checkpoint_records = 0", "audit.checkpoint_records", "1 to 100000"),
            ("checkpoint_every = \"0s\"", "audit.checkpoint_every", "write it like 1m"),
            ("checkpoint_every = \"2h\"", "audit.checkpoint_every", "1s to 1h"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key) && error.contains(remedy), "{key}: {error}");
        }
    }
}
