//! Open and closed ports.

use postern_core::Mode;
use postern_tests::{Endpoint, Host, Reach};

use crate::vm::{Layer, MINUTE, Opening as _, SNMP, SSH, a_net, closed, listed, remove};

fn protected(vm: &Host) -> [Endpoint; 4] {
    [vm.tcp(22), vm.tcp6(22), vm.udp(161), vm.udp6(161)]
}

fn reaches(client: &Host, vm: &Host) -> [Reach; 4] {
    protected(vm).map(|to| client.reach(to))
}

#[test]
fn i1_a_protected_port_is_shut_to_all_but_the_windows_sources() {
    let net = a_net();
    let layer = Layer::new();
    assert!(!layer.is_loaded(&net.vm));
    assert_eq!(reaches(&net.alice, &net.vm), [Reach::Open; 4], "before there is a table");

    layer.ensure(&net.vm, &closed()).unwrap();
    assert!(layer.is_loaded(&net.vm));
    assert_eq!(reaches(&net.alice, &net.vm), [Reach::Filtered; 4]);

    let alice = [net.alice.v4(), net.alice.v6()];
    let open = alice
        .iter()
        .fold(closed(), |policy, source| policy.open(SSH, source, MINUTE).open(SNMP, source, MINUTE));
    layer.ensure(&net.vm, &open).unwrap();
    assert_eq!(reaches(&net.alice, &net.vm), [Reach::Open; 4]);
    assert_eq!(reaches(&net.mallory, &net.vm), [Reach::Filtered; 4]);

    layer.ensure(&net.vm, &closed()).unwrap();
    assert_eq!(reaches(&net.alice, &net.vm), [Reach::Filtered; 4]);
}

#[test]
fn a_window_opens_its_port_only_and_other_ports_are_not_touched() {
    let net = a_net();
    net.vm.listen_tcp(80);
    let layer = Layer::new();
    layer.ensure(&net.vm, &closed().open(SNMP, net.alice.v4(), MINUTE)).unwrap();
    assert_eq!(net.alice.reach(net.vm.udp(161)), Reach::Open);
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);
    assert_eq!(net.mallory.reach(net.vm.tcp(80)), Reach::Open);
    assert_eq!(net.mallory.reach(net.vm.tcp(81)), Reach::Refused);
}

#[test]
fn overlapping_and_nested_prefixes_with_different_ends_are_held_together() {
    let net = a_net();
    let layer = Layer::new();
    let policy = closed()
        .open(SSH, "192.0.2.0/24", MINUTE)
        .open(SSH, "192.0.2.16/29", 2 * MINUTE)
        .open(SSH, "192.0.2.20", 3 * MINUTE)
        .open(SSH, "2001:db8::/64", MINUTE)
        .open(SSH, "2001:db8::/48", MINUTE / 2)
        .open(SNMP, "0.0.0.0/0", MINUTE);
    layer.ensure(&net.vm, &policy).unwrap();
    assert_eq!(reaches(&net.alice, &net.vm), [Reach::Open, Reach::Open, Reach::Open, Reach::Filtered]);
    assert_eq!(reaches(&net.mallory, &net.vm), [Reach::Open, Reach::Open, Reach::Open, Reach::Filtered]);

    let mut without = policy;
    without.windows.remove(0);
    layer.ensure(&net.vm, &without).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
    assert_eq!(net.mallory.reach(net.vm.tcp(22)), Reach::Filtered);
    assert_eq!(layer.damage(), None);
}

#[test]
fn monitor_mode_lets_everything_in_and_counts_it() {
    let net = a_net();
    let layer = Layer::new();
    let mut policy = closed();
    policy.mode = Mode::Monitor;
    layer.ensure(&net.vm, &policy).unwrap();
    assert_eq!(reaches(&net.mallory, &net.vm), [Reach::Open; 4]);
    let counted = listed(&net.vm);
    assert!(counted.contains("only monitored") && !counted.contains("counter drop"), "{counted}");
    assert!(counted.lines().any(|line| line.contains("counter packets 4 ")), "{counted}");

    policy.mode = Mode::Enforce;
    layer.ensure(&net.vm, &policy).unwrap();
    assert_eq!(reaches(&net.mallory, &net.vm), [Reach::Filtered; 4]);
}

#[test]
fn i6_removing_the_table_leaves_every_other_table() {
    let net = a_net();
    net.vm.must("nft", &["add", "table", "inet", "other"]);
    let layer = Layer::new();
    layer.ensure(&net.vm, &closed()).unwrap();
    remove(&net.vm);
    assert!(!layer.is_loaded(&net.vm));
    assert_eq!(reaches(&net.mallory, &net.vm), [Reach::Open; 4]);
    assert_eq!(net.vm.must("nft", &["list", "tables"]).trim(), "table inet other");
    remove(&net.vm);
}

#[test]
fn a_table_of_an_older_agent_is_replaced_whole() {
    let net = a_net();
    for command in [
        "add table inet postern",
        "add set inet postern older4 { type ipv4_addr . inet_service . inet_service; }",
        "add chain inet postern input { type filter hook input priority -10; policy accept; }",
        "add chain inet postern older",
        "add rule inet postern older ip saddr . tcp sport . tcp dport @older4 accept",
        "add rule inet postern older counter drop",
        "add rule inet postern input tcp dport 22 goto older",
    ] {
        net.vm.must("nft", &[command]);
    }
    let layer = Layer::new();
    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), MINUTE)).unwrap();
    let listed = listed(&net.vm);
    assert!(listed.contains("established4") && !listed.contains("older"), "{listed}");
    assert_eq!(
        (net.alice.reach(net.vm.tcp(22)), net.mallory.reach(net.vm.tcp(22))),
        (Reach::Open, Reach::Filtered)
    );
    assert_eq!(layer.damage(), None, "a start is no tampering");
}
