//! Rules of the customer's in front of a window that shut it.

use postern_core::plan::LayerWindow;
use postern_provider::{CloudError, Provider as _};
use serde_json::json;

use crate::world::DoubleWorld;

const ALICE: &str = "203.0.113.7";

/// Opens windows of one grant on the second machine, for these ports and sources.
async fn open(world: &DoubleWorld, ports: &[&str], sources: &[&str]) -> Result<(), CloudError> {
    let windows = ports.iter().flat_map(|port| sources.iter().map(|source| world.window(1, 1, port, source)));
    let windows: std::collections::BTreeSet<LayerWindow> = windows.collect();
    world.azure.open(&world.target(1), &windows).await.map(drop)
}

async fn locked() -> DoubleWorld {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    world
}

#[tokio::test]
async fn i5_a_rule_in_front_that_may_shut_a_window_refuses_the_grant_by_its_name() {
    type Build = fn(&DoubleWorld);
    let deny = |world: &DoubleWorld, name: &str, priority, from: &str, ports: &str| {
        world.lab.rule("nsg-subnet", name, priority, "Deny", from, "*", ports);
    };
    let cases: [(&str, Build); 6] = [
        ("another port of the grant", |world| {
            world.lab.rule("nsg-subnet", "no", 100, "Deny", "*", "*", "3389");
        }),
        ("a service tag", |world| world.lab.rule("nsg-subnet", "no", 100, "Deny", "Internet", "*", "*")),
        ("a service tag of unknown addresses", |world| {
            world.lab.rule("nsg-subnet", "no", 100, "Deny", "AzureCloud", "*", "*");
        }),
        ("a range of source ports", |world| {
            world.lab.rule("nsg-subnet", "no", 100, "Deny", "*", "*", "22");
            world.edit_rule("nsg-subnet", "no", |rule| rule["sourcePortRange"] = json!("1024-65535"));
        }),
        ("a part of the source", |world| {
            world.lab.rule("nsg-subnet", "no", 100, "Deny", "203.0.113.64/26", "*", "*");
        }),
        ("a rule whose write is under way", |world| {
            world.lab.rule("nsg-subnet", "no", 100, "Deny", "*", "*", "22");
            world.sim.set_state(&world.lab.nsg_id("nsg-subnet"), "no", "Updating");
        }),
    ];
    for (what, build) in cases {
        let world = locked().await;
        build(&world);
        let opened = open(&world, &["tcp/22", "tcp/3389"], &["203.0.113.0/24"]).await;
        let Err(CloudError::Refused { reason }) = opened else { panic!("{what}: {opened:?}") };
        assert!(reason.contains("rule no (priority 100)"), "{what}: {reason}");
        assert!(world.managed_rules("nsg-subnet").iter().all(|it| !it.contains("-allow-")), "{what}");
    }
    // Several rules that cover the source together.
    let world = locked().await;
    deny(&world, "low", 100, "203.0.113.0/25", "22");
    deny(&world, "high", 101, "203.0.113.128/25", "22");
    let opened = open(&world, &["tcp/22"], &["203.0.113.0/24"]).await;
    assert!(
        matches!(&opened, Err(CloudError::Refused { reason }) if reason.contains("rule low")),
        "{opened:?}"
    );
}

#[tokio::test]
async fn i5_a_window_goes_before_a_rule_that_would_shut_it() {
    let world = locked().await;
    world.lab.rule("nsg-subnet", "no", 101, "Deny", "Internet", "*", "*");
    open(&world, &["tcp/22", "tcp/3389"], &[ALICE]).await.unwrap();
    assert!(world.admits(ALICE, 1, 22) && world.admits(ALICE, 1, 3389));
    assert_eq!(world.observe(1).await.drift, []);
    // There is no more room before it.
    let more = world.window(1, 2, "tcp/22", "203.0.113.8");
    let opened = world.azure.open(&more.target, &[more.clone()].into()).await;
    assert!(
        matches!(&opened, Err(CloudError::Refused { reason }) if reason.contains("rule no")),
        "{opened:?}"
    );
}

#[tokio::test]
async fn rules_that_shut_other_sources_are_no_obstacles() {
    let world = locked().await;
    world.lab.rule("nsg-subnet", "no", 100, "Deny", "198.51.100.0/24", "*", "*");
    world.lab.rule("nsg-subnet", "east-west", 101, "Deny", "VirtualNetwork", "*", "*");
    world.lab.rule("nsg-subnet", "web", 102, "Deny", "*", "*", "80");
    world.lab.rule("nsg-subnet", "v6", 103, "Deny", "2001:db8::/32", "fd00::5", "*");
    open(&world, &["tcp/22"], &[ALICE]).await.unwrap();
    assert!(world.admits(ALICE, 1, 22));
    let inside = world.window(1, 2, "tcp/22", "10.0.0.9");
    let opened = world.azure.open(&inside.target, &[inside.clone()].into()).await;
    assert!(
        matches!(&opened, Err(CloudError::Refused { reason }) if reason.contains("east-west")),
        "{opened:?}"
    );
}

#[tokio::test]
async fn i5_a_rule_that_shuts_a_window_later_is_drift_and_the_window_moves_before_it() {
    let world = locked().await;
    world.lab.rule("nsg-subnet", "yes", 100, "Allow", "192.0.2.0/24", "*", "443");
    world.lab.rule("nsg-subnet", "more", 101, "Allow", "192.0.2.0/24", "*", "443");
    let window = world.window(1, 1, "tcp/22", ALICE);
    world.open(&window).await;
    assert!(world.admits(ALICE, 1, 22));
    world.edit_rule("nsg-subnet", "more", |rule| {
        for (field, value) in
            [("access", "Deny"), ("sourceAddressPrefix", "*"), ("destinationPortRange", "22")]
        {
            rule[field] = json!(value);
        }
    });
    let observed = world.observe(1).await;
    assert_eq!((observed.windows, observed.partial), ([].into(), [window.clone()].into()));
    assert!(
        observed.drift.iter().any(|it| it.what.contains("rule more (priority 101)")),
        "{:?}",
        observed.drift
    );
    assert_eq!(observed.strays, [].into(), "it is Postern's rule as Postern wrote it");
    world.edit_rule("nsg-subnet", "yes", |rule| rule["priority"] = json!(3000));
    world.open(&window).await;
    assert!(world.admits(ALICE, 1, 22));
    let observed = world.observe(1).await;
    assert_eq!((observed.windows, observed.drift), ([window].into(), vec![]));
}
