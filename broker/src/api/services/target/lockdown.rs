//! Assessments, lockdowns and releases on the wire.

use postern_core::Invalid;
use postern_proto::v1;
use postern_provider::{
    Action, Assessment, AssessmentReport, CloudChange, CloudError, Concern, ConcernKind, Consent, Health,
    Unread,
};

use crate::app::lockdown::{TargetError, TargetOutcome};

/// Parses the concerns that the request accepts.
pub(super) fn consent(request: &v1::LockdownTargetsRequest) -> Result<Consent, Invalid> {
    let kind = |(i, wire): (usize, &i32)| match v1::ConcernKind::try_from(*wire) {
        Ok(v1::ConcernKind::Shared) => Ok(ConcernKind::Shared),
        Ok(v1::ConcernKind::Loss) => Ok(ConcernKind::Loss),
        Ok(v1::ConcernKind::Cut) => Ok(ConcernKind::Cut),
        Ok(v1::ConcernKind::Precedence) => Ok(ConcernKind::Precedence),
        Ok(v1::ConcernKind::Unspecified) | Err(_) => {
            Err(Invalid::new(format!("accept[{i}]"), "is not set or not known", "use shared, loss or cut"))
        }
    };
    request.accept.iter().enumerate().map(kind).collect::<Result<_, _>>().map(Consent)
}

pub(super) fn survey(survey: AssessmentReport) -> v1::AssessTargetsResponse {
    v1::AssessTargetsResponse {
        assessments: survey.assessments.into_iter().map(assessment).collect(),
        unread: survey.unread.into_iter().map(unread).collect(),
    }
}

fn assessment(assessment: Assessment) -> v1::Assessment {
    let (verdict, reasons) = match assessment.health {
        Health::Healthy { reason } => (v1::Verdict::Healthy, vec![reason]),
        Health::Unhealthy { reasons } => (v1::Verdict::Unhealthy, reasons),
        Health::NotApplicable { reason } => (v1::Verdict::NotApplicable, vec![reason]),
    };
    v1::Assessment {
        target: assessment.target.to_string(),
        name: assessment.name,
        verdict: verdict.into(),
        reasons,
        locked: assessment.locked,
    }
}

fn unread(unread: Unread) -> v1::UnreadPlace {
    v1::UnreadPlace { place: unread.place, reason: unread.error.to_string() }
}

pub(super) fn result(outcome: TargetOutcome) -> v1::LockdownResult {
    let TargetOutcome { unmet, consent, .. } = outcome;
    let concern = |concern: Concern| v1::Concern {
        accepted: consent.0.contains(&concern.kind),
        holds_up: unmet.contains(&concern),
        kind: kind(concern.kind).into(),
        what: concern.what,
    };
    v1::LockdownResult {
        target: outcome.target.to_string(),
        changes: outcome.report.changes.into_iter().map(change).collect(),
        concerns: outcome.report.concerns.into_iter().map(concern).collect(),
        done: outcome.done,
        error: outcome.error.as_ref().map(error),
    }
}

fn change(change: CloudChange) -> v1::Change {
    let action = match change.action {
        Action::Create => v1::ChangeAction::Create,
        Action::Attach => v1::ChangeAction::Attach,
        Action::Park => v1::ChangeAction::Park,
        Action::Add => v1::ChangeAction::Add,
        Action::Remove => v1::ChangeAction::Remove,
        Action::Mark => v1::ChangeAction::Mark,
        Action::Detach => v1::ChangeAction::Detach,
        Action::Delete => v1::ChangeAction::Delete,
        Action::Move => v1::ChangeAction::Move,
    };
    v1::Change { action: action.into(), resource: change.resource, detail: change.detail }
}

fn kind(kind: ConcernKind) -> v1::ConcernKind {
    match kind {
        ConcernKind::Shared => v1::ConcernKind::Shared,
        ConcernKind::Loss => v1::ConcernKind::Loss,
        ConcernKind::Cut => v1::ConcernKind::Cut,
        ConcernKind::Precedence => v1::ConcernKind::Precedence,
    }
}

fn error(error: &TargetError) -> v1::TargetError {
    let code = match error {
        TargetError::Cloud(CloudError::NotFound { .. }) => v1::TargetErrorCode::NotFound,
        TargetError::Precondition { .. } | TargetError::Cloud(CloudError::Refused { .. }) => {
            v1::TargetErrorCode::FailedPrecondition
        }
        TargetError::Cloud(CloudError::Unavailable { .. }) | TargetError::Store(_) => {
            v1::TargetErrorCode::Unavailable
        }
    };
    v1::TargetError { code: code.into(), message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use postern_provider::LockdownReport;

    use super::*;

    fn an_outcome(error: Option<TargetError>) -> TargetOutcome {
        let concern = |kind| Concern { kind, what: "a test".into() };
        TargetOutcome {
            target: "aws:123456789012/eu-central-1/i-0123456789abcdef0".parse().unwrap(),
            report: LockdownReport { changes: vec![], concerns: ConcernKind::ALL.map(concern).to_vec() },
            unmet: vec![concern(ConcernKind::Cut)],
            consent: Consent([ConcernKind::Shared, ConcernKind::Loss].into()),
            done: false,
            error,
        }
    }

    #[test]
    fn a_concern_is_accepted_or_holds_the_target_up_or_is_only_reported() {
        let wire = result(an_outcome(None));
        let accepted: Vec<_> =
            wire.concerns.iter().map(|one| (one.kind(), one.accepted, one.holds_up)).collect();
        let expected = [
            (v1::ConcernKind::Shared, true, false),
            (v1::ConcernKind::Loss, true, false),
            (v1::ConcernKind::Cut, false, true),
            (v1::ConcernKind::Precedence, false, false),
        ];
        assert_eq!((accepted, wire.error), (expected.to_vec(), None));
    }

    #[test]
    fn each_error_has_its_code_and_its_message() {
        let target: postern_core::TargetId = an_outcome(None).target;
        for (error, code, words) in [
            (CloudError::NotFound { target }.into(), v1::TargetErrorCode::NotFound, "does not exist"),
            (CloudError::refused("the quota").into(), v1::TargetErrorCode::FailedPrecondition, "the quota"),
            (CloudError::unavailable("a test").into(), v1::TargetErrorCode::Unavailable, "a test"),
            (
                TargetError::Precondition { reason: "no policy".into() },
                v1::TargetErrorCode::FailedPrecondition,
                "no policy",
            ),
            (
                postern_store::StoreError::Full(postern_store::Medium::Disk).into(),
                v1::TargetErrorCode::Unavailable,
                "",
            ),
        ] {
            let wire = result(an_outcome(Some(error))).error.unwrap();
            assert_eq!(wire.code(), code);
            assert!(wire.message.contains(words) && !wire.message.is_empty(), "{wire:?}");
        }
    }

    #[test]
    fn every_kind_of_concern_can_be_accepted() {
        let accept = ConcernKind::ALL.map(|one| kind(one).into()).to_vec();
        let request = v1::LockdownTargetsRequest { accept, ..v1::LockdownTargetsRequest::default() };
        assert_eq!(consent(&request).unwrap(), Consent::all());
    }

    #[test]
    fn an_unknown_kind_of_concern_is_no_consent() {
        for wire in [0, 9] {
            let accept = vec![v1::ConcernKind::Cut.into(), wire];
            let request = v1::LockdownTargetsRequest { accept, ..v1::LockdownTargetsRequest::default() };
            assert_eq!(consent(&request).unwrap_err().field, "accept[1]");
        }
    }
}
