//! Sources that nest and overlap, and windows that follow each other.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use postern_proto::v1::{CloseReason, GrantState};
use postern_tests::clock::{sleep_until, wall};
use postern_tests::{
    HostWorld, PolicyBuilder, Reach, TCP, UDP, VM, a_policy, a_request, ask_for, binary, end_of,
    further_addresses, tied,
};

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

/// Runs a requester's `postern request` on its host, where the name broker.example has an address of each family.
fn request_by_name(world: &HostWorld, more: &[&str]) -> (i32, String) {
    let hosts = world.dir().join("hosts");
    let hub = &world.net.hub;
    fs::write(&hosts, format!("{} broker.example\n{} broker.example\n", hub.v4(), hub.v6())).unwrap();
    let mut command = tied("unshare");
    command.args(["--mount", "--", "sh", "-c", "mount --bind \"$0\" /etc/hosts && exec \"$@\""]);
    command.arg(&hosts).arg(binary("postern"));
    command.args(["request", VM, "--port", "22", "--for", "10m", "--reason", "both families"]).args(more);
    command.env("POSTERN_BROKER", "https://broker.example:7443");
    command.env("POSTERN_IDENTITY", world.alice.identity());
    let output = world.net.alice.netns().output(command).unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// A world whose broker is also known by a name.
fn named_broker(policy: PolicyBuilder) -> HostWorld {
    let mut world = HostWorld::without_agent(policy);
    let config = fs::read_to_string(world.broker.config()).unwrap();
    fs::write(world.broker.config(), config.replace("names = [", "names = [\"broker.example\", ")).unwrap();
    world.broker.restart();
    world.agent.join(VM, &world.admin);
    world
}

#[test]
fn a_request_lets_in_both_addresses_of_a_machine_that_reaches_the_broker_by_both_families() {
    let world = named_broker(a_policy().on(VM).port_within("tcp/22", &["caller"], Duration::from_secs(3600)));
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    let (code, said) = request_by_name(&world, &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("the grant is for both"), "{said}");
    assert_eq!([alice.reach(vm.tcp(TCP)), alice.reach(vm.tcp6(TCP))], [Reach::Open; 2]);
    assert_eq!(world.net.mallory.reach(vm.tcp6(TCP)), Reach::Filtered);
}

#[test]
fn an_address_that_the_policies_do_not_allow_is_left_out_and_the_command_says_so() {
    let world =
        named_broker(a_policy().on(VM).port_within("tcp/22", &["192.0.2.0/24"], Duration::from_secs(3600)));
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    let (code, said) = request_by_name(&world, &[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("{}; the grant has no window for that address", alice.v6())), "{said}");
    assert_eq!([alice.reach(vm.tcp(TCP)), alice.reach(vm.tcp6(TCP))], [Reach::Open, Reach::Filtered]);
    assert!(world.admin.audited("grant.requested").iter().all(|event| event.contains("done")), "no denial");
    // A source that is named is taken as it is.
    let (code, said) = request_by_name(&world, &["--source", &alice.v6().to_string()]);
    assert_eq!(code, 3, "{said}");
}
