//! I9: an attacker who writes the store, with correct hashes, is noticed by the broker, by the agents and by the command.

use std::fs;

use postern_core::audit::{AuditEvent, AuditRecord, Head};
use postern_tests::clock::wait_until;
use postern_tests::redis::Redis;
use postern_tests::{Broker, HostWorld, Net, STEP_TIMEOUT, ask_for, usual_policy};
use rusqlite::Connection;
use serde_json::Value;

/// A broker that signs a checkpoint each second.
const EACH_SECOND: &str = "[audit]\ncheckpoint_every = \"1s\"\n";

/// Waits until the newest checkpoint of the broker covers the log.
pub(crate) fn wait_for_checkpoint(world: &HostWorld) {
    wait_until("a checkpoint of the whole log", STEP_TIMEOUT, || {
        let verified = world.admin.verify_audit();
        verified.uncovered == 0 && !verified.checkpoint.is_empty()
    });
}

/// Returns the log as an attacker writes it: with another name in one record, and correct hashes from there on.
fn forged(lines: &[String], change: impl Fn(&AuditEvent) -> Option<AuditEvent>) -> Vec<String> {
    let mut head = Head::EMPTY;
    let event = |line: &String| serde_json::from_str::<AuditRecord>(line).unwrap().event;
    let events = lines.iter().map(event).map(|event| change(&event).unwrap_or(event));
    let records = events.map(|event| {
        let record = AuditRecord::following(&head, event);
        head = record.head();
        record.to_line()
    });
    records.collect()
}

/// Has mallory do what alice did.
fn by_mallory(event: &AuditEvent) -> Option<AuditEvent> {
    let is_hers = event.actor == "requester/alice";
    is_hers.then(|| AuditEvent { actor: "requester/mallory".into(), ..event.clone() })
}

/// Writes a log into the broker's own database. The broker does not run.
fn write_store(broker: &Broker, lines: &[String]) {
    let mut store = Connection::open(broker.database()).unwrap();
    let transaction = store.transaction().unwrap();
    transaction.execute("DELETE FROM audit", []).unwrap();
    for (seq, line) in (1_i64..).zip(lines) {
        transaction.execute("INSERT INTO audit (seq, line) VALUES (?1, ?2)", (seq, line)).unwrap();
    }
    transaction.commit().unwrap();
    store.close().unwrap();
}

/// A world with an agent, a log that a checkpoint covers, and a person who has verified it.
fn with_a_log() -> HostWorld {
    let world = HostWorld::configured(EACH_SECOND);
    for port in 1000..1003 {
        world.alice.request(&ask_for(&world.net.alice).port(&format!("tcp/{port}"))).unwrap_err();
    }
    wait_for_checkpoint(&world);
    let verified = world.admin.cli().run(&["audit", "verify"]);
    assert!(verified.code == 0 && verified.out.contains("trusted"), "{verified:?}");
    world
}

/// Waits until the agent keeps the newest checkpoint, which it receives at the beginning of a session.
pub(crate) fn agent_keeps_the_newest(world: &mut HostWorld) {
    let newest: Value = serde_json::from_str(&world.admin.verify_audit().checkpoint).unwrap();
    world.agent.restart();
    let keeps_it = || kept_by_agent(world)["seq"].as_u64() >= newest["seq"].as_u64();
    wait_until("the agent's checkpoint", STEP_TIMEOUT, keeps_it);
}

fn kept_by_agent(world: &HostWorld) -> Value {
    let status: Value = serde_json::from_str(&world.agent.must(&["status", "--output", "json"])).unwrap();
    status["audit_checkpoint"].clone()
}

/// Leaves out the records that carry a checkpoint, as an attacker would.
fn without_checkpoints(lines: &[String]) -> Vec<String> {
    let is_checkpoint = |line: &&String| line.contains("\"action\":\"audit.checkpoint\"");
    lines.iter().filter(|line| !is_checkpoint(line)).cloned().collect()
}

/// The alarm of a broker on a log that contradicts its checkpoint; it goes on deciding, opening and closing.
fn assert_alarm(world: &HostWorld, action: &str) {
    wait_until("the alarm", STEP_TIMEOUT, || !world.admin.audited(action).is_empty());
    assert_eq!(world.admin.audited(action).len(), 1, "audited once");
    assert!(world.broker.log().contains(&format!("event=\"{action}\"")), "{}", world.broker.log());
    let status = world.admin.cli().run(&["status", "--check"]);
    assert!(status.code == 9 && status.out.contains("the audit log cannot be trusted"), "{status:?}");
    assert_eq!(world.admin.cli().run(&["audit", "verify"]).code, 1);
    let output = world.broker.command(&["audit", "status", "--check"]);
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    let grant = world.alice.open(&ask_for(&world.net.alice));
    world.alice.revoke(&grant.id).unwrap();
}

/// Accepts the present end of the log on the broker's machine.
fn accept(world: &HostWorld) {
    let head: AuditRecord = serde_json::from_str(world.admin.audit().last().unwrap()).unwrap();
    let (seq, hash) = (head.seq.to_string(), head.hash.to_string());
    world.broker.must(&["audit", "accept-head", "--seq", &seq, "--hash", &hash, "--reason", "restored"]);
    wait_until("the acceptance", STEP_TIMEOUT, || world.admin.audited("audit.head_accepted").len() == 1);
    wait_for_checkpoint(world);
    let verified = world.admin.cli().run(&["audit", "verify"]);
    assert!(verified.code == 0 && verified.out.contains("by an operator"), "{verified:?}");
}

#[test]
fn i9_a_broker_that_restarts_on_a_rewritten_database_says_so_until_an_operator_accepts_it() {
    let mut world = with_a_log();
    world.broker.process().terminate();
    let store = Connection::open(world.broker.database()).unwrap();
    let mut statement = store.prepare("SELECT line FROM audit ORDER BY seq").unwrap();
    let lines: Vec<String> =
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    drop(statement);
    store.close().unwrap();
    write_store(&world.broker, &forged(&lines, by_mallory));
    world.broker.serve();
    assert_alarm(&world, "audit.rewritten");
    accept(&world);
}

#[test]
fn i9_a_broker_that_restarts_on_a_cut_database_says_so() {
    let mut world = with_a_log();
    let lines = world.admin.audit();
    world.broker.process().terminate();
    write_store(&world.broker, &lines[..lines.len() - 4]);
    world.broker.serve();
    assert_alarm(&world, "audit.went_back");
}

#[test]
fn i9_a_broker_that_runs_notices_that_its_database_was_rewritten() {
    let world = with_a_log();
    let lines = world.admin.audit();
    let flip = "UPDATE audit SET line = ?2 WHERE seq = ?1";
    let store = Connection::open(world.broker.database()).unwrap();
    for (seq, line) in (1_i64..).zip(forged(&lines, by_mallory)) {
        store.execute(flip, (seq, line)).unwrap();
    }
    store.close().unwrap();
    assert_alarm(&world, "audit.rewritten");
    // The broker chained on from the head that it remembers, so the records from before do not follow from each other.
    accept(&world);
    let verified = world.admin.cli().run(&["audit", "verify", "--full"]);
    assert!(verified.code == 0 && verified.out.contains("not verified"), "{verified:?}");
}

#[test]
fn i9_an_old_record_that_was_changed_is_an_alarm_once_the_whole_log_is_verified() {
    let mut world = with_a_log();
    let store = Connection::open(world.broker.database()).unwrap();
    let change = "UPDATE audit SET line = replace(line, 'requester/alice', 'requester/mallory')";
    assert!(store.execute(&format!("{change} WHERE seq < 8"), []).unwrap() > 0);
    store.close().unwrap();
    assert_eq!(world.admin.cli().run(&["audit", "verify", "--full"]).code, 1);
    assert_alarm(&world, "audit.broken");
    world.broker.restart();
    let is_shown = || world.admin.cli().run(&["status", "--check"]).out.contains("cannot be trusted");
    wait_until("the alarm after a restart", STEP_TIMEOUT, is_shown);
    assert_eq!(world.admin.audited("audit.broken").len(), 1, "audited once");
    accept(&world);
}

#[test]
fn i9_without_its_file_a_broker_learns_from_its_agent_that_the_log_was_rewritten() {
    let mut world = with_a_log();
    agent_keeps_the_newest(&mut world);
    let honest = world.admin.audit();
    let mut lines = forged(&without_checkpoints(&honest), by_mallory);
    // Longer than before, so that no number shows it.
    while lines.len() < honest.len() + 5 {
        let last: AuditRecord = serde_json::from_str(lines.last().unwrap()).unwrap();
        lines.push(AuditRecord::following(&last.head(), last.event.clone()).to_line());
    }
    world.broker.process().terminate();
    write_store(&world.broker, &lines);
    fs::remove_file(world.broker.data_dir().join("audit-checkpoint")).unwrap();
    world.broker.serve();
    assert_alarm(&world, "audit.rewritten");
    // A person who verified the log before notices without any broker's alarm.
    let verified = world.admin.cli().run(&["audit", "verify"]);
    assert!(verified.code == 1 && verified.err.contains("line"), "{verified:?}");
}

#[test]
fn i9_the_checkpoint_of_an_agent_shows_a_rewritten_copy() {
    let mut world = with_a_log();
    agent_keeps_the_newest(&mut world);
    assert!(world.agent.must(&["doctor"]).contains("keeps a checkpoint of the audit log"));
    let checkpoint = world.dir().join("checkpoint.json");
    fs::write(&checkpoint, kept_by_agent(&world).to_string()).unwrap();
    let (copy, root) = (world.dir().join("copy.jsonl"), world.broker.data_dir().join("ca/root.pem"));
    let verify = |lines: &[String]| {
        fs::write(&copy, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        let (copy, root) = (copy.to_string_lossy(), root.to_string_lossy());
        let args = ["--file", &copy, "--root", &root, "--checkpoint", &checkpoint.to_string_lossy()];
        world.admin.cli().run(&[&["audit", "verify"][..], &args].concat())
    };
    let lines = world.admin.audit();
    assert_eq!(verify(&lines).code, 0);
    let outcome = verify(&forged(&without_checkpoints(&lines), by_mallory));
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.err.contains("rewritten") || outcome.err.contains("cut off"), "{outcome:?}");
}

#[test]
fn i9_honest_restarts_and_a_renewal_of_the_intermediate_raise_nothing() {
    let mut world = with_a_log();
    let before = world.admin.verify_audit().checkpoint;
    world.broker.restart();
    let key = world.broker.data_dir().join("ca/root.key");
    world.broker.must(&["authority", "renew", "--root-key", &key.to_string_lossy()]);
    wait_until("the renewal to be audited", STEP_TIMEOUT, || {
        !world.admin.audited("authority.renewed").is_empty()
    });
    world.agent.restart();
    world.broker.restart();
    wait_for_checkpoint(&world);
    assert_ne!(world.admin.verify_audit().checkpoint, before);
    let verified = world.admin.cli().run(&["audit", "verify", "--full"]);
    assert_eq!(verified.code, 0, "{verified:?}");
    for action in ["audit.rewritten", "audit.went_back", "audit.broken", "agent.audit_contradicted"] {
        assert!(world.admin.audited(action).is_empty(), "{action}");
    }
    assert!(!world.broker.must(&["audit", "status"]).contains("alarm"));
}

#[test]
fn i9_a_redis_that_was_rewritten_is_noticed_by_a_broker_that_runs_and_at_its_next_start() {
    let net = Net::new();
    let redis = Redis::start(&net.hub);
    let sections = redis.configuration() + EACH_SECOND;
    let mut world = HostWorld::without_agent_configured(usual_policy(), &sections);
    for port in 1000..1003 {
        world.alice.request(&ask_for(&world.net.alice).port(&format!("tcp/{port}"))).unwrap_err();
    }
    wait_for_checkpoint(&world);
    let lines = world.admin.audit();
    for (index, line) in forged(&lines, by_mallory).iter().enumerate() {
        redis.command(&["LSET", "{postern:postern}:audit", &index.to_string(), line]);
    }
    wait_until("the alarm", STEP_TIMEOUT, || {
        // The store's own guard may end this broker first, as a record that it knows is gone.
        if !world.broker.is_running() {
            world.broker.serve();
        }
        world.broker.must(&["audit", "status"]).contains("alarm")
    });
}
