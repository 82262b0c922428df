//! Quotas in the configuration.

use postern_core::Invalid;
use serde::Deserialize;

use super::number::number;
use crate::limits::Quotas;

/// The section `[quotas]`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct QuotasSection {
    grants_per_principal: Option<usize>,
    windows_per_principal: Option<usize>,
    windows_per_target: Option<usize>,
    requests_per_minute: Option<u32>,
}

impl QuotasSection {
    /// Returns the quotas, each key that is left out at its default.
    ///
    /// # Errors
    /// The first key that is wrong.
    pub(super) fn checked(self) -> Result<Quotas, Invalid> {
        let usual = Quotas::default();
        let size = |key, value, range, usual| number(("quotas", key), value, range, usual);
        let Self { grants_per_principal, windows_per_principal, windows_per_target, requests_per_minute } =
            self;
        Ok(Quotas {
            grants_per_principal: size(
                "grants_per_principal",
                grants_per_principal,
                1..=1_000_000,
                usual.grants_per_principal,
            )?,
            windows_per_principal: size(
                "windows_per_principal",
                windows_per_principal,
                1..=100_000_000,
                usual.windows_per_principal,
            )?,
            windows_per_target: size(
                "windows_per_target",
                windows_per_target,
                2..=100_000_000,
                usual.windows_per_target,
            )?,
            requests_per_minute: number(
                ("quotas", "requests_per_minute"),
                requests_per_minute,
                1..=1_000_000,
                usual.requests_per_minute,
            )?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Quotas, String> {
        let section: QuotasSection = toml::from_str(text).map_err(|error| error.to_string())?;
        section.checked().map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_that_is_left_out_has_its_default() {
        assert_eq!(parse(""), Ok(Quotas::default()));
        let expected = Quotas { windows_per_target: 9, ..Quotas::default() };
        assert_eq!(parse("windows_per_target = 9"), Ok(expected));
    }

    #[test]
    fn each_key_is_its_own_quota() {
        let text = "grants_per_principal = 2\nwindows_per_principal = 3\nwindows_per_target = 4\nrequests_per_minute = 5\n";
        let expected = Quotas {
            grants_per_principal: 2,
            windows_per_principal: 3,
            windows_per_target: 4,
            requests_per_minute: 5,
        };
        assert_eq!(parse(text), Ok(expected));
    }

    #[test]
    fn a_bad_section_names_the_key_and_the_remedy() {
        for (text, key, remedy) in [
            ("grants = 1", "grants", "grants_per_principal"),
            ("grants_per_principal = 0", "quotas.grants_per_principal", "1 to 1000000"),
            ("windows_per_target = 1", "quotas.windows_per_target", "2 to"),
            ("requests_per_minute = 0", "quotas.requests_per_minute", "1 to 1000000"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key) && error.contains(remedy), "{key}: {error}");
        }
    }
}
