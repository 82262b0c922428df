//! Ports that containers publish: dialled on the VM, delivered elsewhere.

use postern_tests::Reach;

use crate::vm::{Layer, MINUTE, Opening as _, SSH, a_net, closed};

#[test]
fn i1_a_published_port_is_protected_by_the_number_that_was_dialled() {
    let net = a_net();
    // The broker's host plays the container.
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
