//! Retention in the configuration.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_core::Invalid;
use serde::Deserialize;

use super::lifetime;
use crate::retention::{RetentionSettings, Segments};

/// A day.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The range of both spans.
const RANGE: RangeInclusive<Duration> = DAY..=Duration::from_secs(3650 * 24 * 3600);

/// The section `[retention]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RetentionSection {
    grants: Option<String>,
    audit: Option<String>,
    audit_dir: Option<PathBuf>,
}

impl RetentionSection {
    /// Returns the settings, each key that is left out at its default.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self, data_dir: &Path) -> Result<RetentionSettings, Invalid> {
        let grants = self.grants.as_deref().map(|text| span("grants", text)).transpose()?;
        let after = self.audit.as_deref().map(|text| span("audit", text)).transpose()?;
        if let Some(dir) = &self.audit_dir {
            let problem = || format!("{} is not absolute", dir.display());
            if !dir.is_absolute() {
                let remedy = "write a path that begins with /";
                return Err(Invalid::new("retention.audit_dir", problem(), remedy));
            }
            if after.is_none() {
                let remedy =
                    "set retention.audit to the age at which records go there, or leave audit_dir out";
                return Err(Invalid::new("retention.audit_dir", "is set, and nothing goes there", remedy));
            }
        }
        let dir = self.audit_dir.unwrap_or_else(|| data_dir.join("audit"));
        Ok(RetentionSettings {
            grants: grants.unwrap_or(RetentionSettings::default().grants),
            audit: after.map(|after| Segments { after, dir }),
        })
    }
}

fn span(key: &str, text: &str) -> Result<Duration, Invalid> {
    lifetime(text).ok().filter(|span| RANGE.contains(span)).ok_or_else(|| {
        let problem = format!("{text:?} is not a span of 1d to 3650d");
        Invalid::new(format!("retention.{key}"), problem, "write it like 90d")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RetentionSettings, String> {
        let section: RetentionSection = toml::from_str(text).map_err(|error| error.to_string())?;
        section.checked(Path::new("/data")).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_has_its_default_and_the_audit_log_stays() {
        assert_eq!(parse(""), Ok(RetentionSettings { grants: 90 * DAY, audit: None }));
        let audit = |days, dir: &str| Some(Segments { after: days * DAY, dir: dir.into() });
        let expected = RetentionSettings { grants: 30 * DAY, audit: audit(365, "/data/audit") };
        assert_eq!(parse("grants = \"30d\"\naudit = \"365d\""), Ok(expected));
        let expected = RetentionSettings { grants: 90 * DAY, audit: audit(1, "/mnt/audit") };
        assert_eq!(parse("audit = \"24h\"\naudit_dir = \"/mnt/audit\""), Ok(expected));
    }

    #[test]
    fn a_bad_section_names_the_key_and_the_remedy() {
        for (text, key, remedy) in [
            ("grant = \"90d\"", "grant", "grants"),
            ("grants = \"23h\"", "retention.grants", "1d to 3650d"),
            ("grants = \"3651d\"", "retention.grants", "90d"),
            ("audit = \"ever\"", "retention.audit", "90d"),
            ("audit = \"-90d\"", "retention.audit", "1d to 3650d"),
            ("audit = \"90d\"\naudit_dir = \"audit\"", "retention.audit_dir", "begins with /"),
            ("audit_dir = \"/audit\"", "retention.audit_dir", "retention.audit"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key) && error.contains(remedy), "{key}: {error}");
        }
    }
}
