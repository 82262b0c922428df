//! The states of Azure's writes: what is under way, what failed, and readings that are older than a change.

use std::time::Duration;

use postern_azure_sim::{Fault, OperationLinks, operation_failed};
use postern_provider::{Health, Provider as _};
use postern_testkit::clock::until;
use serde_json::json;

use crate::world::DoubleWorld;

const ALICE: &str = "203.0.113.7";
const OUTSIDE: &str = "203.0.113.99";
const NSG: &str = "Microsoft.Network/networkSecurityGroups";

impl DoubleWorld {
    async fn health(&self, number: usize) -> (bool, Health) {
        let report = self.azure.assess(&["tcp/22".parse().unwrap()].into()).await;
        let of = |one: &&postern_provider::Assessment| one.target == self.target(number);
        let one = report.assessments.iter().find(of).unwrap();
        (one.locked, one.health.clone())
    }
}

#[tokio::test]
async fn i1_a_deny_that_azure_has_not_finished_shuts_nothing() {
    for state in ["Failed", "Updating"] {
        let world = DoubleWorld::new().await;
        world.lock(1).await;
        assert_eq!(world.observe(1).await.drift, []);
        world.sim.set_state(&world.lab.nsg_id("nsg-subnet"), "postern-deny-", state);
        world.sim.set_state(&world.lab.nsg_id("nsg-subnet"), "nothing", "Succeeded");
        let (locked, health) = world.health(1).await;
        assert!(!locked && matches!(health, Health::Unhealthy { .. }), "{state}: {health:?}");
        let drift = world.observe(1).await.drift;
        assert!(
            drift.iter().any(|it| it.repairable && it.what.contains("does not shut tcp/22")),
            "{drift:?}"
        );
        let sweep = world.azure.sweep().await;
        let held = sweep.sightings.iter().find(|it| it.target == world.target(1)).unwrap().held.as_ref();
        assert!(held.unwrap().drift.iter().any(|it| it.repairable), "{state}");
        // The command writes it again, and so does a repair.
        if state == "Failed" {
            assert!(!world.lock(1).await.changes.is_empty(), "it is not locked down already");
        } else {
            world.azure.repair(&world.target(1)).await.unwrap();
        }
        assert!(!world.admits(OUTSIDE, 1, 22));
        assert_eq!(world.observe(1).await.drift, []);
        assert!(world.health(1).await.0);
    }
}

#[tokio::test]
async fn i1_a_lockdown_whose_write_fails_is_not_done_and_goes_on() {
    let world = DoubleWorld::new().await;
    world.sim.fail("PUT", "/securityRules/postern-deny", 1, operation_failed("InternalServerError"));
    let failed = world.azure.lockdown(&world.order(1, crate::world::posterns_first())).await;
    assert!(failed.is_err(), "{failed:?}");
    assert!(world.admits(OUTSIDE, 1, 22));
    assert!(!world.lock(1).await.changes.is_empty(), "the rule is there, and not in force");
    assert!(!world.admits(OUTSIDE, 1, 22));
}

#[tokio::test]
async fn a_write_of_a_whole_group_that_is_under_way_is_no_drift() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    let window = world.window(1, 1, "tcp/22", ALICE);
    world.open(&window).await;
    world.sim.set_state(&world.lab.nsg_id("nsg-subnet"), "", "Updating");
    let sweep = world.azure.sweep().await;
    let held = sweep.sightings.iter().find(|it| it.target == world.target(1)).unwrap().held.as_ref();
    assert_eq!(held.unwrap().drift, []);
    let observed = world.observe(1).await;
    assert_eq!((observed.drift, observed.windows), (vec![], [window].into()));
    assert!(!world.health(1).await.0, "and it proves nothing");
}

#[tokio::test]
async fn i5_a_grant_is_open_and_closed_when_azure_is_done_however_it_says_so() {
    for links in [OperationLinks::AsyncOperation, OperationLinks::Location, OperationLinks::None] {
        let world = DoubleWorld::new().await;
        world.lock(0).await;
        world.sim.settle(NSG, Duration::from_millis(700));
        world.sim.link_operations(links, 0);
        let window = world.window(0, 1, "tcp/22", ALICE);
        world.open(&window).await;
        assert!(world.admits(ALICE, 0, 22), "{links:?}: it is said to be open");
        world.close(&window).await;
        assert!(!world.admits(ALICE, 0, 22), "{links:?}: it is said to be closed");
        world.sim.fail("PUT", "/securityRules/postern-allow", 1, operation_failed("InternalServerError"));
        let failed = world.azure.open(&window.target, &[window.clone()].into()).await;
        assert!(failed.is_err(), "{links:?}: the operation failed");
    }
}

#[tokio::test]
async fn a_lockdown_that_moves_a_rule_waits_for_its_location_too() {
    for links in [OperationLinks::Location, OperationLinks::None] {
        let world = DoubleWorld::new().await;
        world.sim.edit(&world.lab.nsg_id("nsg-subnet"), |nsg| {
            nsg["properties"]["securityRules"][0]["properties"]["priority"] = json!(100);
        });
        world.sim.settle(NSG, Duration::from_millis(300));
        world.sim.link_operations(links, 0);
        world.lock(1).await;
        assert!(!world.admits(OUTSIDE, 1, 22), "{links:?}");
    }
}

#[tokio::test]
async fn an_operation_is_polled_no_sooner_than_azure_asks() {
    for links in [OperationLinks::AsyncOperation, OperationLinks::Location] {
        let world = DoubleWorld::new().await;
        world.lock(1).await;
        world.sim.settle(NSG, Duration::from_millis(1200));
        world.sim.link_operations(links, 1);
        world.sim.forget_calls();
        world.open(&world.window(1, 1, "tcp/22", ALICE)).await;
        let polls = world.sim.calls().into_iter().filter(|call| call.is_poll()).count();
        assert!((1..=2).contains(&polls), "{links:?}: {polls} polls of an operation of 1.2 s");
    }
}

#[tokio::test]
async fn i8_a_sweep_that_read_before_a_repair_does_not_count_while_the_repair_is_under_way() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    world.edit_rule("nsg-subnet", "postern-deny-", |rule| rule["access"] = json!("Allow"));
    world.sim.fail("GET", "/networkInterfaces", 1, Fault::Slow(Duration::from_secs(1)));
    world.sim.settle(NSG, Duration::from_secs(4));
    world.sim.forget_calls();
    let sweeping = {
        let azure = world.azure.clone();
        tokio::spawn(async move { azure.sweep().await })
    };
    let is_read = || world.sim.calls().iter().any(|call| call.path.ends_with("/networkSecurityGroups"));
    until("the groups to be read", is_read).await;
    let target = world.target(1);
    let mut repair = std::pin::pin!(world.azure.repair(&target));
    let sweep = tokio::select! {
        done = &mut repair => panic!("the repair takes longer than the sweep: {done:?}"),
        sweep = sweeping => sweep.unwrap(),
    };
    assert!(sweep.sightings.iter().all(|it| it.target != target), "{sweep:?}");
    repair.await.unwrap();
    assert!(!world.admits(OUTSIDE, 1, 22));
}

#[tokio::test]
async fn i8_a_sweep_that_read_before_a_release_does_not_undo_it() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    for _ in 0..2 {
        world.observe(1).await;
        world.sim.forget_calls();
        // The sweep has read the groups, and still waits for the interfaces.
        world.sim.fail("GET", "/networkInterfaces", 1, Fault::Slow(Duration::from_secs(2)));
        let sweeping = {
            let azure = world.azure.clone();
            tokio::spawn(async move { azure.sweep().await })
        };
        let is_read = |part: &str| {
            let calls = world.sim.calls();
            calls.iter().any(|call| call.method == "GET" && call.path.ends_with(part))
        };
        until("the groups to be read", || is_read("/networkSecurityGroups")).await;
        world.azure.release(&world.target(1)).await.unwrap();
        let sweep = sweeping.await.unwrap();
        assert!(sweep.sightings.iter().all(|it| it.target != world.target(1)), "{sweep:?}");
        let next = world.azure.sweep().await;
        let seen = next.sightings.iter().find(|it| it.target == world.target(1));
        assert!(seen.is_none(), "the broker would lock it again: {seen:?}");
        assert_eq!(world.managed_rules("nsg-subnet"), [] as [&str; 0]);
        world.lock(1).await;
    }
}
