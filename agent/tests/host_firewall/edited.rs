//! Edits of Postern's table by another process, field by field, while windows are open and after their end. The layer
//! notices, repairs and reports each once.

use std::time::Duration;

use postern_agent::firewall::policy::HostPolicy;
use postern_tests::{Host, Reach};

use crate::vm::{Layer, MINUTE, Opening as _, SSH, a_net, closed, listed};

/// Edits that need no open window: each adds an element that is no window, or changes rules, chains, sets or the table.
pub(crate) const ADDITIONS: [&str; 30] = [
    // An element in each set: every source, another port, another protocol, no end, the wrong set, the wrong family's width.
    "add element inet postern hosts4 { 192.0.2.30 . tcp . 22 timeout 1h }",
    "add element inet postern hosts4 { 192.0.2.30 . tcp . 22 }",
    "add element inet postern hosts4 { 192.0.2.20 . tcp . 2222 timeout 1h }",
    "add element inet postern hosts4 { 192.0.2.20 . udp . 22 timeout 1h }",
    "add element inet postern hosts4 { 192.0.2.20 . icmp . 22 timeout 1h }",
    "add element inet postern nets4 { 192.0.2.30 . tcp . 22 timeout 1h }",
    "add element inet postern nets4 { 192.0.2.0/24 . tcp . 22 timeout 1h }",
    "add element inet postern nets4 { 0.0.0.0/0 . tcp . 22 }",
    "add element inet postern nets4 { 0.0.0.0/0 . tcp . 0-65535 timeout 1h }",
    "add element inet postern nets4 { 192.0.2.0/24 . 6-17 . 22 timeout 1h }",
    "add element inet postern hosts6 { fd00:2::30 . tcp . 22 timeout 1h }",
    "add element inet postern hosts6 { fd00:2::30 . tcp . 22 }",
    "add element inet postern nets6 { fd00:2::/64 . tcp . 22 timeout 1h }",
    "add element inet postern nets6 { ::/0 . tcp . 22 }",
    "add element inet postern nets6 { ::/0 . tcp . 22-3389 timeout 1h }",
    "add element inet postern established4 { 192.0.2.30 . 40000 . 22 }",
    "add element inet postern established6 { fd00:2::30 . 40000 . 22 }",
    // Rules, chains, sets and the table.
    "insert rule inet postern input accept",
    "insert rule inet postern dialled accept",
    "insert rule inet postern gate accept",
    "add rule inet postern gate accept",
    "flush chain inet postern input",
    "add chain inet postern input { policy drop; }",
    "add chain inet postern more { type filter hook input priority -300; policy accept; }",
    "rename chain inet postern gate door",
    "add set inet postern more { type ipv4_addr; }",
    "add map inet postern more { type ipv4_addr : verdict; }",
    "add set inet postern hosts4 { type ipv4_addr . inet_proto . inet_service; flags timeout; timeout 1h; }",
    "add table inet postern { flags dormant; }",
    "delete table inet postern",
];

/// Edits of elements that windows have.
pub(crate) const WINDOW_EDITS: [&str; 10] = [
    "flush set inet postern hosts4",
    "flush set inet postern nets6",
    "delete element inet postern hosts4 { 192.0.2.20 . tcp . 22 }",
    "delete element inet postern hosts4 { 192.0.2.20 . tcp . 22 } && add element inet postern hosts4 { 192.0.2.20 . tcp . 22 }",
    "delete element inet postern hosts4 { 192.0.2.20 . tcp . 22 } && add element inet postern hosts4 { 192.0.2.20 . tcp . 22 timeout 5h }",
    "delete element inet postern hosts4 { 192.0.2.20 . tcp . 22 } && add element inet postern hosts4 { 192.0.2.20 . tcp . 22 timeout 5s }",
    "delete element inet postern nets4 { 198.51.100.0/24 . tcp . 22 } && add element inet postern nets4 { 198.51.100.0/23 . tcp . 22 timeout 1m }",
    "delete element inet postern nets4 { 198.51.100.0/24 . tcp . 22 } && add element inet postern nets4 { 198.51.100.0/24 . tcp . 22-3389 timeout 1m }",
    "delete element inet postern nets4 { 198.51.100.0/24 . tcp . 22 } && add element inet postern nets4 { 198.51.100.0/24 . 6-17 . 22 timeout 1m }",
    "delete element inet postern nets6 { 2001:db8::/64 . tcp . 22 } && add element inet postern nets6 { 2001:db8::/63 . tcp . 22 timeout 1m }",
];

/// Returns Postern's table as `nft` lists it, without what changes by itself: the time left of a window, packet counts,
/// and the order of elements.
fn normalized(vm: &Host) -> Vec<String> {
    let listed = listed(vm);
    let words = listed.split_whitespace().map(|word| word.trim_end_matches(','));
    let counts = |word: &&str| {
        let is_span = word.ends_with('s') && word.starts_with(|first: char| first.is_ascii_digit());
        let is_number = word.chars().all(|digit| digit.is_ascii_digit());
        !is_span && !is_number
    };
    let mut words: Vec<String> = words.filter(counts).map(str::to_owned).collect();
    words.sort();
    words
}

fn run(vm: &Host, commands: &str) {
    for command in commands.split(" && ") {
        vm.must("nft", &[command]);
    }
}

/// Asserts that the layer notices the edit, repairs it, and reports it once.
fn assert_repaired(layer: &Layer, vm: &Host, policy: &HostPolicy, before: &[String], commands: &str) {
    run(vm, commands);
    layer.ensure(vm, policy).unwrap_or_else(|error| panic!("{commands}: {error}"));
    assert!(layer.damage().is_some(), "{commands}: it was not noticed");
    assert_eq!(normalized(vm), before, "{commands}: it was not repaired");
    layer.ensure(vm, policy).unwrap();
    assert_eq!(layer.damage(), None, "{commands}: it is reported once");
}

#[test]
fn i2_an_edit_of_any_field_of_the_table_is_noticed_and_repaired_while_windows_are_open() {
    let net = a_net();
    let layer = Layer::new();
    let policy = closed()
        .open(SSH, net.alice.v4(), 10 * MINUTE)
        .open(SSH, "198.51.100.0/24", 10 * MINUTE)
        .open(SSH, "2001:db8::7", 10 * MINUTE)
        .open(SSH, "2001:db8::/64", 10 * MINUTE);
    layer.ensure(&net.vm, &policy).unwrap();
    let before = normalized(&net.vm);
    for commands in ADDITIONS.into_iter().chain(WINDOW_EDITS) {
        assert_repaired(&layer, &net.vm, &policy, &before, commands);
    }
    let port = net.vm.tcp(22);
    assert_eq!((net.alice.reach(port), net.mallory.reach(port)), (Reach::Open, Reach::Filtered));
}

#[test]
fn i2_an_edit_of_any_field_of_the_table_is_noticed_and_repaired_after_the_windows_end() {
    let net = a_net();
    let layer = Layer::new();
    let open = closed().open(SSH, net.alice.v4(), Duration::from_millis(300));
    layer.ensure(&net.vm, &open).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    layer.ensure(&net.vm, &closed()).unwrap();
    let before = normalized(&net.vm);
    for commands in ADDITIONS {
        assert_repaired(&layer, &net.vm, &closed(), &before, commands);
    }
    let port = net.vm.tcp(22);
    assert_eq!((net.alice.reach(port), net.mallory.reach(port)), (Reach::Filtered, Reach::Filtered));
}
