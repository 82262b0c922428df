//! Sources that nest and overlap, and windows that follow each other.

use std::net::IpAddr;
use std::time::Duration;

use postern_proto::v1::{CloseReason, GrantState};
use postern_tests::clock::{sleep_until, wall};
use postern_tests::{HostWorld, Reach, TCP, UDP, VM, a_request, ask_for, end_of, further_addresses};

#[test]
fn i2_nested_and_overlapping_sources_each_end_with_the_last_window_that_covers_them() {
    let world = HostWorld::new();
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    alice.add_addresses(further_addresses(20));
    let address = |number: u8| IpAddr::from([198, 51, 100, number]);
    let ask = |source: &str, seconds| {
        a_request().on(VM).port("tcp/22").port("udp/161").from(source).seconds(seconds)
    };
    let open = |source, seconds| end_of(&world.alice.open(&ask(source, seconds)));

    // .9 lies in all three, .1 in the widest alone, .14 in the widest and the overlapping one, .17 in that one alone.
    let single = open("198.51.100.9/32", 3);
    let wide = open("198.51.100.0/28", 6);
    let half = open("198.51.100.8/29", 9);
    let admitted = || {
        let probed = [1, 9, 14, 17].map(address);
        let tcp = alice.reach_from_each(&probed, vm.tcp(TCP));
        assert_eq!(tcp, alice.reach_from_each(&probed, vm.udp(UDP)), "TCP and UDP differ");
        [1, 9, 14, 17]
            .into_iter()
            .zip(tcp)
            .filter(|(_, reach)| *reach == Reach::Open)
            .map(|(n, _)| n)
            .collect::<Vec<_>>()
    };
    assert_eq!(admitted(), [1, 9, 14]);
    sleep_until(single + Duration::from_millis(300));
    assert_eq!(admitted(), [1, 9, 14], "the wider windows still hold the single address");
    sleep_until(wide + Duration::from_millis(300));
    assert_eq!(admitted(), [9, 14]);
    sleep_until(half + Duration::from_millis(300));
    assert_eq!(admitted(), [] as [u8; 0]);
}

#[test]
fn i2_the_longest_window_holds_an_address_whichever_came_first() {
    let world = HostWorld::new();
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    let ask = |source: &str, seconds| a_request().on(VM).port("tcp/22").from(source).seconds(seconds);
    let whole = end_of(&world.alice.open(&ask("2001:db8::/64", 3)));
    let own = end_of(&world.alice.open(&ask(&alice.v6().to_string(), 6)));
    assert_eq!(world.net.mallory.reach(vm.tcp6(TCP)), Reach::Open);
    sleep_until(whole + Duration::from_millis(300));
    assert_eq!(
        (alice.reach(vm.tcp6(TCP)), world.net.mallory.reach(vm.tcp6(TCP))),
        (Reach::Open, Reach::Filtered)
    );
    sleep_until(own + Duration::from_millis(300));
    assert_eq!(alice.reach(vm.tcp6(TCP)), Reach::Filtered);
}

#[test]
fn i2_one_source_held_by_two_principals_closes_with_the_later_one() {
    let world = HostWorld::new();
    let bob = world.broker.client(&world.net.mallory, "bob", postern_core::Role::Requester);
    let first = world.alice.open(&ask_for(&world.net.alice).seconds(600));
    let second = bob.open(&ask_for(&world.net.alice).seconds(5));
    world.alice.revoke(&first.id).unwrap();
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open, "bob's grant holds it open");
    sleep_until(end_of(&second) + Duration::from_millis(500));
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
}

#[test]
fn i2_an_extension_has_no_gap_and_ends_with_the_new_end() {
    let world = HostWorld::new();
    let first = world.alice.open(&ask_for(&world.net.alice).seconds(4));
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    let opened = wall();
    std::thread::sleep(Duration::from_secs(1));
    let second = world.alice.open(&ask_for(&world.net.alice).seconds(6));
    let superseded = world.alice.wait_for_state(&first.id, GrantState::Closed);
    assert_eq!(superseded.close_reason(), CloseReason::Superseded);
    assert!(superseded.reason.contains(&second.id), "{}", superseded.reason);
    assert!(end_of(&second) > end_of(&first));

    sleep_until(end_of(&second) + Duration::from_millis(1500));
    let timeline = watch.stop();
    timeline.assert_open_between(opened, end_of(&second) - Duration::from_millis(150));
    timeline.assert_closed_at(end_of(&second));
}

#[test]
fn a_request_without_a_source_opens_to_the_address_that_the_broker_sees() {
    let world = HostWorld::new();
    let answer =
        world.alice.request(&a_request().on(VM).port("tcp/22").waiting(postern_tests::STEP_TIMEOUT)).unwrap();
    assert!(answer.source_from_caller);
    let grant = answer.grant.unwrap();
    assert_eq!(grant.windows[0].source, format!("{}/32", world.net.alice.v4()));
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open);
}
