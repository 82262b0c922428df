use postern_proto::v1;

use super::*;
use crate::output::json::status_tests::{a_status, a_stuck_close, the_tasks};

fn shown(wire: v1::GetStatusResponse) -> Vec<String> {
    let text = status(&wire.into(), "2025-06-01T12:00:12Z".parse().unwrap());
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn a_status_shows_its_facts_every_broker_and_that_all_is_well() {
    let expected = [
        "answered by broker-1, ready",
        "store redis, 7 audit records",
        "audit head 5f0c",
        "agents 5 enrolled, 4 connected, 1 banned",
        "grants 1 opening, 2 active, 1 closing",
        "longest wait 01jx0000000000000000000000 opening for 2s",
        "authority intermediate until 2026-06-01 12:00:00Z, root until 2035-05-30 12:00:00Z, root key at hand",
        "",
        "REPLICA STATE AGENTS TARGETS FAILING CLOUDS CLOCK VERSION STARTED",
        "broker-1 ready 2 3 0 -12 ms 0.1.0 2025-06-01 12:00:00Z (12s ago)",
        "broker-2 ready 2 3 0 -12 ms 0.1.0 2025-06-01 12:00:00Z (12s ago)",
        "",
        "nothing needs attention",
    ];
    assert_eq!(shown(a_status()), expected);
}

#[test]
fn each_task_has_a_line_with_its_last_round_and_one_that_is_overdue_is_named() {
    let mut wire = v1::GetStatusResponse { tasks: the_tasks(), ..a_status() };
    wire.tasks[0].overdue = true;
    let expected = [
        "TASK LAST ROUND RESULT",
        "reconciler 12s ago (overdue) ok",
        "sweep 1m 30s ago cannot read 1/eu-west-3: no route",
        "audit outbox - -",
        "",
        "needs attention:",
        "the task \"reconciler\" of broker-1 is overdue: its last round was 12s ago",
    ];
    assert_eq!(shown(wire)[12..], expected);
}

#[test]
fn a_stuck_close_has_a_line_for_each_layer_that_has_not_confirmed() {
    let mut close = a_stuck_close();
    close.layers.push(v1::UnconfirmedLayer {
        target: "aws:1".to_owned(),
        layer: v1::Layer::Cloud.into(),
        detail: "it is\naway".to_owned(),
    });
    let recorded_late = v1::StuckClose { layers: vec![], ..a_stuck_close() };
    let closes = vec![close, recorded_late];
    let wire = v1::GetStatusResponse { stuck_closes: closes, stuck_closes_total: 25, ..a_status() };
    let expected = [
        "STUCK CLOSE FOR TARGET LAYER DETAIL",
        "01jx0000000000000000000000 1m 35s host:web-1 host its agent is not connected",
        "01jx0000000000000000000000 1m 35s aws:1 cloud it is\\naway",
        "01jx0000000000000000000000 1m 35s host:web-1 - every layer has confirmed; the broker has not recorded it yet",
        "",
        "23 newer stuck closes are not shown",
        "",
        "needs attention:",
        "25 grants have not closed in time",
    ];
    assert_eq!(shown(wire)[12..], expected);
}

#[test]
fn a_store_that_does_not_answer_leaves_what_is_not_known_out() {
    let store = v1::StoreStatus {
        kind: v1::StoreKind::Redis.into(),
        error: "it is away".to_owned(),
        ..Default::default()
    };
    let wire = v1::GetStatusResponse {
        replica: "broker-1".to_owned(),
        not_ready: vec!["store: it is away".to_owned()],
        store: Some(store),
        ..Default::default()
    };
    let expected = [
        "answered by broker-1, not ready (store: it is away)",
        "store redis, does not answer: it is away",
        "audit head -",
        "agents -",
        "grants -",
        "longest wait -",
        "authority -",
        "",
        "needs attention:",
        "broker-1 is not ready: store: it is away",
        "the store does not answer: it is away",
    ];
    assert_eq!(shown(wire), expected);
}

#[test]
fn text_from_elsewhere_neither_steers_the_terminal_nor_makes_up_lines() {
    let mut hostile = a_status();
    hostile.replicas[1].not_ready = vec!["store: \u{1b}[2J\nnothing needs attention".to_owned()];
    let shown = shown(hostile);
    assert!(
        !shown.iter().any(|line| line.contains('\u{1b}') || line == "nothing needs attention"),
        "{shown:?}"
    );
}
