//! Kinds of resource and subscriptions that the broker may not read: it works where it can, and says what it cannot.

use postern_azure::Azure;
use postern_azure_sim::{Lab, refused};
use postern_provider::{CloudError, Health, Provider as _};

use crate::firewall::behind_a_firewall;
use crate::world::{DoubleWorld, SUBSCRIPTION};

const ALICE: &str = "203.0.113.7";
const OUTSIDE: &str = "203.0.113.99";
const HUB: &str = "00000000-0000-0000-0000-00000000000b";

/// The role of packaging/azure/role.json without these kinds.
fn role_without(kinds: &[&str]) -> Option<Vec<String>> {
    let role: serde_json::Value =
        serde_json::from_str(include_str!("../../../packaging/azure/role.json")).unwrap();
    let actions =
        role["Actions"].as_array().unwrap().iter().map(|action| action.as_str().unwrap().to_owned());
    Some(actions.filter(|action| !kinds.iter().any(|kind| action.contains(kind))).collect())
}

async fn works_without(world: &mut DoubleWorld, kinds: &[&str], missing: &str) {
    world.sim.permissions(role_without(kinds));
    world.restart();
    world.lock(1).await;
    let window = world.window(1, 1, "tcp/22", ALICE);
    world.open(&window).await;
    world.restart();
    let report = world.azure.assess(&["tcp/22".parse().unwrap()].into()).await;
    assert_eq!(report.assessments.len(), world.vms.len(), "{kinds:?}");
    assert!(report.unread.iter().any(|it| it.place.contains(missing)), "{kinds:?}: {:?}", report.unread);
    let sweep = world.azure.sweep().await;
    assert!(sweep.unread.iter().any(|it| it.place.contains(missing)), "{kinds:?}: {:?}", sweep.unread);
    assert!(!sweep.unread.iter().any(|it| it.may_hide(&window.target)), "{kinds:?}");
    let held = sweep.sightings.iter().find(|it| it.target == window.target).unwrap().held.as_ref();
    assert!(held.unwrap().windows.contains(&window), "{kinds:?}: an emptied store finds it");
    world.close(&window).await;
    assert!(!world.admits(ALICE, 1, 22), "{kinds:?}");
    world.azure.release(&world.target(1)).await.unwrap();
    world.sim.permissions(None);
}

#[tokio::test]
async fn i2_without_a_kind_of_resource_the_broker_drives_the_groups_and_says_what_is_missing() {
    let mut world = DoubleWorld::new().await;
    works_without(&mut world, &["azureFirewalls"], "Azure Firewalls of subscription").await;
    world.lab.load_balancer("lb", "198.51.100.9", 2222, 22, &world.vms[1]);
    works_without(&mut world, &["loadBalancers"], "load balancers of subscription").await;
    works_without(&mut world, &["publicIPAddresses/read"], "public address").await;
    let mut world = behind_a_firewall().await;
    works_without(&mut world, &["routeTables"], "route tables of subscription").await;
    works_without(&mut world, &["azureFirewalls"], "Azure Firewalls of subscription").await;
}

/// A world with a hub's subscription besides, whose firewalls cannot be read.
async fn with_a_hub(world: &mut DoubleWorld, status: u16, code: &'static str) {
    Lab::new(&world.sim, HUB, "hub").vnet("hub", &["10.9.0.0/16"]);
    world.settings.subscriptions.insert(HUB.to_owned());
    world.azure = std::sync::Arc::new(Azure::connect(world.settings.clone()).unwrap());
    let list = format!("/subscriptions/{HUB}/providers/Microsoft.Network/azureFirewalls");
    world.sim.fail("GET", &list, usize::MAX, refused(status, code));
}

#[tokio::test]
async fn i2_firewalls_of_another_subscription_that_cannot_be_read_hold_no_close_up() {
    for (status, code) in [(403, "AuthorizationFailed"), (500, "InternalServerError")] {
        // The default route leads to an appliance that may be a firewall of the hub.
        let mut world = behind_a_firewall().await;
        world.lab.route_table("out", "10.9.0.4");
        world.lock(0).await;
        let window = world.window(0, 1, "tcp/22", ALICE);
        world.open(&window).await;
        with_a_hub(&mut world, status, code).await;
        world.close(&window).await;
        assert!(!world.admits(ALICE, 0, 22), "{code}");
        assert_eq!(world.observe(0).await.windows, [].into(), "{code}");
        let sweep = world.azure.sweep().await;
        assert!(sweep.sightings.iter().any(|it| it.target == window.target), "{code}: {sweep:?}");
        assert_eq!(sweep.unread.len(), 1, "{code}: {sweep:?}");
        // A firewall in front that cannot be read just now is waited for; one that never can be is taken for none.
        let opened = world.azure.open(&window.target, &[window.clone()].into()).await;
        assert_eq!(
            matches!(opened, Err(CloudError::Unavailable { .. })),
            status == 500,
            "{code}: {opened:?}"
        );
        world.sim.forgive();
    }
}

#[tokio::test]
async fn i6_a_window_through_a_firewall_that_cannot_be_read_is_left_alone() {
    let mut world = behind_a_firewall().await;
    world.lock(0).await;
    let window = world.window(0, 1, "tcp/22", ALICE);
    world.open(&window).await;
    world.restart();
    world.sim.fail("GET", "/azureFirewalls", usize::MAX, refused(500, "InternalServerError"));
    assert!(world.azure.observe(&window.target).await.is_err(), "its rule could be taken for an edited one");
    assert!(world.azure.repair(&window.target).await.is_err());
    let sweep = world.azure.sweep().await;
    assert!(sweep.sightings.iter().all(|it| it.target != window.target), "{sweep:?}");
    let hides = |target| sweep.unread.iter().any(|it| it.may_hide(target));
    assert!(hides(&window.target), "it is not gone: {sweep:?}");
    assert!(!hides(&world.target(1)), "{sweep:?}");
    world.sim.forgive();
    assert_eq!(world.observe(0).await.windows, [window].into());
}

#[tokio::test]
async fn a_subscription_that_cannot_be_read_hides_its_own_targets_alone() {
    let mut world = DoubleWorld::new().await;
    world.lock(1).await;
    with_a_hub(&mut world, 403, "AuthorizationFailed").await;
    let everything = format!("/subscriptions/{HUB}/");
    world.sim.fail("GET", &everything, usize::MAX, refused(403, "AuthorizationFailed"));
    let sweep = world.azure.sweep().await;
    assert!(sweep.sightings.iter().any(|it| it.target == world.target(1)));
    let hub = format!(
        "azure:/subscriptions/{HUB}/resourceGroups/hub/providers/Microsoft.Compute/virtualMachines/x"
    );
    assert!(sweep.unread.iter().any(|it| it.may_hide(&hub.parse().unwrap())), "{sweep:?}");
    assert!(!sweep.unread.iter().any(|it| it.may_hide(&world.target(1))), "{sweep:?}");
    let report = world.azure.assess(&["tcp/22".parse().unwrap()].into()).await;
    assert!(report.assessments.iter().any(|it| matches!(it.health, Health::Unhealthy { .. })));
    assert!(!report.unread.is_empty());
    assert!(!world.admits(OUTSIDE, 1, 22) && SUBSCRIPTION != HUB);
}
