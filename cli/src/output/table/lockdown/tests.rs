use postern_proto::v1;

use super::*;
use crate::output::json;

fn squeezed(text: &str) -> Vec<String> {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn an_assessment_has_a_line_for_each_reason_and_each_place_that_was_not_read() {
    let judged = |target: &str, verdict: v1::Verdict, reasons: &[&str]| v1::Assessment {
        target: target.into(),
        name: String::new(),
        verdict: verdict.into(),
        reasons: reasons.iter().map(ToString::to_string).collect(),
        locked: verdict == v1::Verdict::Healthy,
    };
    let wire = v1::AssessTargetsResponse {
        assessments: vec![
            judged(
                "aws:1",
                v1::Verdict::Unhealthy,
                &["anyone reaches tcp/22", "10.0.0.0/8 reaches tcp/3389"],
            ),
            judged("aws:2", v1::Verdict::Healthy, &["it is under lockdown"]),
            judged("aws:3", v1::Verdict::NotApplicable, &[]),
        ],
        unread: vec![v1::UnreadPlace { place: "eu-north-1".into(), reason: "it is\naway".into() }],
    };
    let shown = assessment_report(&wire.into(), Timestamp::UNIX_EPOCH, Ids::Short);
    let expected = [
        "TARGET NAME VERDICT LOCKED REASON",
        "aws:1 - unhealthy no anyone reaches tcp/22",
        "aws:1 - unhealthy no 10.0.0.0/8 reaches tcp/3389",
        "aws:2 - healthy yes it is under lockdown",
        "aws:3 - not applicable no -",
        "",
        "could not read eu-north-1: it is\\naway",
    ];
    assert_eq!(squeezed(&shown), expected);
}

/// A target with one change of each sign and two concerns, one of which is accepted.
fn a_result() -> v1::LockdownResult {
    let change = |action: v1::ChangeAction, resource: &str, detail: &str| v1::Change {
        action: action.into(),
        resource: resource.into(),
        detail: detail.into(),
    };
    let concern = |kind: v1::ConcernKind, what: &str, accepted| v1::Concern {
        kind: kind.into(),
        what: what.into(),
        accepted,
        holds_up: !accepted && kind != v1::ConcernKind::Precedence,
    };
    v1::LockdownResult {
        target: "aws:1".into(),
        changes: vec![
            change(v1::ChangeAction::Add, "rule of sg-1", "tcp/23 from 10.0.0.0/8"),
            change(v1::ChangeAction::Remove, "sgr-2", ""),
        ],
        concerns: vec![
            concern(v1::ConcernKind::Loss, "sgr-2 lets in ESP", true),
            concern(v1::ConcernKind::Cut, "sgr-2 is for anyone", false),
        ],
        done: false,
        error: None,
    }
}

fn shown(dry_run: bool, result: v1::LockdownResult) -> String {
    lockdowns(&json::LockdownsJson { dry_run, results: vec![result.into()] }, "locked down")
}

#[test]
fn what_is_asked_comes_with_the_exact_changes_and_the_flags_that_accept_it() {
    let expected = "\
aws:1: not locked down: its concerns must be accepted first
  + add rule of sg-1: tcp/23 from 10.0.0.0/8
  - remove sgr-2
  accepted (loss): sgr-2 lets in ESP
  must be accepted (cut): sgr-2 is for anyone
  run the command again with --accept cut --accept loss";
    assert_eq!(shown(false, a_result()), expected);
}

#[test]
fn what_holds_nothing_up_is_said_with_the_flag_that_changes_it() {
    let note = v1::Concern {
        kind: v1::ConcernKind::Precedence.into(),
        what: "not locked: rule ssh".into(),
        accepted: false,
        holds_up: false,
    };
    let mut result = v1::LockdownResult { changes: vec![], concerns: vec![note], done: true, ..a_result() };
    let expected = "\
aws:1: already locked down
  note (precedence): not locked: rule ssh
  --accept precedence puts Postern's rules before these rules";
    assert_eq!(shown(false, result.clone()), expected);
    result.concerns[0].accepted = true;
    assert!(shown(false, result.clone()).ends_with("\n  accepted (precedence): not locked: rule ssh"));
    // A flag that nothing waits for is not advised.
    result.concerns[0].accepted = false;
    result.concerns.extend(a_result().concerns);
    assert!(shown(false, result).ends_with("\n  run the command again with --accept cut --accept loss"));
}

#[test]
fn how_a_target_stands_is_said_in_its_first_line() {
    let quiet = || v1::LockdownResult { concerns: Vec::new(), ..a_result() };
    let error = Some(v1::TargetError { code: 0, message: "the quota is used up".into() });
    for (dry_run, result, standing) in [
        (false, v1::LockdownResult { done: true, ..quiet() }, "locked down"),
        (false, v1::LockdownResult { done: true, changes: vec![], ..quiet() }, "already locked down"),
        (true, v1::LockdownResult { changes: vec![], ..quiet() }, "already locked down"),
        (true, quiet(), "would be locked down"),
        (true, a_result(), "would be locked down once its concerns are accepted"),
        (
            false,
            v1::LockdownResult { error: error.clone(), ..quiet() },
            "not locked down: the quota is used up",
        ),
        (
            false,
            v1::LockdownResult { error, done: true, ..quiet() },
            "locked down, but with an error: the quota is used up",
        ),
    ] {
        assert_eq!(shown(dry_run, result).lines().next(), Some(&*format!("aws:1: {standing}")));
    }
}

#[test]
fn changes_of_a_target_that_failed_are_not_told_as_done() {
    let error = Some(v1::TargetError { code: 0, message: "the quota is used up".into() });
    let failed = v1::LockdownResult { error, concerns: Vec::new(), ..a_result() };
    let text = shown(false, failed.clone());
    assert!(text.lines().nth(1).is_some_and(|line| line.starts_with("  planned; ")), "{text}");
    assert!(!shown(true, failed).contains("planned; "));
    assert!(!shown(false, v1::LockdownResult { done: true, ..a_result() }).contains("planned; "));
}

#[test]
fn text_of_the_cloud_neither_steers_the_terminal_nor_makes_up_lines() {
    let mut hostile = a_result();
    hostile.changes[0].detail = "\u{1b}[2J\naws:2: locked down".into();
    let shown = shown(false, hostile);
    assert!(!shown.contains('\u{1b}') && shown.lines().count() == 6, "{shown}");
}
