//! The broker is killed between every two changes of Azure.

use std::time::Duration;

use postern_azure_sim::{CrashPoint, When};
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_proto::v1::{GrantState, Layers, RevokeAccessRequest};
use postern_tests::azure::{AzureOptions, AzureWorld};
use postern_tests::clock::wait_until;
use postern_tests::{STEP_TIMEOUT, a_request};

fn is_shut(world: &AzureWorld) -> bool {
    ["nsg-subnet", "nsg-nic"].iter().all(|group| world.rules(group, "postern-allow-").is_empty())
}

fn close_all(world: &AzureWorld) {
    for grant in world.alice.grants() {
        if grant.state() != GrantState::Closed {
            world.alice.revoke(&grant.id).unwrap();
        }
    }
    wait_until("every window to close", STEP_TIMEOUT, || is_shut(world));
}

/// Kills the broker at every point between two changes of `act`, and starts it again.
fn killed_everywhere(
    world: &mut AzureWorld,
    prepare: impl Fn(&AzureWorld) -> Vec<String>,
    act: impl Fn(&AzureWorld, &[String]),
    check: impl Fn(&AzureWorld, &[String]),
) -> usize {
    let arm = world.azure.arm.clone();
    let mut points = 0;
    for change in 1.. {
        for when in [When::Before, When::After] {
            let grants = prepare(world);
            arm.halt_at(Some(CrashPoint { change, when }));
            act(world, &grants);
            let mut waits = 0..40;
            while !arm.has_halted() && waits.next().is_some() {
                std::thread::sleep(Duration::from_millis(25));
            }
            if !arm.has_halted() {
                arm.halt_at(None);
                return points;
            }
            points += 1;
            world.broker.process().kill9();
            arm.halt_at(None);
            world.broker.serve();
            check(world, &grants);
        }
    }
    points
}

#[test]
fn i8_a_broker_that_is_killed_between_any_two_calls_of_an_open_opens_it_all_the_same() {
    let mut world = AzureWorld::new(Layers::Cloud);
    let points = killed_everywhere(
        &mut world,
        |world| {
            close_all(world);
            Vec::new()
        },
        |world, _| drop(world.alice.request(&world.ask().waiting(Duration::ZERO)).unwrap()),
        |world, _| {
            let grant = world.alice.grants().into_iter().next().unwrap();
            world.alice.wait_for_state(&grant.id, GrantState::Active);
            assert!(world.is_open());
            close_all(world);
        },
    );
    assert_eq!(points, 4, "before and after its rule in each of two groups");
}

#[test]
fn i6_a_broker_that_is_killed_between_any_two_calls_of_a_close_closes_it_all_the_same() {
    let mut world = AzureWorld::new(Layers::Cloud);
    let bob = world.broker.client(&world.net.mallory, "bob", postern_core::Role::Requester);
    let points = killed_everywhere(
        &mut world,
        |world| {
            close_all(world);
            let his = a_request().on(&world.target()).port("tcp/22").from(world.net.alice.v4()).seconds(600);
            vec![world.alice.open(&world.ask().seconds(900)).id, bob.open(&his).id]
        },
        |world, grants| {
            let request =
                RevokeAccessRequest { grant_id: grants[0].clone(), ..RevokeAccessRequest::default() };
            world.alice.run(|channel| async move {
                AccessServiceClient::new(channel).revoke_access(request).await.unwrap();
            });
        },
        |world, grants| {
            world.alice.wait_for_state(&grants[0], GrantState::Closed);
            assert!(world.is_open(), "what is bob's stays");
            assert_eq!(world.rules("nsg-subnet", "postern-allow-").len(), 1);
            assert_eq!(bob.grant(&grants[1]).unwrap().state(), GrantState::Active);
            bob.revoke(&grants[1]).unwrap();
        },
    );
    assert_eq!(points, 4);
}

#[test]
fn i8_a_lockdown_whose_broker_is_killed_is_finished_by_the_next_one() {
    let options =
        AzureOptions { layers: Layers::Cloud, firewall: false, locked: false, more: "", sections: "" };
    let mut world = AzureWorld::with(options);
    let arm = world.azure.arm.clone();
    arm.halt_at(Some(CrashPoint { change: 1, when: When::After }));
    let (cli, target) = (world.admin.cli(), world.target());
    let running = std::thread::spawn(move || cli.run(&["lockdown", &target, "--accept", "precedence"]));
    wait_until("the first change", STEP_TIMEOUT, || arm.has_halted());
    world.broker.process().kill9();
    arm.halt_at(None);
    assert!(!running.join().unwrap().succeeded(), "no broker answered");
    world.broker.serve();
    let locked = |group: &str| !world.rules(group, "postern-deny-").is_empty();
    wait_until("the sweep to finish it", STEP_TIMEOUT, || locked("nsg-subnet") && locked("nsg-nic"));
    assert!(!world.admits(world.net.mallory.v4()));
    world.alice.open(&world.ask());
}
