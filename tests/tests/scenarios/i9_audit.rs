//! I9: every decision and every state change is in the audit log, and a changed log is found out, with the place.

use std::fs;
use std::path::PathBuf;

use postern_proto::v1::{CloseReason, GrantState};
use postern_tests::{HostWorld, Outcome, ask_for, usual_policy};

/// A world whose log has a few records.
fn with_a_log() -> HostWorld {
    let world = HostWorld::without_agent(usual_policy());
    for port in 1000..1010 {
        world.alice.request(&ask_for(&world.net.alice).port(&format!("tcp/{port}"))).unwrap_err();
    }
    assert!(world.admin.verify_audit().sound);
    world
}

#[test]
fn i9_every_decision_and_every_state_change_of_a_grant_has_its_record() {
    let world = HostWorld::new();
    let first = world.alice.open(&ask_for(&world.net.alice).seconds(2));
    let closed = world.alice.wait_for_state(&first.id, GrantState::Closed);
    assert_eq!(closed.close_reason(), CloseReason::Expired);
    let second = world.alice.open(&ask_for(&world.net.alice).seconds(60));
    world.alice.revoke(&second.id).unwrap();

    let log = world.admin.audit();
    let of = |id: &str| {
        log.iter().filter(|line| line.contains(&format!("\"grant\":\"{id}\""))).collect::<Vec<_>>()
    };
    assert_eq!(of(&first.id).len(), 4, "requested, active, closing, closed: {:#?}", of(&first.id));
    assert_eq!(of(&second.id).len(), 4, "requested, active, revoked, closed: {:#?}", of(&second.id));
    let has = |action: &str| log.iter().any(|line| line.contains(&format!("\"action\":\"{action}\"")));
    for action in ["policy.put", "agent.invited", "agent.enrolled", "grant.requested", "grant.revoked"] {
        assert!(has(action), "{action} is missing: {log:#?}");
    }
    assert_eq!(postern_core::audit::verify(log.iter().map(String::as_str)).unwrap().seq, log.len() as u64);
}

/// Exports the log, changes the copy, and verifies it with the command, which needs no broker for that.
fn verify_changed_copy(change: impl FnOnce(&mut Vec<String>)) -> (Outcome, usize) {
    let world = with_a_log();
    let mut lines = world.admin.audit();
    let length = lines.len();
    change(&mut lines);
    let copy: PathBuf = world.dir().join("audit.jsonl");
    fs::write(&copy, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let outcome = world.admin.cli().run(&["audit", "verify", "--file", &copy.to_string_lossy()]);
    (outcome, length)
}

fn assert_names_line(outcome: &Outcome, line: usize) {
    assert_eq!(outcome.code, 1, "{}{}", outcome.out, outcome.err);
    assert!(outcome.err.contains(&format!("line {line}:")), "{}", outcome.err);
}

#[test]
fn i9_an_exported_log_verifies_without_the_broker() {
    let (outcome, length) = verify_changed_copy(|_| {});
    assert_eq!(outcome.code, 0, "{}", outcome.err);
    assert!(outcome.out.contains(&length.to_string()), "{}", outcome.out);
}

#[test]
fn i9_a_flipped_byte_in_an_exported_log_is_named() {
    let mut line = 0;
    let (outcome, _) = verify_changed_copy(|lines| {
        let at = lines.iter().position(|line| line.contains("tcp/1001")).unwrap();
        lines[at] = lines[at].replacen("tcp/1001", "tcp/1003", 1);
        line = at + 1;
    });
    assert_names_line(&outcome, line);
}

#[test]
fn i9_a_removed_line_in_an_exported_log_is_named() {
    let (outcome, _) = verify_changed_copy(|lines| drop(lines.remove(6)));
    assert_names_line(&outcome, 7);
}

#[test]
fn i9_two_swapped_lines_in_an_exported_log_are_named() {
    let (outcome, _) = verify_changed_copy(|lines| lines.swap(2, 5));
    assert_names_line(&outcome, 3);
}

#[test]
fn i9_what_was_done_to_the_log_in_the_brokers_own_store_is_named_and_stops_nothing() {
    let mut world = with_a_log();
    let flip = "UPDATE audit SET line = replace(line, 'tcp/1001', 'tcp/1003') WHERE line LIKE '%tcp/1001%'";
    let line = 1 + world.admin.audit().iter().position(|line| line.contains("tcp/1001")).unwrap();
    world.broker.process().terminate();
    let store = rusqlite::Connection::open(world.broker.database()).unwrap();
    assert_eq!(store.execute(flip, []).unwrap(), 1);
    store.close().unwrap();
    world.broker.serve();
    assert_names_line(&world.admin.cli().run(&["audit", "verify"]), line);
    // Every verification finds it; the broker goes on deciding, and writing down what it decides.
    let before = world.admin.audited("grant.requested").len();
    world.alice.request(&ask_for(&world.net.alice).port("tcp/1010")).unwrap_err();
    assert_eq!(world.admin.audited("grant.requested").len(), before + 1);
}

#[test]
fn i9_a_cut_end_shows_against_a_head_that_was_kept() {
    let world = with_a_log();
    let head = world.admin.verify_audit().head;
    let mut lines = world.admin.audit();
    lines.pop();
    let copy = world.dir().join("audit.jsonl");
    fs::write(&copy, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let verify = |more: &[&str]| {
        world.admin.cli().run(&[&["audit", "verify", "--file", &copy.to_string_lossy()], more].concat())
    };
    assert_eq!(verify(&[]).code, 0, "a shorter log is sound by itself");
    let outcome = verify(&["--expect-head", &head]);
    assert!(outcome.code == 1 && outcome.err.contains(&head), "{}", outcome.err);
}
