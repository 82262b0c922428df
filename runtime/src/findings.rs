//! The findings of a `doctor`: what it observed, how bad that is, and the remedy.

use std::fmt;
use std::io::Write;

use serde::Serialize;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The severity.
    pub severity: Severity,
    /// The observation.
    pub what: String,
    /// The remedy; empty where none is needed.
    pub remedy: String,
}

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The check passed.
    Good,
    /// The part works, but not as well as it could.
    Warning,
    /// The part does not work.
    Error,
}

impl Finding {
    /// Makes a finding of a check that passed.
    pub fn good(what: impl Into<String>) -> Self {
        Self { severity: Severity::Good, what: what.into(), remedy: String::new() }
    }

    /// Makes a finding of a part that works, but not as well as it could.
    pub fn warning(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, what: what.into(), remedy: remedy.into() }
    }

    /// Makes a finding of a part that does not work.
    pub fn error(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { severity: Severity::Error, what: what.into(), remedy: remedy.into() }
    }
}

/// Returns the worst severity; good if there is no finding.
pub fn worst(findings: &[Finding]) -> Severity {
    findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Good)
}

/// Writes the findings for people, the worst last. Returns the worst severity.
///
/// # Errors
/// The output is closed.
pub fn write_text(mut findings: Vec<Finding>, out: &mut impl Write) -> std::io::Result<Severity> {
    findings.sort_by_key(|finding| finding.severity);
    for finding in &findings {
        writeln!(out, "{:<8} {}", finding.severity.to_string(), finding.what)?;
        if !finding.remedy.is_empty() {
            writeln!(out, "         -> {}", finding.remedy)?;
        }
    }
    Ok(worst(&findings))
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Good => "good",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_last_with_its_remedy() {
        let findings =
            vec![Finding::error("bad", "repair it"), Finding::good("fine"), Finding::warning("so", "look")];
        let mut page = Vec::new();
        assert_eq!(write_text(findings, &mut page).unwrap(), Severity::Error);
        let page = String::from_utf8(page).unwrap();
        assert!(
            page.starts_with("good") && page.ends_with("error    bad\n         -> repair it\n"),
            "{page}"
        );
    }
}
