//! I1: a protected port without an open window accepts no new connection, whether agent and broker are alive or not.

use postern_proto::v1::GrantState;
use postern_tests::{Agent, Endpoint, FREE, Host, HostWorld, Reach, TCP, UDP, VM, ask_for, usual_policy};

/// The protected ports, over both families.
fn protected(vm: &Host) -> [Endpoint; 4] {
    [vm.tcp(TCP), vm.tcp6(TCP), vm.udp(UDP), vm.udp6(UDP)]
}

fn assert_all(from: &Host, endpoints: impl IntoIterator<Item = Endpoint>, expected: Reach) {
    for endpoint in endpoints {
        assert_eq!(from.reach(endpoint), expected, "{} to {endpoint:?}", from.name());
    }
}

#[test]
fn i1_closed_before_and_after_a_window_and_to_everyone_else_during_it() {
    let world = HostWorld::new();
    let (vm, alice, mallory) = (&world.net.vm, &world.net.alice, &world.net.mallory);
    assert_all(alice, protected(vm), Reach::Filtered);

    let grant = world.alice.open(&ask_for(alice).port("udp/161").seconds(4));
    assert_all(alice, protected(vm), Reach::Open);
    assert_all(mallory, protected(vm), Reach::Filtered);
    assert_all(&world.net.hub, protected(vm), Reach::Filtered);

    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    assert_all(alice, protected(vm), Reach::Filtered);
}

#[test]
fn i1_what_no_policy_protects_is_left_alone() {
    let world = HostWorld::new();
    let vm = &world.net.vm;
    assert_all(&world.net.mallory, [vm.tcp(FREE), vm.tcp6(FREE)], Reach::Open);
    assert_eq!(
        world.net.mallory.reach(vm.tcp(FREE + 1)),
        Reach::Refused,
        "no process listens there, and nothing hides it"
    );
}

#[test]
fn i1_closed_with_agent_and_broker_dead() {
    let mut world = HostWorld::new();
    world.agent.process().kill9();
    world.broker.process().kill9();
    assert_all(&world.net.alice, protected(&world.net.vm), Reach::Filtered);
}

#[test]
fn i1_closed_after_an_orderly_stop_of_the_agent() {
    let mut world = HostWorld::new();
    let status = world.agent.process().terminate();
    assert!(status.success(), "{status}");
    assert_all(&world.net.alice, protected(&world.net.vm), Reach::Filtered);
}

#[test]
fn i1_an_agent_that_never_enrolled_protects_what_its_configuration_names() {
    let world = HostWorld::without_agent(usual_policy());
    let vm = &world.net.vm;
    assert_all(&world.net.alice, protected(vm), Reach::Open);
    let agent = Agent::new(vm, world.broker.url(), &world.dir().join("unenrolled"), &["tcp/22", "udp/161"]);
    agent.must(&["load"]);
    assert_all(&world.net.alice, protected(vm), Reach::Filtered);
    assert_eq!(world.net.alice.reach(vm.tcp(FREE)), Reach::Open);
}

#[test]
fn i1_the_boot_unit_closes_before_the_network_is_up_and_keeps_what_has_time_left() {
    let mut world = HostWorld::new();
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    world.alice.open(&ask_for(alice).seconds(600));
    world.agent.process().kill9();
    world.broker.process().kill9();
    // A boot finds no table.
    vm.must("nft", &["flush", "ruleset"]);
    assert_eq!(world.net.mallory.reach(vm.tcp(TCP)), Reach::Open);

    vm.must("ip", &["link", "set", "eth0", "down"]);
    world.agent.must(&["load"]);
    vm.must("ip", &["link", "set", "eth0", "up"]);
    assert_all(&world.net.mallory, [vm.tcp(TCP), vm.udp(UDP)], Reach::Filtered);
    assert_eq!(alice.reach(vm.tcp(TCP)), Reach::Open, "its window has minutes left");
}

#[test]
fn i1_a_boot_with_a_wrong_configuration_closes_all_the_same() {
    let mut world = HostWorld::new();
    let vm = &world.net.vm;
    world.agent.process().kill9();
    vm.must("nft", &["flush", "ruleset"]);
    world.agent.configure("a line that is no key\n");
    let loaded = world.agent.command(&["load"]);
    assert_eq!(loaded.status.code(), Some(2), "{loaded:?}");
    assert!(String::from_utf8_lossy(&loaded.stderr).contains("does not parse"), "{loaded:?}");
    assert_all(&world.net.alice, protected(vm), Reach::Filtered);
}

#[test]
fn i1_monitor_mode_drops_nothing_until_it_is_enforced() {
    let world = HostWorld::under(usual_policy().monitoring());
    assert_all(&world.net.mallory, protected(&world.net.vm), Reach::Open);
    world.admin.put_policy(usual_policy().wire()).unwrap();
    world.admin.wait_in_sync(VM);
    assert_all(&world.net.mallory, protected(&world.net.vm), Reach::Filtered);
}
