//! The export of traces in the configuration.

use http::Uri;
use postern_core::Invalid;
use serde::Deserialize;

use crate::traces::{BUILT_IN, TraceSettings};

/// The section `[traces]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TracesSection {
    otlp: String,
    #[serde(default = "all")]
    sample: f64,
}

/// Returns the share of every trace.
fn all() -> f64 {
    1.0
}

impl TracesSection {
    /// # Errors
    /// A key is wrong, or the program was built without traces.
    pub(super) fn checked(self) -> Result<TraceSettings, Invalid> {
        if !BUILT_IN {
            let remedy = "leave it out, or build the broker with the feature `traces`";
            return Err(Invalid::new("traces", "is not in this program", remedy));
        }
        let is_good = |uri: &Uri| uri.scheme_str() == Some("http") && uri.port().is_some();
        if !self.otlp.parse::<Uri>().is_ok_and(|uri| is_good(&uri)) {
            let problem = format!("{:?} is not the address of a collector", self.otlp);
            return Err(Invalid::new("traces.otlp", problem, "write it like http://127.0.0.1:4317"));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            let problem = format!("{} is out of range", self.sample);
            return Err(Invalid::new("traces.sample", problem, "use 0 to 1"));
        }
        Ok(TraceSettings { otlp: self.otlp, sample: self.sample })
    }
}

#[cfg(all(test, feature = "traces"))]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TraceSettings, String> {
        let file: TracesSection = toml::from_str(text).map_err(|error| error.to_string())?;
        file.checked().map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_section_becomes_settings() {
        let otlp = "http://127.0.0.1:4317".to_owned();
        let all = TraceSettings { otlp: otlp.clone(), sample: 1.0 };
        assert_eq!(parse("otlp = \"http://127.0.0.1:4317\""), Ok(all));
        let some = TraceSettings { otlp, sample: 0.1 };
        assert_eq!(parse("otlp = \"http://127.0.0.1:4317\"\nsample = 0.1"), Ok(some));
    }

    #[test]
    fn a_bad_section_names_the_key() {
        for (text, key) in [
            ("", "otlp"),
            ("otlp = \"127.0.0.1:4317\"", "traces.otlp"),
            ("otlp = \"https://collector:4317\"", "traces.otlp"),
            ("otlp = \"http://collector\"", "traces.otlp"),
            ("otlp = \"http://c:4317\"\nsample = 1.5", "traces.sample"),
            ("otlp = \"http://c:4317\"\nratio = 1.0", "ratio"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(key), "{key}: {error}");
        }
    }
}
