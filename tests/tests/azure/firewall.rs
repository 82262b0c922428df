//! A machine behind an Azure Firewall: where to connect, and the host layer that sees the firewall instead of the
//! requester.

use std::net::IpAddr;

use postern_proto::v1::{GrantState, Layers};
use postern_tests::azure::{AzureOptions, AzureWorld, FIREWALL};
use postern_tests::{Reach, TCP};

#[test]
fn i5_a_window_passes_every_hop_under_the_source_that_each_sees() {
    let options = AzureOptions { layers: Layers::Both, firewall: true, locked: true, more: "", sections: "" };
    let world = AzureWorld::with(options);
    let port = world.net.vm.tcp(TCP);
    // Mallory stands where the firewall does.
    let firewall = &world.net.mallory;
    assert_eq!(firewall.reach(port), Reach::Filtered);
    let grant = world.alice.open(&world.ask());
    let connect_to = grant.windows[0].connect_to.clone();
    let (address, mapped) = connect_to.rsplit_once(':').unwrap();
    assert_eq!(address, FIREWALL);

    let arm = &world.azure.arm;
    let through = |from: IpAddr| {
        let (id, public) = (world.azure.lab.id("azureFirewalls", "fw"), FIREWALL.parse().unwrap());
        arm.through_firewall(from, &id, public, "TCP", mapped.parse().unwrap())
    };
    assert_eq!(through(world.net.alice.v4()), Some((world.net.vm.v4(), TCP)));
    assert_eq!(through(world.net.mallory.v4()), None, "the firewall tells sources apart");
    assert!(world.admits(firewall.v4()) && !world.admits(world.net.alice.v4()));
    assert_eq!(firewall.reach(port), Reach::Open, "the host layer lets in the source that it sees");
    let shown = world.alice.cli().run(&["show", &grant.id]);
    assert!(shown.out.contains(&connect_to), "{}", shown.out);

    let connection = firewall.connect(port);
    let closed = world.alice.revoke(&grant.id).unwrap();
    assert_eq!(closed.state(), GrantState::Closed);
    assert_eq!((through(world.net.alice.v4()), firewall.reach(port)), (None, Reach::Filtered));
    assert!(!world.admits(firewall.v4()));
    assert!(connection.echoes(), "I3");
}
