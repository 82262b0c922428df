//! I2 with a wall clock that steps by an hour, either way, on either side: windows end when they should all the same.

use std::time::Duration;

use jiff::Timestamp;
use postern_proto::v1::GrantState;
use postern_tests::clock::{sleep_until, wait_until, wall};
use postern_tests::{
    FakeTime, HostWorld, Reach, STEP_TIMEOUT, TCP, VM, ask_for, binary, end_of, tied, usual_policy,
};
use rustix::process::Signal;

const HOUR: i64 = 3600;

/// Opens a window, steps the clock in it, and watches the port past its end. The world goes on working after that.
///
/// An agent that has asked for the true ends of windows, and has not got them within its three seconds, promises less: it cuts the window
/// and says so (`was_cut`). On a busy machine the answer may take that long. Late the window never ends.
fn closes_on_time_despite(world: &HostWorld, step: impl FnOnce(), was_cut: impl FnOnce() -> bool) {
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(4));
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    step();
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    let timeline = watch.stop();
    if was_cut() {
        timeline.assert_shut_after(end_of(&grant) + Duration::from_secs(1));
    } else {
        timeline.assert_closed_at(end_of(&grant));
    }
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
    world.agent.share_table();
    let clock = FakeTime::new(world.dir());
    world.agent.run_as(clock.over(tied(binary("postern-agent"))));
    world.admin.wait_in_sync(VM);
    closes_on_time_despite(&world, || clock.step(by), || world.agent.log().contains("clock.stepped_forward"));
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
    closes_on_time_despite(&world, || clock.step(by), || false);
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

#[test]
fn i2_a_machine_that_was_paused_and_set_to_the_right_time_ends_its_windows_without_a_broker() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    let clock = FakeTime::new(world.dir());
    world.agent.run_as(clock.over(tied(binary("postern-agent"))));
    world.admin.wait_in_sync(VM);
    world.alice.open(&ask_for(&world.net.alice).seconds(600));
    let connected = world.net.alice.connect(world.net.vm.tcp(TCP));
    world.broker.process().kill9();
    let shuts = |by: i64| {
        clock.step(by);
        wait_until("the window to be shut", STEP_TIMEOUT, || {
            world.net.alice.reach(world.net.vm.tcp(TCP)) == Reach::Filtered
        });
    };
    shuts(700);
    assert!(connected.echoes(), "i3");
    assert!(world.agent.log().contains("clock.stepped_forward"), "{}", world.agent.log());
}

#[test]
fn windows_that_a_step_of_the_clock_has_cut_come_back_once_the_broker_answers() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    let clock = FakeTime::new(world.dir());
    world.agent.run_as(clock.over(tied(binary("postern-agent"))));
    world.admin.wait_in_sync(VM);
    world.alice.open(&ask_for(&world.net.alice).seconds(600));
    // The broker stands still, and then goes on: the session of before could go on as well, and would bring no ends.
    world.broker.process().signal(Signal::STOP);
    clock.step(HOUR);
    let port = world.net.vm.tcp(TCP);
    wait_until("the window to be cut", STEP_TIMEOUT, || world.net.alice.reach(port) == Reach::Filtered);
    wait_until("the agent to have asked without an answer", STEP_TIMEOUT, || {
        world.agent.log().contains("not connected to the broker")
    });
    world.broker.process().signal(Signal::CONT);
    wait_until("the window to be open again", STEP_TIMEOUT, || world.net.alice.reach(port) == Reach::Open);
}

/// A world whose agent's wall clock differs by so many seconds from the enrolment on.
fn agent_off_by(seconds: i64) -> HostWorld {
    let mut world = HostWorld::without_agent(usual_policy());
    let clock = FakeTime::new(world.dir());
    clock.step(seconds);
    world.agent.live_by(&clock);
    world.enroll_agent();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    world
}

#[test]
fn an_agent_hours_ahead_renews_no_more_than_others_and_says_by_how_much_its_clock_differs() {
    let mut world = agent_off_by(2 * HOUR);
    std::thread::sleep(Duration::from_secs(15));
    world.agent.restart();
    wait_until("the agent to be back", STEP_TIMEOUT, || {
        world.agent.must(&["status"]).contains(" ahead of the broker's")
    });
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(world.admin.audited("agent.renewed").len(), 0);
    assert_eq!(world.agent.log().matches("clock.differs").count(), 1, "{}", world.agent.log());
    let doctor = String::from_utf8(world.agent.command(&["doctor"]).stdout).unwrap();
    assert!(doctor.contains(" ahead of the broker's") && doctor.contains("NTP"), "{doctor}");
    assert!(!doctor.contains("ended at"), "{doctor}");
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(4));
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
}

#[test]
fn an_agent_minutes_behind_connects_with_a_new_certificate_to_a_broker_with_a_new_certificate() {
    let mut world = agent_off_by(-5 * 60);
    world.agent.restart();
    world.admin.wait_in_sync(VM);
    assert!(world.agent.must(&["status"]).contains("behind the broker's"));
}
