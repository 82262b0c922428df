//! The broker on Redis: what it has answered is kept, and closing does not depend on it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail like tests")]

mod broker;
mod confirmation;
mod contention;
mod low_on_space;
mod migrate;
mod sentinel;

use std::time::Duration;

use postern_core::audit::verify;
use postern_proto::v1::{GrantState, Layers};
use postern_tests::azure::{AzureOptions, AzureWorld};
use postern_tests::clock::{sleep_until, wait_until};
use postern_tests::redis::Redis;
use postern_tests::{Net, Reach, Refusal, STEP_TIMEOUT, TCP, end_of};

/// A world with both layers, whose broker keeps everything in Redis. The server is on a host of its own.
fn world() -> (AzureWorld, Redis, Net) {
    let net = Net::new();
    let redis = Redis::start(&net.hub);
    let sections = redis.configuration();
    let options =
        AzureOptions { layers: Layers::Both, firewall: false, locked: true, more: "", sections: &sections };
    (AzureWorld::with(options), redis, net)
}

fn is_whole(world: &AzureWorld) {
    let lines = world.admin.audit();
    verify(lines.iter().map(String::as_str)).unwrap();
}

#[test]
fn i4_a_grant_survives_kill_9_of_the_broker_and_of_redis() {
    let (mut world, mut redis, _net) = world();
    let port = world.net.vm.tcp(TCP);
    let grant = world.alice.open(&world.ask());
    world.broker.process().kill9();
    redis.kill9();
    assert_eq!(world.net.alice.reach(port), Reach::Open, "it is open until its end");
    redis.resume();
    world.broker.serve();
    assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Active);
    let closed = world.alice.revoke(&grant.id).unwrap();
    assert_eq!(closed.state(), GrantState::Closed);
    assert_eq!((world.net.alice.reach(port), world.is_open()), (Reach::Filtered, false));
    is_whole(&world);
}

#[test]
fn i2_with_redis_gone_both_layers_end_on_time_and_nothing_opens() {
    let (world, mut redis, _net) = world();
    let port = world.net.vm.tcp(TCP);
    let watch = world.net.alice.watch(port);
    let grant = world.alice.open(&world.ask().seconds(4));
    redis.kill9();
    let asked = world.ask().from("203.0.113.0/24");
    let refused = Refusal::from(world.alice.request(&asked).unwrap_err());
    assert_eq!(refused.reason, "STORE_UNAVAILABLE", "{refused:?}");
    sleep_until(end_of(&grant));
    // Only the broker can close the cloud's window, and Redis is away until that is done.
    wait_until("the cloud to close", STEP_TIMEOUT, || !world.is_open());
    // A probe that is dropped takes a while to say so.
    std::thread::sleep(Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));

    redis.resume();
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    let again = world.alice.open(&world.ask());
    assert_eq!((world.net.alice.reach(port), world.is_open()), (Reach::Open, true));
    world.alice.revoke(&again.id).unwrap();
    is_whole(&world);
}

#[test]
fn i1_a_redis_that_comes_back_empty_opens_nothing_and_unknown_windows_are_closed() {
    let (mut world, mut redis, _net) = world();
    let port = world.net.vm.tcp(TCP);
    world.alice.open(&world.ask().seconds(60));
    redis.lose();
    redis.resume();
    // The broker does not go on as if no grant had ever been made: it ends.
    wait_until("the broker to end", STEP_TIMEOUT, || !world.broker.process().is_running());
    assert!(world.broker.log().contains("store.went_back"), "{}", world.broker.log());
    assert_eq!(world.net.mallory.reach(port), Reach::Filtered, "the machine stays protected");
    world.broker.serve();
    wait_until("the cloud's window to close", STEP_TIMEOUT, || !world.is_open());
    wait_until("a line in the log", STEP_TIMEOUT, || {
        !world.admin.audited("cloud.unknown_window_closed").is_empty()
    });
    // The store does not know the agent any more: the agent keeps the machine protected, and closes what was not granted.
    wait_until("the machine's window to close", STEP_TIMEOUT, || {
        world.net.alice.reach(port) == Reach::Filtered
    });
    assert_eq!(world.net.mallory.reach(port), Reach::Filtered);
    wait_until("a line in the log", STEP_TIMEOUT, || !world.admin.audited("agent.unknown").is_empty());
    assert!(world.admin.audited("store.went_back").len() == 1, "and what was lost is said");
    is_whole(&world);
}
