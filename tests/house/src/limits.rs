//! The limits of the checks.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The highest counts that pass.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// Lines with a word that the tree does not use.
    pub(crate) words: usize,
    /// Doc summaries that open with a question word or a bare pronoun, in percent of all.
    pub(crate) summaries_percent: f64,
    /// Modules that import each other in a loop.
    pub(crate) loops: usize,
}

impl Limits {
    /// Reads the limits from a TOML file.
    ///
    /// # Errors
    /// The file cannot be read, or is not what it should be.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("reading {}", path.display()))
    }
}
