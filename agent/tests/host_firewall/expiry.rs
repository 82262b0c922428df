//! Ends, and the connections that outlive them.

use std::thread::sleep;
use std::time::Duration;

use postern_tests::Reach;

use crate::vm::{Layer, MINUTE, Opening as _, SNMP, SSH, a_net, closed};

/// The life of a short window: enough for everything that a test does inside it on a busy machine.
const SHORT: Duration = Duration::from_secs(4);
const AFTER: Duration = Duration::from_millis(4300);

#[test]
fn i2_i3_the_kernel_ends_a_window_by_itself_and_cuts_nothing() {
    let net = a_net();
    let layer = Layer::new();
    let policy = closed()
        .open(SSH, net.alice.v4(), SHORT)
        .open(SSH, net.alice.v6(), SHORT)
        .open(SSH, "198.51.100.0/24", SHORT)
        .open(SNMP, net.alice.v4(), SHORT);
    layer.ensure(&net.vm, &policy).unwrap();
    let connections = [net.alice.connect(net.vm.tcp(22)), net.alice.connect(net.vm.tcp6(22))];
    drop(layer);
    sleep(AFTER);
    for to in [net.vm.tcp(22), net.vm.tcp6(22), net.vm.udp(161)] {
        assert_eq!(net.alice.reach(to), Reach::Filtered, "{to:?}");
    }
    assert!(connections.iter().all(|connection| connection.echoes()));
}

#[test]
fn i3_connections_outlive_a_new_table_and_one_that_came_before_any() {
    let net = a_net();
    let before_any = [net.alice.connect(net.vm.tcp(22)), net.alice.connect(net.vm.tcp6(22))];
    Layer::new().ensure(&net.vm, &closed()).unwrap();
    assert!(before_any.iter().all(|connection| connection.echoes()), "older than the table");
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);

    let layer = Layer::new();
    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), MINUTE)).unwrap();
    let through_a_window = net.alice.connect(net.vm.tcp(22));
    for _ in 0..3 {
        // Each layer is that of a new agent, which replaces the whole table.
        Layer::new().ensure(&net.vm, &closed()).unwrap();
        assert!(through_a_window.echoes() && before_any.iter().all(|connection| connection.echoes()));
    }
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);
}

#[test]
fn an_end_is_moved_both_ways() {
    let net = a_net();
    let layer = Layer::new();
    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), SHORT)).unwrap();
    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), MINUTE)).unwrap();
    sleep(AFTER);
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open, "extended");
    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), SHORT)).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
    sleep(AFTER);
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered, "shortened");
}

#[test]
fn i2_a_policy_that_is_set_again_and_again_moves_no_end() {
    let net = a_net();
    let layer = Layer::new();
    let policy = closed().open(SSH, net.alice.v4(), SHORT).open(SSH, "198.51.100.0/24", SHORT);
    for _ in 0..43 {
        layer.ensure(&net.vm, &policy).unwrap();
        sleep(Duration::from_millis(100));
    }
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);
    assert_eq!(layer.damage(), None);
}
