//! `policy`, `agents`, `targets` and `audit`.

use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord, Head};

use super::fake::{Fake, Script};

const WEB: &str = r#"
[[policy]]
name = "web"
targets = ["host:web-*"]

[[policy.ports]]
number = 22
protocol = "any"
sources = ["10.0.0.0/8"]
max_duration = "1h 30m"

[[policy]]
name = "db"
targets = ["host:db-1"]
mode = "monitor"
requesters = ["alice"]

[[policy.ports]]
port = "tcp/5432"
sources = ["*"]
max_duration = "3h"
"#;

#[tokio::test]
async fn what_get_prints_apply_takes_back_unchanged() {
    let broker = Fake::with(Script::default()).await;
    let file = broker.file("web.toml", WEB);
    let applied = broker.postern(&["policy", "apply", "-f", &file, "--output", "json"]).await.exits(0);
    assert_eq!(applied.json()["policies"][0]["ports"][1]["port"]["protocol"], "udp");
    assert_eq!(applied.json()["policies"][1]["version"], 1);
    let mut kept = broker.script.lock().unwrap().policies.clone();
    for name in ["web", "db"] {
        let printed = broker.postern(&["policy", "get", name]).await.exits(0);
        assert!(printed.out.starts_with("# version 1\n"), "{printed:?}");
        broker.postern(&["policy", "apply", "-f", &broker.file("again.toml", &printed.out)]).await.exits(0);
    }
    kept.iter_mut().for_each(|policy| policy.version = 2);
    assert_eq!(broker.script.lock().unwrap().policies, kept);
}

#[tokio::test]
async fn policies_are_listed_and_deleted() {
    let broker = Fake::with(Script::default()).await;
    broker.postern(&["policy", "apply", "-f", &broker.file("web.toml", WEB)]).await.exits(0);
    let listed = broker.postern(&["policy", "list"]).await.exits(0);
    let first: Vec<_> = listed
        .out
        .lines()
        .nth(1)
        .unwrap()
        .split("  ")
        .filter(|cell| !cell.is_empty())
        .map(str::trim)
        .collect();
    assert_eq!(first, ["web", "host:web-*", "tcp/22 udp/22", "enforce", "host", "every requester", "1"]);
    broker.postern(&["policy", "delete", "web"]).await.exits(0);
    broker.postern(&["policy", "get", "web"]).await.exits(4).tells("policy web does not exist");
}

fn a_log(length: usize) -> Vec<String> {
    let mut head = Head::EMPTY;
    let line = |n| {
        let event =
            AuditEvent::denied(Timestamp::UNIX_EPOCH, "requester/alice", "grant.requested").with("n", n);
        let record = AuditRecord::following(&head, event);
        head = record.head();
        record.to_line()
    };
    (0..length).map(line).collect()
}

#[tokio::test]
async fn i9_a_tail_in_json_is_the_log_as_it_was_chained() {
    let log = a_log(4);
    let broker = Fake::with(Script { log: log.clone(), ..Script::default() }).await;
    let ran = broker.postern(&["audit", "tail", "--output", "json"]).await.exits(0);
    assert_eq!(ran.out.lines().collect::<Vec<_>>(), log);
    let copy = broker.file("log.jsonl", &ran.out);
    broker.postern(&["audit", "verify", "--file", &copy]).await.exits(0);
    let people = broker.postern(&["audit", "tail", "--after", "3"]).await.exits(0);
    assert_eq!(
        people.out,
        "     4  1970-01-01 00:00:00Z  requester/alice  grant.requested DENIED  n=\"3\"\n"
    );
}

#[tokio::test]
async fn i9_a_log_that_the_broker_finds_broken_is_an_error_with_the_line() {
    let broker = Fake::with(Script::default()).await;
    let ran = broker.postern(&["audit", "verify", "--output", "json"]).await.exits(1);
    assert_eq!(ran.json()["broken_line"], 3);
    ran.tells("line 3: does not follow from the record before it");
}

#[tokio::test]
async fn i9_an_expected_head_is_looked_for_by_the_command_itself() {
    let log = a_log(4);
    let head: AuditRecord = serde_json::from_str(&log[2]).unwrap();
    let head = head.hash.to_string();
    let broker = Fake::with(Script { log, ..Script::default() }).await;
    broker.postern(&["audit", "verify", "--expect-head", &head]).await.exits(0);
    broker.script.lock().unwrap().log.truncate(2);
    broker.postern(&["audit", "verify", "--expect-head", &head]).await.exits(1).tells(&head);
}

#[tokio::test]
async fn a_token_is_shown_with_the_line_that_uses_it() {
    let broker = Fake::with(Script::default()).await;
    let ran = broker.postern(&["agents", "token", "host:Web-1", "--valid-for", "90s"]).await.exits(0);
    assert!(ran.out.ends_with("\npostern-agent enroll --token-file -\n"), "{ran:?}");
    let json = broker.postern(&["agents", "token", "host:web-1", "--output", "json"]).await.exits(0).json();
    assert_eq!(json["token"], "postern1.host:web-1.600");
    assert_eq!(json["enroll_command"], "postern-agent enroll --token-file -");
    assert_eq!(json["expires_at"], "2025-06-01T12:00:00Z");
}

#[tokio::test]
async fn agents_are_listed_and_banned() {
    let broker = Fake::with(Script::default()).await;
    let listed = broker.postern(&["agents", "list", "--output", "json"]).await.exits(0).json();
    assert_eq!(
        (&listed["agents"][0]["target"], &listed["agents"][0]["last_seen"]),
        (&"host:web-1".into(), &().into())
    );
    let banned = broker.postern(&["agents", "ban", "host:web-1", "--reason", "stolen"]).await.exits(0);
    assert!(banned.out.contains("host:web-1  banned"), "{banned:?}");
}

#[tokio::test]
async fn a_forgotten_agent_is_shown_with_what_its_machine_may_hold() {
    let broker = Fake::with(Script::default()).await;
    let forget = ["agents", "forget", "host:web-1", "--reason", "deleted", "--accept-held-windows"];
    let ran = broker.postern(&forget).await.exits(0);
    assert!(ran.out.contains("2025-06-01") && ran.out.contains("01jx0000000000000000000000"), "{ran:?}");
    let json = broker.postern(&[&forget[..], &["--output", "json"]].concat()).await.exits(0).json();
    assert_eq!(json["forgotten"], "host:web-1");
    assert_eq!(json["held_until"], "2025-06-01T12:00:00Z");
    assert_eq!(json["held_grants"][0], "01jx0000000000000000000000");
}

#[tokio::test]
async fn targets_are_listed_and_shown() {
    let broker = Fake::with(Script::default()).await;
    let listed = broker.postern(&["targets", "--output", "json"]).await.exits(0).json();
    assert_eq!(listed["targets"][0]["layers"][0]["status"], "in_sync");
    let shown = broker.postern(&["targets", "host:web-1"]).await.exits(0);
    assert!(shown.out.starts_with("target    host:web-1\nmode      enforce\n"), "{shown:?}");
}
