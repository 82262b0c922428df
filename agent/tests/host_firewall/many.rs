//! Ten thousand windows.

use std::net::Ipv4Addr;
use std::time::Duration;

use postern_agent::clock;
use postern_agent::firewall::policy::HostPolicy;
use postern_agent::limits::StateLimits;
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

/// As many windows as an agent holds, from a network of their own.
fn full(network: u32) -> HostPolicy {
    let windows = StateLimits::default().windows;
    (0..u32::try_from(windows).unwrap())
        .fold(closed(), |policy, n| policy.open(SSH, address(network * 0x1_0000 + n), MINUTE * 10))
}

#[test]
fn i10_a_close_takes_less_than_a_second_whatever_opens_beside_it() {
    let net = a_net();
    let layer = Layer::new();
    // Other processes of a busy machine only add to a time: the shortest of three is the agent's own.
    let times = (0..3).map(|round| {
        let held = full(2 * round + 1).open(SSH, net.alice.v4(), MINUTE);
        layer.ensure(&net.vm, &held).unwrap();
        assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Open);
        // The state that the agent is asked for has none of these windows, and as many others.
        let wanted = full(2 * round + 2);
        let start = clock::boottime();
        layer.ensure(&net.vm, &held.common_with(&wanted)).unwrap();
        let closed_after = clock::boottime().since(start);
        assert_eq!(net.alice.reach(net.vm.tcp(22)), Reach::Filtered);
        let start = clock::boottime();
        layer.ensure(&net.vm, &wanted).unwrap();
        let opened_after = clock::boottime().since(start);
        println!("closed after {closed_after:?}; the others opened after another {opened_after:?}");
        // A close may arrive just after the agent has begun to open: it waits for that.
        closed_after + opened_after
    });
    let shortest = times.min().unwrap();
    assert!(shortest < Duration::from_secs(1), "{shortest:?}");
}
