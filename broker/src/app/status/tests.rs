use postern_core::Layers;
use postern_core::audit::AuditEvent;
use postern_core::{CloseReason, Event};
use postern_store::{Ban, Expect, StoreError, Transaction};

use super::*;
use crate::signals::rounds::Task;
use crate::testing::TestApp;
use crate::testing::builders::{a_grant, at, principal, start};

const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

/// A grant of this number that was revoked at that second.
fn revoked(number: u8, second: i64) -> Grant {
    let by = principal("alice");
    let grant = a_grant().number(number).seconds(600).build();
    grant.after(Event::Close(CloseReason::Revoked { by, reason: None }), at(second)).unwrap()
}

fn no_detail(_: &TargetId, _: Layer) -> String {
    String::new()
}

#[test]
fn a_close_is_stuck_after_half_a_minute_and_the_oldest_comes_first() {
    let active = a_grant().number(3).build().after(Event::Confirmed, at(1)).unwrap();
    let grants = [revoked(1, 50), revoked(2, 20), active, a_grant().number(4).seconds(600).build()];
    let ids = |now| -> Vec<(GrantId, Timestamp)> {
        stuck(&grants, at(now)).into_iter().map(|(grant, since)| (grant.id, since)).collect()
    };
    assert!(ids(50).is_empty());
    assert_eq!(ids(51), [(grants[1].id, at(20))]);
    // An end that the reconciler has not noticed counts from the end itself.
    let all = [(grants[1].id, at(20)), (grants[0].id, at(50)), (grants[2].id, at(60))];
    assert_eq!(ids(91), all);
}

#[test]
fn each_layer_that_has_not_confirmed_is_listed_once_with_the_reason() {
    let grant = a_grant().on(VM).layers(Layers::Both).build();
    let answers = |answer: Observed| {
        let observe = move |_: &Grant, _: &Window, layer| match layer {
            Layer::Host => Observed::Absent,
            Layer::Cloud => answer.clone(),
        };
        let detail = |target: &TargetId, layer: Layer| format!("{} of {target} is away", layer.word());
        let said: Vec<String> =
            unconfirmed_layers(&grant, observe, detail).into_iter().map(|(_, _, reason)| reason).collect();
        said
    };
    let reason = || "its quota is used up".to_owned();
    assert_eq!(answers(Observed::Refused { reason: reason() }), [reason()]);
    assert_eq!(answers(Observed::Unreachable { reason: reason(), may_hold: true }), [reason()]);
    assert_eq!(answers(Observed::Unconfirmed), [format!("cloud of {VM} is away")]);
    let nothing: [String; 0] = [];
    assert_eq!(answers(Observed::Unreachable { reason: reason(), may_hold: false }), nothing);
    assert_eq!(answers(Observed::Absent), nothing);
}

#[test]
fn a_layer_without_a_detail_is_listed_with_what_it_holds() {
    let grant = a_grant().build();
    let host: TargetId = "host:vm-1".parse().unwrap();
    for (observed, words) in
        [(Observed::Open, "it is still open"), (Observed::Unconfirmed, "it has not answered yet")]
    {
        let layers = unconfirmed_layers(&grant, |_, _, _| observed.clone(), no_detail);
        assert_eq!(layers, [(host.clone(), Layer::Host, words.to_owned())]);
    }
}

#[test]
fn the_oldest_that_waits_is_one_that_opens_or_one_that_closes() {
    let opening = a_grant().number(1).asked_at(at(5)).seconds(600).build();
    let active = a_grant().number(2).seconds(600).build().after(Event::Confirmed, at(1)).unwrap();
    let closing = revoked(3, 9);
    let found = |grants: &[&Grant]| {
        let grants: Vec<Grant> = grants.iter().map(|grant| (*grant).clone()).collect();
        oldest(&grants, at(10)).map(|waiting| (waiting.grant, waiting.closing, waiting.age.as_secs()))
    };
    assert_eq!(found(&[&active]), None);
    assert_eq!(found(&[&closing, &active]), Some((closing.id, true, 1)));
    assert_eq!(found(&[&closing, &active, &opening]), Some((opening.id, false, 5)));
}

#[test]
fn agents_and_grants_are_counted() {
    let agent = |target: &str, banned: bool| AgentRecord {
        target: target.parse().unwrap(),
        enrolled_at: start(),
        certificate_not_after: at(100),
        banned: banned.then(|| Ban { by: principal("root"), at: at(1), reason: String::new() }),
        keys: None,
        cloned: None,
        forgotten: None,
        roots: Vec::new(),
        certificate_root: None,
    };
    let agents = [agent("host:vm-1", false), agent("host:vm-2", true), agent("host:vm-3", false)];
    let card = |agents| MemberInfo { agents, ..MemberInfo::default() };
    let counted = count_agents(&agents, &[card(1), card(0), card(1)]);
    assert_eq!(counted, AgentCounts { enrolled: 2, connected: 2, banned: 1, cloned: 0 });
    let active = a_grant().build().after(Event::Confirmed, at(1)).unwrap();
    let counted = count_grants(&[a_grant().build(), active.clone(), active, revoked(1, 1)]);
    assert_eq!(counted, GrantCounts { pending_approval: 0, opening: 1, active: 2, closing: 1 });
}

#[tokio::test]
async fn an_overview_lists_every_task_with_its_last_round() {
    let (test, s) = (TestApp::new(), Duration::from_secs);
    let now = boottime();
    let began = |task, every, ago| test.app.rounds.reporter(task, every, now.saturating_sub(s(ago)));
    began(Task::Sample, Some(s(30)), 91);
    began(Task::AuditOutbox, None, 3600);
    began(Task::Readiness, Some(s(1)), 50).succeeded(now);
    let sweep = began(Task::Sweep, Some(s(60)), 500);
    for ago in [130, 65] {
        sweep.failed(now.saturating_sub(s(ago)), "cannot read a region");
    }

    let tasks = overview(&test.app).await.tasks;
    let seen = |task: &TaskStatus| {
        let age = task.age.map(|age| age.as_secs());
        (task.task, age.map(|age| age / 60), task.result.clone(), task.overdue, task.failing)
    };
    let expected = [
        ("sweep", Some(1), "cannot read a region".to_owned(), false, true),
        ("audit outbox", None, String::new(), false, false),
        ("readiness", Some(0), "ok".to_owned(), false, false),
        ("sample", None, String::new(), true, false),
    ];
    assert_eq!(tasks.iter().map(seen).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn an_overview_has_the_answers_of_the_store_and_the_layers() {
    let test = TestApp::new();
    test.app.readiness.clear(crate::signals::parts::RECONCILER);
    let grant = a_grant().asked_at(test.app.clock.now() - jiff::SignedDuration::from_secs(3600)).build();
    let event = AuditEvent::done(start(), "a test", "grant.requested");
    test.app
        .store
        .commit(Transaction::default().put_grant(grant.clone(), Expect::Absent).audit(event))
        .await
        .unwrap();

    let seen = overview(&test.app).await;
    assert_eq!(seen.not_ready, ["store: it was not asked yet"]);
    let stored = seen.stored.unwrap();
    assert_eq!((stored.head.seq, stored.stuck_total, stored.replicas.len()), (1, 1, 1));
    assert_eq!(stored.stuck[0].targets[0].to_string(), "host:vm-1");
    assert_eq!(stored.oldest.map(|oldest| oldest.grant), Some(grant.id));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_a_reason_in_one_line() {
    let broken = StoreError::Unavailable { source: "no route\nto it".into() };
    let failed: Result<(), String> = answered(async { Err(broken.into()) }).await;
    assert_eq!(
        failed,
        Err(
            "the store cannot be reached or failed; ask again, with the same idempotency key: no route to it"
                .to_owned()
        )
    );
    let silent: Result<(), String> = answered(std::future::pending()).await;
    assert_eq!(silent, Err("it did not answer within 3 s".to_owned()));
}
