//! `postern status`: any of the replicas reports all of them.

use std::time::Duration;

use postern_proto::v1::GrantState;
use postern_tests::clock::{monotonic, wait_until};
use postern_tests::{Cli, STEP_TIMEOUT, a_request};
use serde_json::Value;

use crate::scenarios::{LED, SOURCE, at, led_by_hand};
use crate::world::{Options, ReplicaWorld};

/// The time for which a replica that was killed may still be shown, on a machine that is busy: its membership lasts 6 s.
const GONE: Duration = Duration::from_secs(15);
/// The time after which a close counts as stuck.
const STUCK: Duration = Duration::from_secs(30);
/// The exit code of `--check` where something needs attention.
const ATTENTION: i32 = 9;

fn cli(world: &ReplicaWorld, replica: usize) -> Cli {
    Cli::new(&world.net.alice, world.replicas.replica(replica).url(), world.admin.identity())
}

fn status(world: &ReplicaWorld, replica: usize) -> Value {
    cli(world, replica).json(&["status"]).remove(0)
}

/// The names of the replicas that are shown, and how many agents they have in all.
fn shown(status: &Value) -> (Vec<&str>, u64) {
    let replicas = status["replicas"].as_array().unwrap();
    let agents = replicas.iter().map(|replica| replica["agents"].as_u64().unwrap()).sum();
    (replicas.iter().map(|replica| replica["name"].as_str().unwrap()).collect(), agents)
}

#[test]
fn either_replica_shows_both_and_one_that_was_killed_is_gone_from_the_list() {
    let world = ReplicaWorld::new(&Options { brokers: 2, hosts: 6, instances: 0, agents_at: None });
    for (replica, name) in [(0, "broker-1"), (1, "broker-2")] {
        wait_until("every agent to be counted", STEP_TIMEOUT, || shown(&status(&world, replica)).1 == 6);
        let seen = status(&world, replica);
        assert_eq!(shown(&seen).0, ["broker-1", "broker-2"]);
        assert_eq!((&seen["replica"], &seen["ready"]), (&name.into(), &true.into()));
        assert_eq!(seen["replicas"][replica]["answers"], true);
        assert_eq!(seen["store"]["kind"], "redis");
        assert_eq!(seen["agents"]["enrolled"], 6);
        let checked = cli(&world, replica).run(&["status", "--check"]);
        assert!(checked.succeeded() && checked.out.ends_with("nothing needs attention\n"), "{checked:?}");
    }
    world.replicas.replica(0).kill9();
    wait_until("it to be gone", GONE, || shown(&status(&world, 1)).0 == ["broker-2"]);
    wait_until("its agents to have moved", STEP_TIMEOUT, || shown(&status(&world, 1)).1 == 6);
    let checked = cli(&world, 1).run(&["status", "--check"]);
    assert!(checked.succeeded(), "{checked:?}");
}

#[test]
fn a_close_that_an_absent_agent_does_not_confirm_is_stuck_with_the_reason() {
    let world = ReplicaWorld::new(&Options { brokers: 2, hosts: 0, instances: 0, agents_at: None });
    let session = led_by_hand(&world, 0).session().unwrap();
    session.applied(session.desired().generation);
    let ask = a_request().on(LED).port("tcp/22").from(SOURCE).seconds(600);
    let answer = at(&world, 0).start_request(&ask.waiting(STEP_TIMEOUT));
    session.applied(session.desired().generation);
    let grant = answer.join().unwrap().grant.unwrap();
    drop(session);
    let start = monotonic();
    assert_eq!(at(&world, 1).revoke(&grant.id).unwrap().state(), GrantState::Closing);
    assert_eq!(status(&world, 1)["stuck_closes_total"], u64::from(start.elapsed() > STUCK));
    std::thread::sleep(STUCK.saturating_sub(start.elapsed()));
    // Both the replica that works on the target and the one that learns of it from there.
    for replica in [0, 1] {
        wait_until("it to be stuck", STEP_TIMEOUT, || status(&world, replica)["stuck_closes_total"] == 1);
        let seen = status(&world, replica);
        let close = &seen["stuck_closes"][0];
        assert_eq!((&close["grant_id"], &close["targets"][0]), (&grant.id.as_str().into(), &LED.into()));
        assert!(close["age"].as_f64().unwrap() > 30.0, "{close}");
        assert_eq!(close["layers"][0]["layer"], "host");
        assert_eq!(close["layers"][0]["detail"], "its agent is not connected");
        assert_eq!(seen["grants"]["closing"], 1);
        assert_eq!(seen["oldest_unconfirmed"]["grant_id"], grant.id.as_str());
        // Half a minute has passed since the start: a task that had hung would be overdue.
        let is_well = |task: &Value| task["overdue"] == false && task["failing"] == false;
        assert!(seen["tasks"].as_array().unwrap().iter().all(is_well), "{}", seen["tasks"]);
        let checked = cli(&world, replica).run(&["status", "--check"]);
        assert_eq!(checked.code, ATTENTION, "{checked:?}");
        assert!(checked.out.contains("1 grant has not closed in time"), "{checked:?}");
    }
}
