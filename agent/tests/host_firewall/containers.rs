//! Ports that are dialled on the VM and delivered elsewhere: to a container, or to another port.

use postern_core::Mode;
use postern_tests::{Endpoint, Host, Net, Reach};

use crate::vm::{Layer, MINUTE, Opening as _, SNMP, SSH, a_net, closed, listed};

/// An address that is not the VM's, and that alice reaches through the VM.
const SERVICE: &str = "198.51.100.5";
const SERVICE6: &str = "2001:db8:96::5";

fn nft(vm: &Host, commands: &[&str]) {
    for command in commands {
        vm.must("nft", &command.split_whitespace().collect::<Vec<_>>());
    }
}

/// Makes the VM a router with a service address, as a node of Kubernetes is: port 22 of it leads to a pod's port 2222, port 2022 to
/// a pod's port 22, port 23 to the VM's own port 2222, and port 24 to the VM's own port 22. The hub serves as the pod.
fn a_router() -> Net {
    let net = a_net();
    for port in [22, 2222] {
        net.hub.listen_tcp(port);
    }
    net.hub.listen_udp(1161);
    net.vm.listen_tcp(2222);
    net.vm.must(
        "sh",
        &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"],
    );
    net.alice.must("ip", &["route", "add", SERVICE, "via", &net.vm.v4().to_string()]);
    net.alice.must("ip", &["route", "add", SERVICE6, "via", &net.vm.v6().to_string()]);
    let (hub, hub6) = (net.hub.v4(), net.hub.v6());
    nft(
        &net.vm,
        &[
            "add table inet kube",
            "add chain inet kube pre { type nat hook prerouting priority dstnat; }",
            "add chain inet kube post { type nat hook postrouting priority srcnat; }",
            &format!("add rule inet kube pre ip daddr {SERVICE} tcp dport 22 dnat ip to {hub}:2222"),
            &format!("add rule inet kube pre ip daddr {SERVICE} tcp dport 2022 dnat ip to {hub}:22"),
            &format!("add rule inet kube pre ip daddr {SERVICE} udp dport 161 dnat ip to {hub}:1161"),
            &format!("add rule inet kube pre ip6 daddr {SERVICE6} tcp dport 22 dnat ip6 to [{hub6}]:2222"),
            &format!("add rule inet kube pre ip daddr {SERVICE} tcp dport 23 redirect to :2222"),
            &format!("add rule inet kube pre ip daddr {SERVICE} tcp dport 24 redirect to :22"),
            "add rule inet kube post masquerade",
        ],
    );
    net
}

fn service_tcp(port: u16) -> Endpoint {
    Endpoint::Tcp((SERVICE.parse::<std::net::IpAddr>().unwrap(), port).into())
}

#[test]
fn i6_what_was_dialled_at_another_address_passes_through() {
    let net = a_router();
    let passing = [
        service_tcp(22),
        service_tcp(2022),
        service_tcp(23),
        Endpoint::Udp((SERVICE.parse::<std::net::IpAddr>().unwrap(), 161).into()),
        Endpoint::Tcp((SERVICE6.parse::<std::net::IpAddr>().unwrap(), 22).into()),
    ];
    for to in passing {
        assert_eq!(net.alice.reach(to), Reach::Open, "{to:?} before there is a table");
    }
    let layer = Layer::new();
    layer.ensure(&net.vm, &closed()).unwrap();
    for to in passing {
        assert_eq!(net.alice.reach(to), Reach::Open, "{to:?}");
    }
}

#[test]
fn i1_what_was_dialled_elsewhere_and_comes_to_a_protected_port_of_this_host_is_protected() {
    let net = a_router();
    let layer = Layer::new();
    layer.ensure(&net.vm, &closed()).unwrap();
    for to in [service_tcp(24), net.vm.tcp(22), net.vm.tcp6(22), net.vm.udp(161)] {
        assert_eq!(net.alice.reach(to), Reach::Filtered, "{to:?}");
    }
    // Every address of the host is the host, also one that another interface has.
    net.vm.must("ip", &["addr", "add", "203.0.113.77/32", "dev", "lo"]);
    net.alice.must("ip", &["route", "add", "203.0.113.77", "via", &net.vm.v4().to_string()]);
    let other = Endpoint::Tcp("203.0.113.77:22".parse().unwrap());
    assert_eq!(net.alice.reach(other), Reach::Filtered);
    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), MINUTE)).unwrap();
    assert_eq!([net.alice.reach(service_tcp(24)), net.alice.reach(other)], [Reach::Open; 2]);
}

#[test]
fn monitor_mode_counts_each_packet_once_wherever_it_is_delivered() {
    let net = a_router();
    nft(&net.vm, &["add rule inet kube pre ip daddr 192.0.2.10 tcp dport 22 redirect to :2222"]);
    let layer = Layer::new();
    let monitor = postern_agent::firewall::policy::HostPolicy { mode: Mode::Monitor, ..closed() };
    layer.ensure(&net.vm, &monitor).unwrap();
    // One is translated, one is not, one comes to a protected port from elsewhere, and one only passes through.
    for to in [net.vm.tcp(22), net.vm.udp(161), service_tcp(24), service_tcp(22)] {
        assert_eq!(net.alice.reach(to), Reach::Open, "{to:?}");
    }
    let counted = listed(&net.vm);
    assert!(counted.contains("counter packets 3 "), "{counted}");
    layer.ensure(&net.vm, &closed().open(SNMP, net.alice.v4(), MINUTE)).unwrap();
    assert_eq!(net.alice.reach(net.vm.udp(161)), Reach::Open);
}

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
