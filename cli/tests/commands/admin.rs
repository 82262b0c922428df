//! `policy`, `agents`, `principals`, `targets` and `audit`.

use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord, Head};
use postern_proto::v1;
use postern_proto::v1::revoke_principal_request::Proof;
use postern_testkit::Script;

use super::world::CommandWorld;

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
    let broker = CommandWorld::with(Script::default()).await;
    let file = broker.file("web.toml", WEB);
    let applied = broker.postern(&["policy", "apply", "-f", &file, "--output", "json"]).await.exits(0);
    assert_eq!(applied.json()["policies"][0]["ports"][1]["port"]["protocol"], "udp");
    assert_eq!(applied.json()["policies"][1]["version"], 1);
    let mut kept = broker.script().policies.clone();
    for name in ["web", "db"] {
        let printed = broker.postern(&["policy", "get", name]).await.exits(0);
        assert!(printed.out.starts_with("# version 1\n"), "{printed:?}");
        broker.postern(&["policy", "apply", "-f", &broker.file("again.toml", &printed.out)]).await.exits(0);
    }
    kept.iter_mut().for_each(|policy| policy.version = 2);
    assert_eq!(broker.script().policies, kept);
}

#[tokio::test]
async fn policies_are_listed_and_deleted() {
    let broker = CommandWorld::with(Script::default()).await;
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
    let broker = CommandWorld::with(Script { log: log.clone(), ..Script::default() }).await;
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
    let broker = CommandWorld::with(Script::default()).await;
    let ran = broker.postern(&["audit", "verify", "--output", "json"]).await.exits(1);
    assert_eq!(ran.json()["broken_line"], 3);
    ran.tells("line 3: does not follow from the record before it");
}

#[tokio::test]
async fn i9_an_expected_head_is_looked_for_by_the_command_itself() {
    let log = a_log(4);
    let head: AuditRecord = serde_json::from_str(&log[2]).unwrap();
    let head = head.hash.to_string();
    let broker = CommandWorld::with(Script { log, ..Script::default() }).await;
    broker.postern(&["audit", "verify", "--expect-head", &head]).await.exits(0);
    broker.script().log.truncate(2);
    broker.postern(&["audit", "verify", "--expect-head", &head]).await.exits(1).tells(&head);
}

#[tokio::test]
async fn a_token_is_shown_with_the_line_that_uses_it() {
    let broker = CommandWorld::with(Script::default()).await;
    let ran = broker.postern(&["agents", "token", "host:Web-1", "--valid-for", "90s"]).await.exits(0);
    assert!(ran.out.ends_with("\npostern-agent enroll --token-file -\n"), "{ran:?}");
    let json = broker.postern(&["agents", "token", "host:web-1", "--output", "json"]).await.exits(0).json();
    assert_eq!(json["token"], "postern1.host:web-1.600");
    assert_eq!(json["enroll_command"], "postern-agent enroll --token-file -");
    assert_eq!(json["expires_at"], "2025-06-01T12:00:00Z");
}

#[tokio::test]
async fn agents_are_listed_and_banned() {
    let broker = CommandWorld::with(Script::default()).await;
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
    let broker = CommandWorld::with(Script::default()).await;
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
    let broker = CommandWorld::with(Script::default()).await;
    let listed = broker.postern(&["targets", "--output", "json"]).await.exits(0).json();
    assert_eq!(listed["targets"][0]["layers"][0]["status"], "in_sync");
    let shown = broker.postern(&["targets", "host:web-1"]).await.exits(0);
    assert!(shown.out.starts_with("target    host:web-1\nmode      enforce\n"), "{shown:?}");
}

fn a_revocation() -> v1::Revocation {
    let root =
        v1::Principal { role: v1::Role::Administrator.into(), name: "root".into(), ..Default::default() };
    let at = Some(prost_types::Timestamp { seconds: 1_748_779_200, nanos: 0 });
    v1::Revocation { by: Some(root), at, reason: "left".into() }
}

/// A principal with one certificate, revoked.
fn alice() -> v1::KnownPrincipal {
    let certificate = v1::PrincipalCertificate {
        role: v1::Role::Requester.into(),
        serial: "0abc".into(),
        issued_at: Some(prost_types::Timestamp { seconds: 1_748_000_000, nanos: 0 }),
        not_after: Some(prost_types::Timestamp { seconds: 1_750_000_000, nanos: 0 }),
        revoked: true,
    };
    v1::KnownPrincipal {
        name: "alice".into(),
        roles: vec![v1::Role::Requester.into()],
        certificates: vec![certificate],
        open_grants: 2,
        revoked: true,
        revocation: Some(a_revocation()),
    }
}

#[tokio::test]
async fn principals_are_listed_with_their_certificates_and_revocations() {
    let alone = v1::RevokedCertificate { serial: "0d".into(), revocation: Some(a_revocation()) };
    let principals = v1::ListPrincipalsResponse {
        principals: vec![alice(), v1::KnownPrincipal { name: "zoe".into(), ..Default::default() }],
        next_page_token: String::new(),
        revoked_certificates: vec![alone],
    };
    let broker = CommandWorld::with(Script { principals, ..Script::default() }).await;
    let json = broker.postern(&["principals", "list", "-o", "json"]).await.exits(0).json();
    assert_eq!(json["principals"][0]["roles"][0], "requester");
    assert_eq!(json["principals"][0]["certificates"][0]["serial"], "0abc");
    assert_eq!(json["principals"][0]["revocation"]["by"]["name"], "root");
    assert_eq!(
        (&json["principals"][1]["revoked"], &json["principals"][1]["revocation"]),
        (&false.into(), &().into())
    );
    assert_eq!(json["revoked_certificates"][0]["serial"], "0d");
    let people = broker.postern(&["principals", "list"]).await.exits(0).out;
    for part in ["alice", "revoked", "0abc (revoked)", "by administrator/root: left", "valid", "0d"] {
        assert!(people.contains(part), "{part:?} is not in {people}");
    }
}

#[tokio::test]
async fn a_revocation_names_a_principal_or_a_serial_number_and_shows_the_grants_that_close() {
    let revoked = v1::RevokePrincipalResponse {
        principal: Some(alice()),
        serial: String::new(),
        revocation: Some(a_revocation()),
        closed_grants: vec!["01jx0000000000000000000000".into()],
    };
    let broker = CommandWorld::with(Script { revoked, ..Script::default() }).await;
    let shown = broker.postern(&["principals", "revoke", "alice", "--reason", "left"]).await.exits(0);
    assert!(shown.out.contains("closes     01jx0000000000000000000000") && shown.err.is_empty(), "{shown:?}");
    broker.postern(&["principals", "revoke", "alice", "--keep-grants", "--allow-self"]).await.exits(0);
    broker.postern(&["principals", "revoke", "--serial", "00:0A:BC"]).await.exits(0);
    let asked = |proof| v1::RevokePrincipalRequest { proof: Some(proof), ..Default::default() };
    let alice = || Proof::Principal("alice".into());
    let expected = [
        v1::RevokePrincipalRequest { reason: "left".into(), ..asked(alice()) },
        v1::RevokePrincipalRequest { keep_grants: true, allow_self: true, ..asked(alice()) },
        asked(Proof::Serial("0abc".into())),
    ];
    assert_eq!(broker.script().revocations, expected);
    // A name that the broker has never met may be misspelled.
    broker.script().revoked.principal = None;
    broker.postern(&["principals", "revoke", "alcie"]).await.exits(0).tells("no record of a certificate");
    for bad in [
        &["principals", "revoke"][..],
        &["principals", "revoke", "alice", "--serial", "0a"],
        &["principals", "revoke", "--serial", "xyz"],
        &["principals", "revoke", "--serial", "0a", "--keep-grants"],
    ] {
        broker.postern(bad).await.exits(2);
    }
}
