//! Ten thousand windows.

use std::net::Ipv4Addr;

use postern_agent::firewall::policy::HostPolicy;
use postern_tests::Reach;

use crate::vm::{Layer, MINUTE, Opening as _, SSH, a_net, closed, listed};

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + number)
}

/// Returns a policy with ten thousand windows: every tenth is a range, the others are single addresses.
fn ten_thousand() -> HostPolicy {
    (0..10_000u32).fold(closed(), |policy, n| {
        if n % 10 == 0 {
            policy.open(SSH, format!("{}/30", address(n * 4 + 0x10_0000)), MINUTE * 10)
        } else {
            policy.open(SSH, address(n), MINUTE * 10)
        }
    })
}

#[test]
fn ten_thousand_windows_are_held_and_one_beside_them_comes_and_goes() {
    let net = a_net();
    let layer = Layer::new();
    let many = ten_thousand();
    layer.ensure(&net.vm, &many).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);
    layer.ensure(&net.vm, &many.clone().open(SSH, net.alice.v4(), MINUTE)).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
    layer.ensure(&net.vm, &many).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);
    // More at once than fits a netlink message.
    layer.ensure(&net.vm, &closed().open(SSH, net.alice.v4(), MINUTE)).unwrap();
    assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
    assert_eq!(listed(&net.vm).matches(" expires ").count(), 1);
    layer.ensure(&net.vm, &many).unwrap();
    assert_eq!(listed(&net.vm).matches(" expires ").count(), 10_000);
    assert_eq!(layer.damage(), None);
}
