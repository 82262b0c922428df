//! I2 with a wall clock that steps by an hour, either way, on either side: windows end when they should all the same.

use std::time::Duration;

use jiff::Timestamp;
use postern_proto::v1::GrantState;
use postern_tests::clock::{sleep_until, wait_until, wall};
use postern_tests::{
    FakeTime, HostWorld, STEP_TIMEOUT, TCP, VM, ask_for, binary, end_of, tied, usual_policy,
};

const HOUR: i64 = 3600;

/// Opens a window, steps the clock in it, and watches the port past its end. The world goes on working after that.
fn closes_on_time_despite(world: &HostWorld, step: impl FnOnce()) {
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(4));
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    step();
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
    world.alice.wait_for_state(&grant.id, GrantState::Closed);

    let next = world.alice.open(&ask_for(&world.net.alice).seconds(4));
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    // The clocks are an hour apart, and this waits for seconds.
    world.alice.wait_for_state(&next.id, GrantState::Closed);
    std::thread::sleep(Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&next));
}

/// Asserts that the process really lives by the stepped clock: its log's newest line says so.
fn assert_stepped(what: &str, log: impl Fn() -> String, by: i64) {
    let off = |line: &str| -> Option<bool> {
        let stamp: Timestamp = line.split_whitespace().next()?.parse().ok()?;
        Some((stamp.duration_since(wall()).as_secs() - by).abs() < 120)
    };
    wait_until(&format!("a line of {what} at the stepped time"), STEP_TIMEOUT, || {
        log().lines().rev().find_map(&off).unwrap_or(false)
    });
}

fn stepped_agent(by: i64) {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    let clock = FakeTime::new(world.dir());
    world.agent.run_as(clock.over(tied(binary("postern-agent"))));
    world.admin.wait_in_sync(VM);
    closes_on_time_despite(&world, || clock.step(by));
    // Its certificate looks early or late to it now; the session it has goes on, and what it logs next shows the time.
    world.net.vm.must("nft", &["flush", "ruleset"]);
    assert_stepped("the agent", || world.agent.log(), by);
}

fn stepped_broker(by: i64) {
    let mut world = HostWorld::without_agent(usual_policy());
    let clock = FakeTime::new(world.dir());
    world.broker.process().terminate();
    world.broker.serve_as(clock.over(tied(binary("postern-broker"))));
    world.enroll_agent();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    closes_on_time_despite(&world, || clock.step(by));
    assert_stepped("the broker", || world.broker.log(), by);
}

#[test]
fn i2_closed_on_time_with_the_agents_clock_an_hour_ahead() {
    stepped_agent(HOUR);
}

#[test]
fn i2_closed_on_time_with_the_agents_clock_an_hour_behind() {
    stepped_agent(-HOUR);
}

#[test]
fn i2_closed_on_time_with_the_brokers_clock_an_hour_ahead() {
    stepped_broker(HOUR);
}

#[test]
fn i2_closed_on_time_with_the_brokers_clock_an_hour_behind() {
    stepped_broker(-HOUR);
}
