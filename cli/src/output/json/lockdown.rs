//! Assessments, lockdowns and releases as programs see them.

use postern_proto::v1;
use serde::Serialize;

use super::words;

/// The result of `assess`: a verdict on each VM, and the places that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AssessmentReport {
    pub assessments: Vec<Assessment>,
    pub unread: Vec<Unread>,
}

/// The verdict on a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Assessment {
    pub target: String,
    pub name: String,
    pub verdict: &'static str,
    pub reasons: Vec<String>,
    pub locked: bool,
}

/// An account, Region or subscription that the broker could not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Unread {
    pub place: String,
    pub reason: String,
}

/// The results of a lockdown or a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Lockdowns {
    pub dry_run: bool,
    pub results: Vec<LockdownResult>,
}

/// The result for a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LockdownResult {
    pub target: String,
    pub changes: Vec<Change>,
    pub concerns: Vec<Concern>,
    pub done: bool,
    pub error: Option<TargetError>,
}

/// A change in a cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    pub action: &'static str,
    pub resource: String,
    pub detail: String,
}

/// A concern that the caller has to accept first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Concern {
    pub kind: &'static str,
    pub what: String,
    pub accepted: bool,
    pub holds_up: bool,
}

/// An error that concerns one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TargetError {
    pub code: &'static str,
    pub message: String,
}

impl From<v1::AssessTargetsResponse> for AssessmentReport {
    fn from(wire: v1::AssessTargetsResponse) -> Self {
        let unread = |v1::UnreadPlace { place, reason }| Unread { place, reason };
        Self {
            assessments: wire.assessments.into_iter().map(Assessment::from).collect(),
            unread: wire.unread.into_iter().map(unread).collect(),
        }
    }
}

impl From<v1::Assessment> for Assessment {
    fn from(wire: v1::Assessment) -> Self {
        Self {
            verdict: words::verdict(wire.verdict()),
            target: wire.target,
            name: wire.name,
            reasons: wire.reasons,
            locked: wire.locked,
        }
    }
}

impl From<v1::LockdownResult> for LockdownResult {
    fn from(wire: v1::LockdownResult) -> Self {
        Self {
            target: wire.target,
            changes: wire.changes.into_iter().map(Change::from).collect(),
            concerns: wire.concerns.into_iter().map(Concern::from).collect(),
            done: wire.done,
            error: wire.error.map(TargetError::from),
        }
    }
}

impl From<v1::Change> for Change {
    fn from(wire: v1::Change) -> Self {
        Self { action: words::change_action(wire.action()), resource: wire.resource, detail: wire.detail }
    }
}

impl From<v1::Concern> for Concern {
    fn from(wire: v1::Concern) -> Self {
        Self {
            kind: words::concern_kind(wire.kind()),
            what: wire.what,
            accepted: wire.accepted,
            holds_up: wire.holds_up,
        }
    }
}

impl From<v1::TargetError> for TargetError {
    fn from(wire: v1::TargetError) -> Self {
        Self { code: words::target_error_code(wire.code()), message: wire.message }
    }
}
