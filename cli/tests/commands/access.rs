//! `request`, `revoke`, `grants` and `show`.

use std::process::Stdio;
use std::time::Duration;

use postern_core::Invalid;
use postern_proto::status::{invalid, plain, with_field};
use postern_proto::v1::{self, GrantState, WindowState};
use postern_testkit::{Fault, Script, a_grant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tonic::Code;

use super::world::CommandWorld;

const REQUEST: [&str; 6] = ["request", "host:web-1", "--port", "22", "--reason", "fix disk"];
const ID: &str = "01jx0000000000000000000000";

/// Starts a broker that answers a request with a grant that is opening, and then sends these events.
async fn broker_with(watches: Vec<Vec<v1::WatchGrantsResponse>>) -> CommandWorld {
    let grant = Some(a_grant(GrantState::Opening, WindowState::Opening));
    let answer = v1::RequestAccessResponse { grant, source_from_caller: true, repeated_request: false };
    CommandWorld::with(Script { answer, watches, ..Script::default() }).await
}

fn event(state: GrantState, layer: WindowState) -> v1::WatchGrantsResponse {
    v1::WatchGrantsResponse { grant: Some(a_grant(state, layer)) }
}

fn listed() -> v1::WatchGrantsResponse {
    v1::WatchGrantsResponse { grant: None }
}

fn opens() -> Vec<v1::WatchGrantsResponse> {
    vec![
        event(GrantState::Opening, WindowState::Opening),
        listed(),
        event(GrantState::Opening, WindowState::Open),
        event(GrantState::Active, WindowState::Open),
    ]
}

#[tokio::test]
async fn a_request_waits_until_it_is_open_and_shows_its_progress() {
    let broker = broker_with(vec![opens()]).await;
    let ran = broker.postern(&REQUEST).await.exits(0);
    assert!(ran.out.contains("state   active"), "{ran:?}");
    assert!(ran.out.contains("the broker used the address it sees: 127.0.0.1/32"), "{ran:?}");
    let progress = [
        "grant 01jx0000000000000000000000 is opening",
        "  host:web-1 tcp/22 from 127.0.0.1/32: host opening",
        "  host:web-1 tcp/22 from 127.0.0.1/32: host open",
        "grant 01jx0000000000000000000000 is active",
    ];
    assert_eq!(ran.err.lines().collect::<Vec<_>>(), progress);
}

#[tokio::test]
async fn a_request_carries_what_the_flags_say() {
    let broker = broker_with(vec![opens()]).await;
    let flags = ["--port", "udp/161", "--source", "10.0.0.0/8", "--for", "1h 30m", "--output", "json"];
    let ran = broker.postern(&[&REQUEST[..], &flags].concat()).await.exits(0);
    assert_eq!(
        (&ran.json()["grant"]["state"], &ran.json()["source_from_caller"]),
        (&"active".into(), &true.into())
    );
    let script = broker.script();
    let request = &script.requests[0];
    assert_eq!(request.targets, ["host:web-1"]);
    assert_eq!(request.sources, ["10.0.0.0/8"]);
    assert_eq!(
        request.ports.iter().map(|port| (port.protocol(), port.number)).collect::<Vec<_>>(),
        [(v1::Protocol::Tcp, 22), (v1::Protocol::Udp, 161)]
    );
    assert_eq!(request.duration.unwrap().seconds, 5400);
    assert_eq!(request.idempotency_key.len(), 26);
    assert_eq!(script.filters[0].grant_id, ID);
}

#[tokio::test]
async fn i8_a_request_without_an_answer_is_repeated_under_the_same_key() {
    let broker = broker_with(vec![opens()]).await;
    broker.broker.faults().fail("RequestAccess", 2, Fault::Lost);
    broker.postern(&REQUEST).await.exits(0);
    let script = broker.script();
    let keys: Vec<_> = script.requests.iter().map(|request| &request.idempotency_key).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn i8_a_request_that_stays_unanswered_leaves_the_key_to_retry_with() {
    let broker = broker_with(vec![]).await;
    broker.broker.faults().fail("RequestAccess", usize::MAX, Fault::Lost);
    let ran = broker.postern(&[&REQUEST[..], &["--idempotency-key", "ticket-4711"]].concat()).await;
    ran.exits(8).tells("retry with --idempotency-key ticket-4711");
}

#[tokio::test]
async fn two_requests_without_a_key_are_two_requests() {
    let broker = broker_with(vec![]).await;
    for _ in 0..2 {
        broker.postern(&[&REQUEST[..], &["--no-wait"]].concat()).await.exits(0);
    }
    let script = broker.script();
    assert_ne!(script.requests[0].idempotency_key, script.requests[1].idempotency_key);
    assert!(script.filters.is_empty(), "--no-wait watches nothing");
}

#[tokio::test]
async fn a_lost_watch_is_taken_up_again() {
    let broken_off = vec![event(GrantState::Opening, WindowState::Opening), listed()];
    let broker = broker_with(vec![broken_off, opens()]).await;
    broker.postern(&REQUEST).await.exits(0);
    assert_eq!(broker.script().filters.len(), 2);
}

#[tokio::test]
async fn i5_a_grant_that_fails_ends_with_its_reason_and_is_shown() {
    let mut failed = a_grant(GrantState::Failed, WindowState::Closed);
    failed.reason = "the agent of host:web-1 is not connected".to_owned();
    let sent = vec![listed(), v1::WatchGrantsResponse { grant: Some(failed) }];
    let broker =
        broker_with(vec![[vec![event(GrantState::Opening, WindowState::Opening)], sent].concat()]).await;
    let ran = broker.postern(&[&REQUEST[..], &["--output", "json"]].concat()).await.exits(6);
    assert_eq!(ran.json()["grant"]["state"], "failed");
    ran.tells("error: grant 01jx0000000000000000000000 is failed: the agent of host:web-1 is not connected");
}

#[tokio::test]
async fn a_wait_that_is_over_says_so_and_that_the_grant_goes_on() {
    let broker = broker_with(vec![vec![event(GrantState::Opening, WindowState::Opening), listed()]]).await;
    let ran =
        broker.postern(&[&REQUEST[..], &["--timeout", "300ms", "--output", "json"]].concat()).await.exits(7);
    assert_eq!(ran.json()["grant"]["state"], "opening");
    ran.tells("is still opening after").tells("`postern show 01jx0000000000000000000000`");
}

#[tokio::test]
async fn each_refusal_has_its_exit_code_and_names_the_field() {
    let source =
        Invalid::new("sources", "8.8.8.8/32 is not an allowed source", "ask for a source within 10.0.0.0/8");
    for (refusal, code, words) in [
        (
            with_field(Code::PermissionDenied, "SOURCE_NOT_ALLOWED", &source),
            3,
            "sources: 8.8.8.8/32 is not an allowed source; ask for a source within 10.0.0.0/8",
        ),
        (invalid(&source), 5, "sources: 8.8.8.8/32 is not an allowed source; ask"),
        (
            plain(Code::NotFound, "NOT_FOUND", "host:web-1 is under no policy"),
            4,
            "host:web-1 is under no policy",
        ),
        (plain(Code::Unauthenticated, "CERTIFICATE_REQUIRED", "show a certificate"), 3, "show a certificate"),
        (plain(Code::ResourceExhausted, "STORE_FULL", "the disk is full"), 1, "the disk is full"),
    ] {
        let broker = CommandWorld::with(Script::default()).await;
        broker.broker.refuse(refusal);
        broker.postern(&REQUEST).await.exits(code).tells(&format!("error: {words}"));
    }
}

#[tokio::test]
async fn a_revocation_waits_until_every_layer_has_closed() {
    let closes = [listed_after_closing(), vec![event(GrantState::Closed, WindowState::Closed)]].concat();
    let broker = broker_with(vec![closes]).await;
    let ran = broker.postern(&["revoke", ID, "--reason", "done", "--output", "json"]).await.exits(0);
    assert_eq!(ran.json()["state"], "closed");
    ran.tells("host closing").tells("host closed");
}

fn listed_after_closing() -> Vec<v1::WatchGrantsResponse> {
    vec![event(GrantState::Closing, WindowState::Closing), listed()]
}

#[tokio::test]
async fn a_revocation_that_no_layer_confirms_times_out() {
    let broker = broker_with(vec![listed_after_closing()]).await;
    broker.postern(&["revoke", ID, "--timeout", "300ms"]).await.exits(7).tells("is still closing");
}

#[tokio::test]
async fn a_list_follows_pages_to_its_limit_and_says_where_it_was_cut() {
    let broker = CommandWorld::with(Script { grants: 5, ..Script::default() }).await;
    for (limit, shown, more) in [("3", 3, true), ("5", 5, false), ("100", 5, false)] {
        let ran = broker.postern(&["grants", "--limit", limit, "--output", "json"]).await.exits(0);
        let json = ran.json();
        assert_eq!(
            (json["grants"].as_array().unwrap().len(), &json["more"]),
            (shown, &more.into()),
            "{limit}"
        );
    }
}

#[tokio::test]
async fn mine_is_who_the_certificate_says() {
    let broker = CommandWorld::with(Script::default()).await;
    broker.postern(&["grants", "--mine", "--target", "host:web-1", "--state", "active"]).await.exits(0);
    let script = broker.script();
    let filter = &script.filters[0];
    assert_eq!((filter.principal.as_str(), filter.target.as_str()), ("alice", "host:web-1"));
    assert_eq!(filter.states().collect::<Vec<_>>(), [GrantState::Active]);
}

#[tokio::test]
async fn a_watch_writes_a_line_at_once_and_a_reader_that_goes_away_is_no_failure() {
    let sent: Vec<_> = (0..2000).map(|_| event(GrantState::Active, WindowState::Open)).collect();
    let broker = broker_with(vec![sent]).await;
    let mut child =
        broker.command(&["grants", "--watch", "--output", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["id"], ID);
    drop(lines);
    let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn show_shows_one_grant() {
    let broker = CommandWorld::with(Script::default()).await;
    let ran = broker.postern(&["show", ID]).await.exits(0);
    assert!(ran.out.contains("host:web-1  tcp/22  127.0.0.1/32  open"), "{ran:?}");
}
