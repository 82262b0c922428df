use serde_json::json;

use super::*;

/// Two brokers, the first of which answers: all is well.
pub(crate) fn a_status() -> v1::GetStatusResponse {
    let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let replica = |name: &str, answers| v1::Replica {
        name: name.to_owned(),
        version: "0.1.0".to_owned(),
        started_at: at(1_748_779_200),
        agents: 2,
        targets: 3,
        clock_ahead_ms: -12,
        answers,
        ..v1::Replica::default()
    };
    v1::GetStatusResponse {
        replica: "broker-1".to_owned(),
        ready: true,
        replicas: vec![replica("broker-1", true), replica("broker-2", false)],
        store: Some(v1::StoreStatus {
            kind: v1::StoreKind::Redis.into(),
            error: String::new(),
            audit_records: 7,
            audit_head: "5f0c".to_owned(),
        }),
        agents: Some(v1::AgentCounts { enrolled: 5, connected: 4, banned: 1, cloned: 0 }),
        grants: Some(v1::GrantCounts { pending_approval: 0, opening: 1, active: 2, closing: 1 }),
        authority: Some(v1::AuthorityStatus {
            root: Some(v1::CaCertificate {
                subject: "Postern root (postern)".to_owned(),
                serial: "01".to_owned(),
                not_before: at(1_748_779_200),
                not_after: at(2_064_139_200),
            }),
            intermediate: Some(v1::CaCertificate {
                subject: "Postern intermediate (postern)".to_owned(),
                serial: "0a".to_owned(),
                not_before: at(1_748_779_200),
                not_after: at(1_780_315_200),
            }),
            root_key: v1::RootKey::AtHand.into(),
            warnings: Vec::new(),
        }),
        oldest_unconfirmed: Some(v1::UnconfirmedGrant {
            grant_id: "01jx0000000000000000000000".to_owned(),
            closing: false,
            since: at(1_748_779_210),
            age: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
        }),
        ..v1::GetStatusResponse::default()
    }
}

/// A grant that a host has not confirmed to be closed.
pub(crate) fn a_stuck_close() -> v1::StuckClose {
    v1::StuckClose {
        grant_id: "01jx0000000000000000000000".to_owned(),
        since: Some(prost_types::Timestamp { seconds: 1_748_779_200, nanos: 0 }),
        age: Some(prost_types::Duration { seconds: 95, nanos: 500_000_000 }),
        targets: vec!["host:web-1".to_owned()],
        layers: vec![v1::UnconfirmedLayer {
            target: "host:web-1".to_owned(),
            layer: v1::Layer::Host.into(),
            detail: "its agent is not connected".to_owned(),
        }],
    }
}

/// A task that waits for events, and two with a period.
pub(crate) fn the_tasks() -> Vec<v1::TaskStatus> {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let task = |task: &str, every, age, result: &str| v1::TaskStatus {
        task: task.to_owned(),
        every,
        age,
        result: result.to_owned(),
        ..v1::TaskStatus::default()
    };
    vec![
        task("reconciler", seconds(5), seconds(12), "ok"),
        task("sweep", seconds(600), seconds(90), "cannot read 1/eu-west-3: no route"),
        task("audit outbox", None, None, ""),
    ]
}

fn attention_of(change: impl FnOnce(&mut v1::GetStatusResponse)) -> Vec<String> {
    let mut wire = a_status();
    change(&mut wire);
    StatusJson::from(wire).attention
}

#[test]
fn a_status_has_the_documented_shape() {
    let mut wire = a_status();
    wire.replicas.truncate(1);
    (wire.stuck_closes, wire.stuck_closes_total) = (vec![a_stuck_close()], 1);
    wire.tasks = the_tasks().split_off(1);
    let documented = json!({
        "replica": "broker-1",
        "ready": true,
        "not_ready": [],
        "attention": ["1 grant has not closed in time"],
        "replicas": [{
            "name": "broker-1",
            "version": "0.1.0",
            "started_at": "2025-06-01T12:00:00Z",
            "agents": 2,
            "targets": 3,
            "failing_clouds": 0,
            "ending": false,
            "not_ready": [],
            "clock_ahead_ms": -12,
            "answers": true,
            "warnings": [],
        }],
        "store": { "kind": "redis", "error": "", "audit_records": 7, "audit_head": "5f0c" },
        "agents": { "enrolled": 5, "connected": 4, "banned": 1, "cloned": 0 },
        "cloned_agents": [],
        "grants": { "pending_approval": 0, "opening": 1, "active": 2, "closing": 1 },
        "stuck_closes": [{
            "grant_id": "01jx0000000000000000000000",
            "since": "2025-06-01T12:00:00Z",
            "age": 95.5,
            "targets": ["host:web-1"],
            "layers": [
                { "target": "host:web-1", "layer": "host", "detail": "its agent is not connected" },
            ],
        }],
        "stuck_closes_total": 1,
        "oldest_unconfirmed": {
            "grant_id": "01jx0000000000000000000000",
            "closing": false,
            "since": "2025-06-01T12:00:10Z",
            "age": 2,
        },
        "authority": {
            "root": {
                "subject": "Postern root (postern)",
                "serial": "01",
                "not_before": "2025-06-01T12:00:00Z",
                "not_after": "2035-05-30T12:00:00Z",
            },
            "intermediate": {
                "subject": "Postern intermediate (postern)",
                "serial": "0a",
                "not_before": "2025-06-01T12:00:00Z",
                "not_after": "2026-06-01T12:00:00Z",
            },
            "root_key": "at_hand",
            "warnings": [],
        },
        "tasks": [
            {
                "task": "sweep",
                "every": 600,
                "age": 90,
                "result": "cannot read 1/eu-west-3: no route",
                "overdue": false,
                "failing": false,
            },
            {
                "task": "audit outbox",
                "every": null,
                "age": null,
                "result": "",
                "overdue": false,
                "failing": false,
            },
        ],
    });
    assert_eq!(serde_json::to_value(StatusJson::from(wire)).unwrap(), documented);
}

#[test]
fn nothing_needs_attention_where_all_is_well() {
    let nothing: [String; 0] = [];
    assert_eq!(attention_of(|_| {}), nothing);
    assert_eq!(attention_of(|status| status.agents = None), nothing);
    assert_eq!(attention_of(|status| status.replicas[0].clock_ahead_ms = 1000), nothing);
}

#[test]
fn each_thing_that_needs_attention_is_one_line() {
    type Case = (fn(&mut v1::GetStatusResponse), &'static str);
    let cases: [Case; 9] = [
        (
            |status| (status.ready, status.not_ready) = (false, vec!["reconciler: it is slow".to_owned()]),
            "broker-1 is not ready: reconciler: it is slow",
        ),
        (
            |status| status.replicas[1].not_ready = vec!["store: a".to_owned(), "reconciler: b".to_owned()],
            "broker-2 is not ready: store: a; reconciler: b",
        ),
        (
            |status| status.replicas[1].failing_clouds = 2,
            "cloud calls for 2 of the targets of broker-2 keep failing",
        ),
        (
            |status| status.replicas[1].clock_ahead_ms = 1500,
            "the clock of broker-2 is 1500 ms ahead of the store's",
        ),
        (
            |status| status.replicas[0].clock_ahead_ms = -1001,
            "the clock of broker-1 is 1001 ms behind the store's",
        ),
        (
            |status| {
                let ends = "the authority's intermediate certificate ends in 89 days".to_owned();
                status.authority.get_or_insert_default().warnings = vec![ends];
            },
            "broker-1: the authority's intermediate certificate ends in 89 days",
        ),
        (
            |status| status.replicas[1].warnings = vec!["the authority's root certificate ends".to_owned()],
            "broker-2: the authority's root certificate ends",
        ),
        (|status| status.stuck_closes_total = 25, "25 grants have not closed in time"),
        (|status| status.replicas.clear(), "no broker is ready"),
    ];
    for (change, line) in cases {
        assert_eq!(attention_of(change), [line]);
    }
}

#[test]
fn a_task_needs_attention_if_it_is_overdue_or_keeps_failing_for_a_reason_of_its_own() {
    let nothing: [String; 0] = [];
    assert_eq!(attention_of(|status| status.tasks = the_tasks()), nothing, "one failed round is no alarm");
    let overdue = |status: &mut v1::GetStatusResponse| {
        status.tasks = the_tasks();
        (status.tasks[0].overdue, status.tasks[2].overdue) = (true, true);
    };
    let lines = [
        "the task \"reconciler\" of broker-1 is overdue: its last round was 12s ago",
        "the task \"audit outbox\" of broker-1 is overdue: it has not gone round yet",
    ];
    assert_eq!(attention_of(overdue), lines);
    let failing = |status: &mut v1::GetStatusResponse| {
        status.tasks = the_tasks();
        status.tasks[1].failing = true;
    };
    let line = "the task \"sweep\" of broker-1 keeps failing: cannot read 1/eu-west-3: no route";
    assert_eq!(attention_of(failing), [line]);
    let explained = attention_of(|status| {
        failing(status);
        status.store.get_or_insert_default().error = "it is away".to_owned();
    });
    assert_eq!(explained, ["the store does not answer: it is away"]);
    let explained = attention_of(|status| {
        failing(status);
        status.tasks[1].task = "cloud layer".to_owned();
        status.replicas[0].failing_clouds = 2;
    });
    assert_eq!(explained, ["cloud calls for 2 of the targets of broker-1 keep failing"]);
}

#[test]
fn a_broker_that_ends_is_no_trouble_while_another_is_ready() {
    let nothing: [String; 0] = [];
    let ends = |status: &mut v1::GetStatusResponse| {
        (status.ready, status.not_ready) = (false, vec!["ending: the broker is ending".to_owned()]);
        status.replicas[0].ending = true;
    };
    assert_eq!(attention_of(ends), nothing);
    let both = attention_of(|status| {
        ends(status);
        status.replicas[1].ending = true;
    });
    assert_eq!(both, ["no broker is ready"]);
}

#[test]
fn a_store_that_does_not_answer_says_nothing_of_other_brokers() {
    let found = attention_of(|status| {
        status.replicas.clear();
        status.store = Some(v1::StoreStatus { error: "it is away".to_owned(), ..Default::default() });
        (status.ready, status.not_ready) = (false, vec!["store: it is away".to_owned()]);
    });
    let lines = ["broker-1 is not ready: store: it is away", "the store does not answer: it is away"];
    assert_eq!(found, lines);
}

#[test]
fn i7_an_agent_with_a_clone_needs_attention() {
    let alarm = v1::CloneAlarm { attempts: 3, reason: "a reason".to_owned(), ..v1::CloneAlarm::default() };
    let mut wire = a_status();
    wire.agents = Some(v1::AgentCounts { enrolled: 5, connected: 4, banned: 1, cloned: 22 });
    wire.cloned_agents = vec![v1::ClonedAgent { target: "host:web-1".to_owned(), alarm: Some(alarm) }];
    let attention = StatusJson::from(wire).attention;
    let lines = [
        "the agent of host:web-1 has a clone (a reason): ban it, or enrol it again with a join token",
        "21 more agents have a clone: `postern agents list` shows them",
    ];
    for line in lines {
        assert!(attention.iter().any(|found| found == line), "{attention:?}");
    }
}
