//! A table that the agent owns: out of reach of other programs, while the layer changes it as it likes.

use std::time::Duration;

use postern_agent::firewall::policy::HostPolicy;
use postern_agent::firewall::{FirewallError, remove_table};
use postern_core::Mode;
use postern_tests::{Host, Reach, tied};

use crate::edited::{ADDITIONS, WINDOW_EDITS};
use crate::vm::{Layer, MINUTE, Opening as _, SSH, a_net, closed, listed, remove};

/// Asserts that the kernel knows tables with an owner that persist: these tests are about nothing else.
fn assert_owned(vm: &Host) {
    assert!(listed(vm).contains("flags owner"), "Linux 6.9 or later is needed:\n{}", listed(vm));
    assert_eq!(vm.must("nft", &["list", "tables"]), "table inet postern\n", "no other table is left");
}

fn doctor_says(vm: &Host, words: &str) {
    let findings = vm.netns().run(async { postern_agent::firewall::diagnose() });
    assert!(findings.iter().any(|finding| finding.what.contains(words)), "{words}: {findings:?}");
}

#[test]
fn i1_another_program_can_neither_flush_nor_edit_an_owned_table() {
    let net = a_net();
    let layer = Layer::owning();
    let policy = closed()
        .open(SSH, net.alice.v4(), 10 * MINUTE)
        .open(SSH, "198.51.100.0/24", 10 * MINUTE)
        .open(SSH, "2001:db8::7", 10 * MINUTE)
        .open(SSH, "2001:db8::/64", 10 * MINUTE);
    layer.ensure(&net.vm, &policy).unwrap();
    assert_owned(&net.vm);
    let watch = net.mallory.watch(net.vm.tcp(22));
    net.vm.must("nft", &["flush", "ruleset"]);
    for commands in ADDITIONS.into_iter().chain(WINDOW_EDITS) {
        let first = commands.split(" && ").next().unwrap();
        let output = net.vm.output("nft", &[first]);
        assert!(!output.status.success(), "{first} was not refused");
    }
    layer.ensure(&net.vm, &policy).unwrap();
    assert_eq!(layer.damage(), None, "nothing was changed");
    assert!(watch.stop().samples().iter().all(|sample| sample.reach == Reach::Filtered));
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
    doctor_says(&net.vm, "leaves the table as it is");
}

#[test]
fn i1_an_owned_table_is_replaced_without_a_gap_while_another_program_flushes() {
    let net = a_net();
    let layer = Layer::owning();
    layer.ensure(&net.vm, &closed()).unwrap();
    let mut busy = tied("sh");
    busy.args(["-c", "while sleep 0.03; do nft flush ruleset; done"]);
    let mut busy = net.vm.netns().spawn(busy).unwrap();
    let watch = net.mallory.watch_from(net.mallory.v4(), net.vm.tcp(22), Duration::from_millis(2));
    for round in 0u16..20 {
        let mut policy = closed().open(SSH, net.alice.v4(), MINUTE);
        policy.ports.insert(format!("tcp/{}", 1000 + round).parse().unwrap());
        layer.ensure(&net.vm, &policy).unwrap();
        assert_eq!(layer.damage(), None);
        assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
    }
    busy.kill().unwrap();
    busy.wait().unwrap();
    let timeline = watch.stop();
    let open = timeline.samples().iter().filter(|sample| sample.reach != Reach::Filtered).count();
    assert_eq!(open, 0, "of {} probes", timeline.samples().len());
    assert_owned(&net.vm);
}

#[test]
fn windows_come_and_go_in_an_owned_table_one_by_one_and_by_the_thousand() {
    let net = a_net();
    let layer = Layer::owning();
    let port = net.vm.tcp(22);
    let with_alice = |policy: HostPolicy| policy.open(SSH, net.alice.v4(), MINUTE);
    layer.ensure(&net.vm, &closed()).unwrap();
    assert_eq!(net.alice.reach(port), Reach::Filtered);
    layer.ensure(&net.vm, &with_alice(closed())).unwrap();
    assert_eq!((net.alice.reach(port), net.mallory.reach(port)), (Reach::Open, Reach::Filtered));
    let thousand = (0..1000).fold(closed(), |policy, number: u32| {
        policy.open(SSH, std::net::Ipv4Addr::from_bits(0x0a00_0000 + number), MINUTE)
    });
    layer.ensure(&net.vm, &with_alice(thousand)).unwrap();
    assert!(listed(&net.vm).contains("10.0.3.231 . tcp . 22"));
    assert_eq!((net.alice.reach(port), net.mallory.reach(port)), (Reach::Open, Reach::Filtered));
    layer.ensure(&net.vm, &closed()).unwrap();
    assert!(!listed(&net.vm).contains("10.0.3.231"));
    assert_eq!(net.alice.reach(port), Reach::Filtered);
    layer.ensure(&net.vm, &HostPolicy { mode: Mode::Monitor, ..closed() }).unwrap();
    assert_eq!(net.mallory.reach(port), Reach::Open, "monitored only");
    layer.ensure(&net.vm, &closed()).unwrap();
    assert_eq!(net.mallory.reach(port), Reach::Filtered);
    assert_eq!(layer.damage(), None);
    assert_owned(&net.vm);
}

#[test]
fn a_table_without_its_owner_stays_can_be_removed_and_is_adopted_by_the_next_agent() {
    let net = a_net();
    let layer = Layer::owning();
    layer.ensure(&net.vm, &closed()).unwrap();
    let error = net.vm.netns().run(async { remove_table() }).unwrap_err();
    assert!(matches!(error, FirewallError::Owned { .. }), "{error}");
    assert!(error.to_string().contains("systemctl stop postern-agent"), "{error}");
    let error = Layer::owning().ensure(&net.vm, &closed()).unwrap_err();
    assert!(matches!(error, FirewallError::Owned { .. }), "{error}");

    drop(layer);
    assert_eq!(net.mallory.reach(net.vm.tcp(22)), Reach::Filtered);
    doctor_says(&net.vm, "until the agent runs again");
    let layer = Layer::owning();
    layer.ensure(&net.vm, &closed()).unwrap();
    assert_owned(&net.vm);
    drop(layer);
    net.vm.must("nft", &["delete", "table", "inet", "postern"]);
    assert_eq!(net.mallory.reach(net.vm.tcp(22)), Reach::Open);

    // To a table without an owner and back.
    for layer in [Layer::owning(), Layer::new(), Layer::owning(), Layer::new()] {
        layer.ensure(&net.vm, &closed()).unwrap();
        layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), MINUTE)).unwrap();
        assert_eq!(net.mallory.reach(net.vm.tcp(22)), Reach::Filtered);
        assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
    }
    doctor_says(&net.vm, "POSTERN_TABLE_OWNER=off");
    remove(&net.vm);
    assert_eq!(net.mallory.reach(net.vm.tcp(22)), Reach::Open);
}
