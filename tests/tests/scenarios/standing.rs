//! The state of things, well and unwell, as the agent's own commands and the broker's health report it.

use std::process::Output;

use postern_tests::clock::wait_until;
use postern_tests::{HostWorld, STEP_TIMEOUT, TCP, VM, ask_for, usual_policy};
use serde_json::Value;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

fn doctor(world: &HostWorld) -> (bool, String) {
    let output: Output = world.agent.command(&["doctor"]);
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

fn assert_ill(world: &HostWorld, of: &str, remedy: &str) {
    let (healthy, said) = doctor(world);
    let named = said.lines().any(|line| line.starts_with("error") && line.contains(of));
    assert!(!healthy && named && said.contains(remedy), "{of:?} and {remedy:?} are not in\n{said}");
}

#[test]
fn the_agent_shows_its_target_and_what_is_open() {
    let world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(600));
    let status: Value = serde_json::from_str(&world.agent.must(&["status", "--output", "json"])).unwrap();
    assert_eq!(status["target"], VM);
    assert_eq!(
        (&status["running"]["connected"], &status["running"]["protects"]),
        (&true.into(), &true.into())
    );
    let windows = status["windows"].as_array().unwrap();
    assert_eq!(windows.len(), 2, "one for each family: {status}");
    for window in windows {
        assert_eq!(
            (&window["grant"], &window["port"]),
            (&grant.id.as_str().into(), &format!("tcp/{TCP}").into())
        );
        assert!((590..=600).contains(&window["remaining_seconds"].as_u64().unwrap()), "{window}");
    }
    let for_people = world.agent.must(&["status"]);
    assert!(for_people.contains(&grant.id) && for_people.contains("connected since"), "{for_people}");
}

#[test]
fn the_doctor_finds_nothing_wrong_with_what_works_and_names_what_does_not() {
    let mut world = HostWorld::without_agent(usual_policy());
    assert_ill(&world, "not enrolled", "postern-agent enroll");
    world.enroll_agent();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    let (healthy, said) = doctor(&world);
    assert!(healthy && said.lines().all(|line| line.starts_with("good")), "{said}");

    world.net.unplug(&world.net.hub);
    assert_ill(&world, "the broker", "check the address");
    world.net.plug(&world.net.hub);
    world.agent.process().kill9();
    assert_ill(&world, "the agent does not run", "systemctl start postern-agent");
    world.net.vm.must("nft", &["flush", "ruleset"]);
    assert_ill(&world, "does not hold the table", "postern-agent load");
}

#[test]
fn the_brokers_health_is_that_it_serves() {
    let world = HostWorld::without_agent(usual_policy());
    // It is ready once each of its parts has gone round, a moment after it listens.
    wait_until("the broker to serve", STEP_TIMEOUT, || {
        let health = world.alice.run(|channel| async move {
            HealthClient::new(channel).check(HealthCheckRequest::default()).await
        });
        health.unwrap().into_inner().status() == ServingStatus::Serving
    });
}
