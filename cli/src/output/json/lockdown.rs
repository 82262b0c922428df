//! Assessments, lockdowns and releases as programs see them.

use postern_proto::v1;
use serde::Serialize;

use super::words;

/// The result of `assess`: a verdict on each VM, and the places that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AssessmentReportJson {
    pub assessments: Vec<AssessmentJson>,
    pub unread: Vec<UnreadJson>,
}

/// The verdict on a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AssessmentJson {
    pub target: String,
    pub name: String,
    pub verdict: &'static str,
    pub reasons: Vec<String>,
    pub locked: bool,
}

/// An account, Region or subscription that the broker could not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UnreadJson {
    pub place: String,
    pub reason: String,
}

/// The results of a lockdown or a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LockdownsJson {
    pub dry_run: bool,
    pub results: Vec<LockdownResultJson>,
}

/// The result for a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LockdownResultJson {
    pub target: String,
    pub changes: Vec<ChangeJson>,
    pub concerns: Vec<ConcernJson>,
    pub done: bool,
    pub error: Option<TargetErrorJson>,
}

/// A change in a cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ChangeJson {
    pub action: &'static str,
    pub resource: String,
    pub detail: String,
}

/// A concern that the caller has to accept first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ConcernJson {
    pub kind: &'static str,
    pub what: String,
    pub accepted: bool,
    pub holds_up: bool,
}

/// An error that concerns one target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TargetErrorJson {
    pub code: &'static str,
    pub message: String,
}

impl From<v1::AssessTargetsResponse> for AssessmentReportJson {
    fn from(wire: v1::AssessTargetsResponse) -> Self {
        let unread = |v1::UnreadPlace { place, reason }| UnreadJson { place, reason };
        Self {
            assessments: wire.assessments.into_iter().map(AssessmentJson::from).collect(),
            unread: wire.unread.into_iter().map(unread).collect(),
        }
    }
}

impl From<v1::Assessment> for AssessmentJson {
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

impl From<v1::LockdownResult> for LockdownResultJson {
    fn from(wire: v1::LockdownResult) -> Self {
        Self {
            target: wire.target,
            changes: wire.changes.into_iter().map(ChangeJson::from).collect(),
            concerns: wire.concerns.into_iter().map(ConcernJson::from).collect(),
            done: wire.done,
            error: wire.error.map(TargetErrorJson::from),
        }
    }
}

impl From<v1::Change> for ChangeJson {
    fn from(wire: v1::Change) -> Self {
        Self { action: words::change_action(wire.action()), resource: wire.resource, detail: wire.detail }
    }
}

impl From<v1::Concern> for ConcernJson {
    fn from(wire: v1::Concern) -> Self {
        Self {
            kind: words::concern_kind(wire.kind()),
            what: wire.what,
            accepted: wire.accepted,
            holds_up: wire.holds_up,
        }
    }
}

impl From<v1::TargetError> for TargetErrorJson {
    fn from(wire: v1::TargetError) -> Self {
        Self { code: words::target_error_code(wire.code()), message: wire.message }
    }
}
