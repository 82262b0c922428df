//! The format of a program's log, as its configuration names it.

use serde::Deserialize;

/// The format of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text, for people.
    #[default]
    Text,
    /// A JSON object on each line.
    Json,
}
