//! Ports that are dialled on the VM and delivered elsewhere: to a container, or to another port.

use postern_tests::Reach;

use crate::vm::{Layer, MINUTE, Opening as _, SSH, a_net, closed};

#[test]
fn i1_a_published_port_is_protected_by_the_number_that_was_dialled() {
    let net = a_net();
    // The broker's host serves as the container.
    net.hub.listen_tcp(2222);
    net.vm.must("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    for command in [
        "add table ip docker",
        "add chain ip docker pre { type nat hook prerouting priority dstnat; }",
        "add chain ip docker post { type nat hook postrouting priority srcnat; }",
        "add rule ip docker pre tcp dport { 22, 23 } dnat to 192.0.2.1:2222",
        "add rule ip docker post masquerade",
    ] {
        net.vm.must("nft", &command.split_whitespace().collect::<Vec<_>>());
    }
    let layer = Layer::new();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open, "before there is a table");

    layer.ensure(&net.vm, &closed()).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);
    assert_eq!(net.alice.reach(net.vm.tcp(23)), Reach::Open, "not protected");

    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), MINUTE)).unwrap();
    let connection = net.alice.connect(net.vm.tcp(22));
    assert_eq!(net.mallory.reach(net.vm.tcp(22)), Reach::Filtered);

    layer.ensure(&net.vm, &closed()).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);
    assert!(connection.echoes(), "i3");
}

#[test]
fn i1_a_redirected_port_is_protected_by_the_number_that_was_dialled_and_the_one_it_comes_to() {
    let net = a_net();
    net.vm.listen_tcp(2222);
    for command in [
        "add table inet nat",
        "add chain inet nat pre { type nat hook prerouting priority dstnat; }",
        // A listener elsewhere behind a protected port, and a protected listener behind another port.
        "add rule inet nat pre tcp dport 22 redirect to :2222",
        "add rule inet nat pre tcp dport 23 redirect to :22",
    ] {
        net.vm.must("nft", &command.split_whitespace().collect::<Vec<_>>());
    }
    let layer = Layer::new();
    layer.ensure(&net.vm, &closed()).unwrap();
    for to in [net.vm.tcp(22), net.vm.tcp6(22), net.vm.tcp(23)] {
        assert_eq!(net.alice.reach(to), Reach::Filtered, "{to:?}");
    }
    assert_eq!(net.alice.reach(net.vm.tcp(2222)), Reach::Open, "not protected by itself");
    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), MINUTE)).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
    assert_eq!(net.mallory.reach(net.vm.tcp(22)), Reach::Filtered);
}
