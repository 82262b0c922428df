//! I3: an expiry or a revocation never cuts an established connection.

use std::net::IpAddr;
use std::time::Duration;

use postern_proto::v1::GrantState;
use postern_tests::clock::{sleep_until, wait_until};
use postern_tests::{
    HostWorld, Reach, STEP_TIMEOUT, TCP, VM, a_request, ask_for, end_of, further_addresses, usual_policy,
};

#[test]
fn i3_a_hundred_expiries_cut_no_connection() {
    let mut world = HostWorld::with_shared_table();
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    alice.add_addresses(further_addresses(100));
    let sources: Vec<IpAddr> = further_addresses(100).map(IpAddr::V4).collect();

    let ask =
        |source: &IpAddr| a_request().on(VM).port("tcp/22").from(source).seconds(10).waiting(STEP_TIMEOUT);
    let asked: Vec<_> = sources.iter().map(|source| world.alice.start_request(&ask(source))).collect();
    let grants: Vec<_> = asked.into_iter().map(|answer| answer.join().unwrap().grant.unwrap()).collect();
    assert!(grants.iter().all(|grant| grant.state() == GrantState::Active), "{grants:#?}");
    let connections: Vec<_> =
        sources.iter().map(|source| alice.connect_from(Some(*source), vm.tcp(TCP))).collect();

    sleep_until(grants.iter().map(end_of).max().unwrap() + Duration::from_secs(1));
    assert!(alice.reach_from_each(&sources, vm.tcp(TCP)).iter().all(|reach| *reach == Reach::Filtered));
    let assert_none_cut = |by: &str| {
        let cut = connections.iter().filter(|connection| !connection.echoes()).count();
        assert_eq!(cut, 0, "of {} connections, by {by}", connections.len());
    };
    assert_none_cut("the end");

    world.agent.restart();
    world.admin.wait_in_sync(VM);
    assert_none_cut("a restart of the agent");
    vm.must("nft", &["flush", "ruleset"]);
    wait_until("the table to be put back", STEP_TIMEOUT, || alice.reach(vm.tcp(TCP)) == Reach::Filtered);
    assert_none_cut("a table built again");
}

#[test]
fn i3_a_connection_outlives_its_window_and_everything_that_rebuilds_the_table() {
    let mut world = HostWorld::with_shared_table();
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    let grant = world.alice.open(&ask_for(alice).seconds(2));
    let connections = [alice.connect(vm.tcp(TCP)), alice.connect(vm.tcp6(TCP))];
    let assert_echo = |after: &str| {
        assert!(connections.iter().all(|connection| connection.echoes()), "cut after {after}");
        assert_eq!(alice.reach(vm.tcp(TCP)), Reach::Filtered, "open after {after}");
    };
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    assert_echo("the end");

    world.agent.process().kill9();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    assert_echo("a restart of the agent");

    world.admin.put_policy(usual_policy().port("tcp/8443").port("udp/514").wire()).unwrap();
    world.admin.wait_in_sync(VM);
    assert_echo("a change of the protected ports");

    vm.must("nft", &["flush", "ruleset"]);
    wait_until("the table to be put back", STEP_TIMEOUT, || alice.reach(vm.tcp(TCP)) == Reach::Filtered);
    assert_echo("a flush of the ruleset");

    world.agent.process().terminate();
    world.agent.must(&["load"]);
    assert_echo("the boot unit");
}

#[test]
fn i3_a_revocation_shuts_out_new_connections_and_cuts_none() {
    let world = HostWorld::new();
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    let grant = world.alice.open(&ask_for(alice).seconds(600));
    let connection = alice.connect(vm.tcp(TCP));
    let revoked = world.alice.revoke(&grant.id).unwrap();
    assert_eq!(revoked.state(), GrantState::Closed, "{}", revoked.reason);
    assert_eq!(alice.reach(vm.tcp(TCP)), Reach::Filtered);
    assert!(connection.echoes());
}
