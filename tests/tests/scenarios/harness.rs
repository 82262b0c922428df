//! The harness itself: what every other scenario believes must be so.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use postern_tests::clock::{wait_until, wall};
use postern_tests::{Net, Reach, STEP_TIMEOUT, further_addresses, tied};

#[test]
fn a_probe_tells_open_from_filtered_from_refused() {
    let net = Net::new();
    net.vm.listen_tcp(22);
    net.vm.listen_udp(161);
    for open in [net.vm.tcp(22), net.vm.tcp6(22), net.vm.udp(161), net.vm.udp6(161)] {
        assert_eq!(net.alice.reach(open), Reach::Open, "{open:?}");
    }
    for refused in [net.vm.tcp(23), net.vm.tcp6(23), net.vm.udp(162), net.vm.udp6(162)] {
        assert_eq!(net.alice.reach(refused), Reach::Refused, "{refused:?}");
    }
    net.vm.must(
        "nft",
        &["add table inet t; add chain inet t c { type filter hook input priority 0; policy drop; }"],
    );
    net.vm.must("nft", &["add rule inet t c icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept"]);
    for filtered in [net.vm.tcp(22), net.vm.tcp6(22), net.vm.udp(161), net.vm.udp6(161), net.vm.tcp(23)] {
        assert_eq!(net.alice.reach(filtered), Reach::Filtered, "{filtered:?}");
    }
}

#[test]
fn a_connection_that_is_cut_echoes_no_more() {
    let net = Net::new();
    net.vm.listen_tcp(22);
    let connection = net.alice.connect(net.vm.tcp(22));
    assert!(connection.echoes() && connection.echoes());
    net.unplug(&net.vm);
    assert!(!connection.echoes());
    net.plug(&net.vm);
}

#[test]
fn a_watch_sees_a_port_close_to_within_its_step() {
    let net = Net::new();
    net.vm.listen_tcp(22);
    let watch = net.alice.watch(net.vm.tcp(22));
    std::thread::sleep(Duration::from_millis(500));
    net.vm.must(
        "nft",
        &["add table inet t; add chain inet t c { type filter hook input priority 0; policy drop; }"],
    );
    let closed = wall();
    std::thread::sleep(Duration::from_millis(1500));
    let timeline = watch.stop();
    timeline.assert_closed_at(closed);
    timeline.assert_shut_after(closed);
    let early = closed - Duration::from_millis(900);
    let caught = std::panic::catch_unwind(|| timeline.assert_closed_at(early + Duration::from_millis(2500)));
    assert!(caught.is_err(), "a port that closed before the end passed for one that closed at it");
}

#[test]
fn further_addresses_are_sources_of_their_own() {
    let net = Net::new();
    net.vm.listen_tcp(22);
    net.alice.add_addresses(further_addresses(3));
    let second = Ipv4Addr::new(198, 51, 100, 2);
    net.vm.must("nft", &[&format!(
        "add table inet t; add chain inet t c {{ type filter hook input priority 0; }}; add rule inet t c ip saddr {second} drop"
    )]);
    let sources: Vec<IpAddr> = further_addresses(3).map(IpAddr::V4).collect();
    let reaches = net.alice.reach_from_each(&sources, net.vm.tcp(22));
    assert_eq!(reaches, [Reach::Open, Reach::Filtered, Reach::Open]);
}

#[test]
fn a_host_takes_its_processes_with_it() {
    let net = Net::new();
    let mut command = tied("sleep");
    command.arg("1000");
    let mut child = net.vm.netns().spawn(command).unwrap();
    // From here on it is tied.
    let name = format!("/proc/{}/comm", child.id());
    wait_until("the program to run", STEP_TIMEOUT, || {
        fs::read_to_string(&name).is_ok_and(|name| name == "sleep\n")
    });
    drop(net);
    assert!(!child.wait().unwrap().success(), "killed, and not ended by itself");
}
