//! The alarm about an audit log that contradicts the trusted checkpoint.

use jiff::Timestamp;
use postern_core::audit::Head;
use serde::{Deserialize, Serialize};

/// A contradiction between the audit log and the trusted checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alarm {
    /// The kind.
    pub kind: AlarmKind,
    /// The contradiction, in words.
    pub reason: String,
    /// The time at which this broker noticed it.
    pub since: Timestamp,
    /// Set once the audit log has the record of it.
    pub recorded: bool,
}

/// The kind of an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// The log no longer has the record that the checkpoint names.
    WentBack,
    /// The record that the checkpoint names is another.
    Rewritten,
    /// A record after it does not follow from the one before.
    Broken,
}

impl AlarmKind {
    /// Returns the action of the audit record, which is also the event of the log line.
    pub const fn action(self) -> &'static str {
        match self {
            Self::WentBack => "audit.went_back",
            Self::Rewritten => "audit.rewritten",
            Self::Broken => "audit.broken",
        }
    }
}

/// Describes an alarm on one line, with the remedy. `head` is the present end of the log.
pub(super) fn in_words(alarm: &Alarm, head: Option<Head>) -> String {
    let Alarm { reason, since, .. } = alarm;
    let accept = match head {
        Some(Head { seq, hash }) => format!(" --seq {seq} --hash {hash}"),
        None => String::new(),
    };
    format!(
        "the audit log cannot be trusted since {since:.0}: {reason}; compare it with copies kept elsewhere, and if its present end \
         is right, run `postern-broker audit accept-head{accept} --reason TEXT` on this broker's machine \
         (docs/operations.md, \"An audit log that went back\")"
    )
}
