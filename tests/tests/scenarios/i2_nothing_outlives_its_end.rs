//! I2: the kernel ends a window on time, whatever has happened to agent, broker and network meanwhile.

use std::time::Duration;

use postern_tests::clock::{sleep_until, wait_until};
use postern_tests::{HostWorld, Reach, STEP_TIMEOUT, TCP, ask_for, end_of};
use rustix::process::Signal;

/// Opens a window of three seconds, lets `trouble` happen in it, and watches the port past its end.
fn closes_on_time_despite(trouble: impl FnOnce(&mut HostWorld)) {
    let mut world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(3));
    let watches = [world.net.vm.tcp(TCP), world.net.vm.tcp6(TCP)].map(|port| world.net.alice.watch(port));
    trouble(&mut world);
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    for watch in watches {
        watch.stop().assert_closed_at(end_of(&grant));
    }
}

#[test]
fn i2_closed_on_time_with_everyone_alive() {
    closes_on_time_despite(|_| {});
}

#[test]
fn i2_closed_on_time_after_kill_9_of_the_agent() {
    closes_on_time_despite(|world| world.agent.process().kill9());
}

#[test]
fn i2_closed_on_time_with_a_stopped_agent() {
    closes_on_time_despite(|world| world.agent.process().signal(Signal::STOP));
}

#[test]
fn i2_closed_on_time_after_kill_9_of_the_broker() {
    closes_on_time_despite(|world| world.broker.process().kill9());
}

#[test]
fn i2_closed_on_time_with_a_stopped_broker() {
    closes_on_time_despite(|world| world.broker.process().signal(Signal::STOP));
}

#[test]
fn i2_closed_on_time_with_the_network_to_the_broker_cut() {
    closes_on_time_despite(|world| world.net.unplug(&world.net.hub));
}

#[test]
fn i2_closed_on_time_after_kill_9_of_everyone() {
    closes_on_time_despite(|world| {
        world.broker.process().kill9();
        world.agent.process().kill9();
    });
}

#[test]
fn i2_a_restart_of_the_agent_without_a_broker_neither_cuts_nor_lengthens_a_window() {
    closes_on_time_despite(|world| {
        world.broker.process().kill9();
        world.agent.restart();
    });
}

#[test]
fn i2_an_agent_that_was_stopped_across_the_end_opens_nothing_when_it_goes_on() {
    let mut world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(2));
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    world.agent.process().signal(Signal::STOP);
    sleep_until(end_of(&grant) + Duration::from_millis(500));
    world.agent.process().signal(Signal::CONT);
    sleep_until(end_of(&grant) + Duration::from_millis(2500));
    watch.stop().assert_closed_at(end_of(&grant));
}

#[test]
fn i2_a_grant_that_reaches_a_stopped_agent_late_ends_on_time_all_the_same() {
    let mut world = HostWorld::new();
    world.agent.process().signal(Signal::STOP);
    let grant = world.alice.request(&ask_for(&world.net.alice).seconds(4)).unwrap().grant.unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    world.agent.process().signal(Signal::CONT);
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
}

#[test]
fn i2_what_an_agent_finds_on_disk_without_a_broker_is_opened_only_where_its_end_is_ahead() {
    let mut world = HostWorld::new();
    let (vm, alice, mallory) = (&world.net.vm, &world.net.alice, &world.net.mallory);
    let ended = world.alice.open(&ask_for(alice).seconds(2));
    world.alice.open(&ask_for(mallory).seconds(600));
    world.broker.process().kill9();
    world.agent.process().kill9();
    sleep_until(end_of(&ended) + Duration::from_millis(500));
    vm.must("nft", &["flush", "ruleset"]);
    world.agent.run();
    wait_until("the table to be put back", STEP_TIMEOUT, || alice.reach(vm.tcp(TCP)) == Reach::Filtered);
    assert_eq!(mallory.reach(vm.tcp(TCP)), Reach::Open, "its window has minutes left");
    assert_eq!(alice.reach(vm.tcp6(TCP)), Reach::Filtered);
}
