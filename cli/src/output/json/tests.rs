use postern_proto::v1;
use serde_json::json;

use super::*;

/// A grant as the wire carries it: one window, open on the host and refused by the cloud.
pub(crate) fn a_grant() -> v1::Grant {
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let layer = |layer: v1::Layer, state: v1::WindowState, detail: &str| v1::WindowLayer {
        layer: layer.into(),
        state: state.into(),
        detail: detail.to_owned(),
    };
    v1::Grant {
        id: "01jx0000000000000000000000".to_owned(),
        principal: Some(v1::Principal {
            role: v1::Role::Requester.into(),
            name: "alice".to_owned(),
            ..v1::Principal::default()
        }),
        justification: "fix disk".to_owned(),
        requested_at: at(1_748_779_200),
        duration: Some(prost_types::Duration { seconds: 1800, nanos: 0 }),
        not_after: at(1_748_781_000),
        opened_at: Some(prost_types::Timestamp { seconds: 1_748_779_200, nanos: 4_000_000 }),
        closed_at: None,
        state: v1::GrantState::Active.into(),
        close_reason: v1::CloseReason::Unspecified.into(),
        reason: String::new(),
        windows: vec![v1::Window {
            target: "host:web-1".to_owned(),
            port: Some(v1::ProtectedPort { protocol: v1::Protocol::Tcp.into(), number: 22 }),
            source: "203.0.113.7/32".to_owned(),
            connect_to: String::new(),
            layers: vec![
                layer(v1::Layer::Host, v1::WindowState::Open, ""),
                layer(v1::Layer::Cloud, v1::WindowState::Refused, "quota"),
            ],
        }],
    }
}

#[test]
fn a_grant_has_the_documented_shape() {
    let shown = serde_json::to_value(GrantJson::from(a_grant())).unwrap();
    let documented = json!({
        "id": "01jx0000000000000000000000",
        "principal": {
            "role": "requester",
            "name": "alice",
            "issuer": null,
            "subject": "alice",
            "display_name": "alice"
        },
        "justification": "fix disk",
        "requested_at": "2025-06-01T12:00:00Z",
        "duration": 1800,
        "not_after": "2025-06-01T12:30:00Z",
        "opened_at": "2025-06-01T12:00:00.004Z",
        "closed_at": null,
        "state": "active",
        "close_reason": null,
        "reason": "",
        "windows": [{
            "target": "host:web-1",
            "port": { "protocol": "tcp", "number": 22 },
            "source": "203.0.113.7/32",
            "layers": [
                { "layer": "host", "state": "open", "detail": "" },
                { "layer": "cloud", "state": "refused", "detail": "quota" },
            ],
        }],
    });
    assert_eq!(shown, documented);
}

#[test]
fn an_assessment_has_the_documented_shape() {
    let wire = v1::AssessTargetsResponse {
        assessments: vec![v1::Assessment {
            target: "aws:123456789012/eu-central-1/i-0123456789abcdef0".to_owned(),
            name: "web".to_owned(),
            verdict: v1::Verdict::NotApplicable.into(),
            reasons: vec!["it is terminated".to_owned()],
            locked: false,
        }],
        unread: vec![v1::UnreadPlace { place: "eu-north-1".to_owned(), reason: "it is away".to_owned() }],
    };
    let documented = json!({
        "assessments": [{
            "target": "aws:123456789012/eu-central-1/i-0123456789abcdef0",
            "name": "web",
            "verdict": "not_applicable",
            "reasons": ["it is terminated"],
            "locked": false,
        }],
        "unread": [{ "place": "eu-north-1", "reason": "it is away" }],
    });
    assert_eq!(serde_json::to_value(AssessmentReportJson::from(wire)).unwrap(), documented);
}

#[test]
fn a_lockdown_has_the_documented_shape() {
    let result = v1::LockdownResult {
        target: "aws:123456789012/eu-central-1/i-0123456789abcdef0".to_owned(),
        changes: vec![v1::Change {
            action: v1::ChangeAction::Remove.into(),
            resource: "sgr-1".to_owned(),
            detail: "tcp/22 from anyone".to_owned(),
        }],
        concerns: vec![v1::Concern {
            kind: v1::ConcernKind::Cut.into(),
            what: "sgr-1 is for anyone".to_owned(),
            accepted: true,
            holds_up: false,
        }],
        done: false,
        error: Some(v1::TargetError {
            code: v1::TargetErrorCode::FailedPrecondition.into(),
            message: "the quota is used up".to_owned(),
        }),
    };
    let documented = json!({
        "dry_run": false,
        "results": [{
            "target": "aws:123456789012/eu-central-1/i-0123456789abcdef0",
            "changes": [{ "action": "remove", "resource": "sgr-1", "detail": "tcp/22 from anyone" }],
            "concerns": [{ "kind": "cut", "what": "sgr-1 is for anyone", "accepted": true, "holds_up": false }],
            "done": false,
            "error": { "code": "failed_precondition", "message": "the quota is used up" },
        }],
    });
    let shown = LockdownsJson { dry_run: false, results: vec![result.into()] };
    assert_eq!(serde_json::to_value(shown).unwrap(), documented);
}

#[test]
fn a_value_of_a_newer_broker_is_unknown_and_no_error() {
    let grant = GrantJson::from(v1::Grant { state: 99, close_reason: 99, ..a_grant() });
    assert_eq!((grant.state, grant.close_reason), ("unknown", None));
}

#[test]
fn a_fraction_of_a_second_is_kept() {
    let rule = v1::PortRule {
        max_duration: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
        ..Default::default()
    };
    let policy = PolicyJson::from(v1::Policy { ports: vec![rule], ..Default::default() });
    assert_eq!(serde_json::to_value(policy.ports[0].max_duration).unwrap(), json!(1.5));
}

#[test]
fn the_limits_that_a_requester_gets_have_no_mode_and_no_version() {
    let limits = PolicyJson::from(v1::Policy { requesters: vec!["alice".into()], ..Default::default() });
    assert_eq!((limits.unreachable, limits.mode, limits.version), (None, None, None));
}

#[test]
fn the_problem_of_a_log_is_null_where_there_is_none() {
    let sound = VerifiedJson::from(v1::VerifyAuditResponse { records: 3, sound: true, ..Default::default() });
    assert_eq!((sound.broken_line, sound.problem), (None, None));
}
