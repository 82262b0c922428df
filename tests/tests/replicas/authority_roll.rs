//! A new root on two brokers of one store, which take each step one after the other: the steps of docs/operations.md.

use std::fs;
use std::path::PathBuf;

use postern_pki::Credentials;
use postern_tests::clock::wait_until;
use postern_tests::redis::Redis;
use postern_tests::{Agent, Client, Net, Replica, ReplicaOptions, Replicas, STEP_TIMEOUT, a_policy};
use tempfile::TempDir;

/// The time for a step that waits for a broker's next look at its authority, for a heartbeat, and for the spread of the agents.
const STEP: std::time::Duration = STEP_TIMEOUT.saturating_mul(4);

fn ca(replica: &Replica) -> PathBuf {
    replica.broker().data_dir().join("ca")
}

/// Runs `postern-broker authority roll` with these arguments, and returns whether it succeeded and its text.
fn roll(replica: &Replica, arguments: &[&str]) -> (bool, String) {
    let output = replica.broker().command(&[&["authority", "roll"], arguments].concat());
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// Runs it until it succeeds: it needs a report that the broker has written since the last step.
fn until_it_succeeds(replica: &Replica, step: &str) {
    wait_until(&format!("roll {step}"), STEP, || roll(replica, &[step]).0);
}

fn wait_for_status(replica: &Replica, words: &str) {
    wait_until(words, STEP, || roll(replica, &["status"]).1.contains(words));
}

/// Copies a file of the authority as an operator does who renames it into its place.
fn copy(from: &Replica, to: &Replica, name: &str) {
    let (source, place) = (ca(from).join(name), ca(to).join(name));
    fs::copy(&source, place.with_extension("new")).unwrap();
    fs::rename(place.with_extension("new"), place).unwrap();
}

fn roots(agent: &Agent) -> usize {
    Credentials::load(&agent.state_dir().join("identity")).unwrap().roots().len()
}

#[test]
fn the_root_is_replaced_on_one_broker_after_the_other_and_no_agent_is_enrolled_again() {
    let (dir, net) = (TempDir::with_prefix("postern-").unwrap(), Net::new());
    let redis = Redis::start(&net.hub);
    let options = ReplicaOptions { count: 2, named: true, checked: false, sections: "" };
    let replicas = Replicas::init(&net.hub, dir.path(), &redis, options);
    replicas.serve();
    let (first, second) = (replicas.replica(0), replicas.replica(1));
    let admin = replicas.admin(&net.hub);
    admin.put_policy(a_policy().named("hosts").on("host:*").port("tcp/22").wire()).unwrap();
    let agent_at =
        |host, replica: &Replica, name: &str| Agent::new(host, replica.url(), &dir.path().join(name), &[]);
    let mut one = agent_at(&net.vm, first, "one");
    one.join("host:vm-1", &admin);
    let mut other = agent_at(&net.mallory, second, "other");
    other.join("host:vm-2", &admin);

    let root_key = ca(first).join("root.key");
    let (begun, text) = roll(first, &["begin", "--root-key", &root_key.to_string_lossy()]);
    assert!(begun, "{text}");
    // The agent at the broker that has not begun is waited for.
    wait_for_status(first, "agents that have not confirmed the next root: host:vm-2\n");
    let (switched, text) = roll(first, &["switch"]);
    assert!(!switched && text.contains("host:vm-2"), "{text}");
    assert_eq!([roots(&one), roots(&other)], [2, 1]);
    // The root's key is at hand on both.
    copy(first, second, "next-root.key");
    copy(first, second, "roll.pem");
    for replica in [first, second] {
        wait_for_status(replica, "every agent trusts the next root");
    }
    assert_eq!(roots(&other), 2);

    until_it_succeeds(first, "switch");
    for target in ["host:vm-1", "host:vm-2"] {
        admin.wait_in_sync(target);
    }
    until_it_succeeds(second, "switch");
    for replica in [first, second] {
        wait_for_status(replica, "every agent has a certificate of the new intermediate");
    }
    let (finished, text) = roll(first, &["finish"]);
    assert!(!finished && text.contains("admin"), "{text}");
    let identity = dir.path().join("admin-again");
    let issue = ["issue", "admin", "--role", "administrator", "--out", &identity.to_string_lossy()];
    first.broker().must(&issue);
    let admin_at = |replica: &Replica| Client::new(&net.hub, replica.url(), &identity);

    until_it_succeeds(first, "finish");
    wait_until("the first broker to drop the old root", STEP, || {
        admin_at(first).audited("authority.roll_finished").len() == 1
    });
    // An agent that comes with a token of the broker that has finished, to the one that has not.
    let mut new = agent_at(&net.alice, second, "new");
    new.enroll(&admin_at(first).join_token("host:vm-3", None).unwrap());
    assert_eq!(roots(&new), 1, "it trusts the next root alone");
    new.run();
    admin_at(second).wait_in_sync("host:vm-3");

    until_it_succeeds(second, "finish");
    wait_until("the second broker to drop the old root", STEP, || {
        admin_at(second).audited("authority.roll_finished").len() == 2
    });
    for (agent, target, replica) in
        [(&mut one, "host:vm-1", first), (&mut other, "host:vm-2", second), (&mut new, "host:vm-3", second)]
    {
        assert!(!agent.log().contains("cannot renew"), "{}", agent.log());
        agent.restart();
        admin_at(replica).wait_in_sync(target);
    }
    for step in ["roll_begun", "roll_switched", "roll_finished"] {
        assert_eq!(
            admin_at(first).audited(&format!("authority.{step}")).len(),
            2,
            "{step}: once for each broker"
        );
    }
    assert_eq!(admin_at(first).audited("agent.enrolled").len(), 3);
    for replica in [first, second] {
        assert!(!ca(replica).join("roll.pem").exists() && is_root_key_at_hand(replica));
    }
}

/// Reports whether the broker can renew its intermediates by itself after the end.
fn is_root_key_at_hand(replica: &Replica) -> bool {
    let output = replica.broker().command(&["authority", "status"]);
    String::from_utf8_lossy(&output.stdout).contains("root key: at hand")
}
