//! `assess`, `lockdown` and `release`.

use postern_proto::v1;
use postern_testkit::Script;

use super::world::CommandWorld;

const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

fn found(verdict: v1::Verdict, unread: &[&str]) -> Script {
    let assessment = v1::Assessment {
        target: VM.to_owned(),
        name: "web".to_owned(),
        verdict: verdict.into(),
        reasons: vec!["sgr-1 of sg-1 lets anyone in to tcp/22".to_owned()],
        locked: false,
    };
    let place =
        |place: &&str| v1::UnreadPlace { place: (*place).to_owned(), reason: "it is away".to_owned() };
    let assessment_report = v1::AssessTargetsResponse {
        assessments: vec![assessment],
        unread: unread.iter().map(place).collect(),
    };
    Script { assessment_report, ..Script::default() }
}

fn a_result(done: bool) -> v1::LockdownResult {
    let action = v1::ChangeAction::Remove.into();
    let change = v1::Change { action, resource: "sgr-1".to_owned(), detail: "tcp/22 from anyone".to_owned() };
    v1::LockdownResult { target: VM.to_owned(), changes: vec![change], done, ..Default::default() }
}

fn asking() -> v1::LockdownResult {
    let kind = v1::ConcernKind::Cut.into();
    let concern = v1::Concern { kind, what: "sessions end".to_owned(), accepted: false, holds_up: true };
    v1::LockdownResult { concerns: vec![concern], ..a_result(false) }
}

fn failed() -> v1::LockdownResult {
    let code = v1::TargetErrorCode::Unavailable.into();
    let error = v1::TargetError { code, message: "the cloud cannot be reached".to_owned() };
    v1::LockdownResult { error: Some(error), ..a_result(false) }
}

#[tokio::test]
async fn an_assessment_requests_the_named_vms_and_shows_each_reason() {
    let broker = CommandWorld::with(found(v1::Verdict::Unhealthy, &[])).await;
    let ran = broker.postern(&["assess", VM, "--port", "22", "--port", "udp/161"]).await.exits(0);
    assert!(ran.out.contains("sgr-1 of sg-1 lets anyone in to tcp/22"), "{ran:?}");
    broker.postern(&["assess"]).await.exits(0);
    let asked = broker.script().assessments.clone();
    assert_eq!(asked[0].targets, [VM]);
    let ports: Vec<_> = asked[0].management_ports.iter().map(|port| (port.protocol(), port.number)).collect();
    assert_eq!(ports, [(v1::Protocol::Tcp, 22), (v1::Protocol::Udp, 161)]);
    assert_eq!(asked[1], v1::AssessTargetsRequest::default());
}

#[tokio::test]
async fn an_assessment_fails_where_a_place_was_not_read_and_a_check_on_an_unhealthy_vm_too() {
    for (verdict, unread, code) in [
        (v1::Verdict::Healthy, &[][..], 0),
        (v1::Verdict::NotApplicable, &[], 0),
        (v1::Verdict::Unhealthy, &[], 3),
        (v1::Verdict::Unhealthy, &["eu-north-1"], 3),
        (v1::Verdict::Healthy, &["eu-north-1"], 1),
    ] {
        let broker = CommandWorld::with(found(verdict, unread)).await;
        broker.postern(&["assess", "--fail-on", "unhealthy"]).await.exits(code);
        // A place that was not read is a failure of each assessment: what it holds is not in the result.
        let ran = broker.postern(&["assess", "-o", "json"]).await.exits(i32::from(!unread.is_empty()));
        assert_eq!(ran.json()["assessments"][0]["target"], VM);
    }
}

#[tokio::test]
async fn a_lockdown_shows_every_change() {
    let broker = CommandWorld::with(Script { results: vec![a_result(true)], ..Script::default() }).await;
    let ran = broker.postern(&["lockdown", VM, "--accept", "cut", "--accept", "loss"]).await.exits(0);
    assert_eq!(ran.out, format!("{VM}: locked down\n  - remove sgr-1: tcp/22 from anyone\n"));
    let asked = broker.script().lockdowns.remove(0);
    let accept = [v1::ConcernKind::Cut, v1::ConcernKind::Loss].map(i32::from).to_vec();
    assert_eq!(asked, v1::LockdownTargetsRequest { targets: vec![VM.to_owned()], dry_run: false, accept });
}

#[tokio::test]
async fn what_was_not_done_is_a_failure_with_the_way_to_do_it() {
    let broker =
        CommandWorld::with(Script { results: vec![a_result(true), asking()], ..Script::default() }).await;
    let ran = broker.postern(&["lockdown", VM]).await.exits(6).tells("1 of 2 targets");
    assert!(
        ran.out.contains("must be accepted (cut): sessions end\n  run the command again with --accept cut\n"),
        "{ran:?}"
    );
    let json = broker.postern(&["lockdown", VM, "--output", "json"]).await.exits(6).json();
    assert_eq!((&json["results"][0]["done"], &json["results"][1]["done"]), (&true.into(), &false.into()));
    broker.script().results = vec![failed()];
    let ran = broker.postern(&["release", VM]).await.exits(6);
    assert!(ran.out.starts_with(&format!("{VM}: not released: the cloud cannot be reached\n")), "{ran:?}");
}

#[tokio::test]
async fn a_dry_run_succeeds_by_listing_the_changes() {
    let broker =
        CommandWorld::with(Script { results: vec![a_result(false), asking()], ..Script::default() }).await;
    for command in ["lockdown", "release"] {
        broker.postern(&[command, VM, "--dry-run"]).await.exits(0);
    }
    let (lockdown, release) = {
        let mut script = broker.script();
        script.results = vec![failed()];
        (script.lockdowns.remove(0), script.releases.remove(0))
    };
    assert!(lockdown.dry_run && release.dry_run);
    broker.postern(&["lockdown", VM, "--dry-run"]).await.exits(6);
}
