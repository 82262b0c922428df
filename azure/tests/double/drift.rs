//! Edits by hand, and changes of the machine: they are found, reported and repaired from the state that Azure holds alone.

use postern_core::plan::LayerWindow;
use postern_provider::{CloudError, Observation, Provider as _};
use serde_json::json;

use crate::world::DoubleWorld;

const ALICE: &str = "203.0.113.7";
const OUTSIDE: &str = "203.0.113.99";

/// A world in which both machines are locked and one window is open on the first.
async fn open_world() -> (DoubleWorld, LayerWindow) {
    let world = DoubleWorld::new().await;
    world.lock(0).await;
    world.lock(1).await;
    let window = world.window(0, 1, "tcp/22", ALICE);
    world.open(&window).await;
    assert!(world.admits(ALICE, 0, 22) && !world.admits(OUTSIDE, 0, 22));
    (world, window)
}

impl DoubleWorld {
    pub(crate) fn edit_rule(&self, nsg: &str, begins: &str, change: impl Fn(&mut serde_json::Value)) {
        self.sim.edit(&self.lab.nsg_id(nsg), |nsg| {
            let rules = nsg["properties"]["securityRules"].as_array_mut().unwrap();
            let of = |rule: &&mut serde_json::Value| rule["name"].as_str().unwrap().starts_with(begins);
            change(&mut rules.iter_mut().find(of).unwrap()["properties"]);
        });
    }

    fn delete_rules(&self, nsg: &str, begins: &str) {
        self.sim.edit(&self.lab.nsg_id(nsg), |nsg| {
            let rules = nsg["properties"]["securityRules"].as_array_mut().unwrap();
            rules.retain(|rule| !rule["name"].as_str().unwrap().starts_with(begins));
        });
    }

    /// Returns an observation before a repair, and one after it.
    async fn repaired(&self) -> (Observation, Observation) {
        let before = self.observe(0).await;
        self.azure.repair(&self.target(0)).await.unwrap();
        (before, self.observe(0).await)
    }
}

#[tokio::test]
async fn a_window_that_was_widened_is_no_window_and_is_taken_away() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(&str, Change); 6] = [
        ("from everywhere", |rule| {
            rule["sourceAddressPrefix"] = json!("*");
            rule["sourceAddressPrefixes"] = json!([]);
        }),
        ("to every port", |rule| {
            rule["destinationPortRange"] = json!("*");
            rule["destinationPortRanges"] = json!([]);
        }),
        ("to every machine", |rule| {
            rule["destinationAddressPrefix"] = json!("*");
            rule["destinationAddressPrefixes"] = json!([]);
        }),
        ("by every protocol", |rule| rule["protocol"] = json!("*")),
        ("from one more", |rule| {
            rule["sourceAddressPrefixes"] = json!([ALICE, OUTSIDE]);
            rule.as_object_mut().unwrap().remove("sourceAddressPrefix");
        }),
        ("not at all", |rule| rule["access"] = json!("Deny")),
    ];
    for (what, change) in changes {
        let (world, window) = open_world().await;
        world.edit_rule("nsg-subnet", "postern-allow-", change);
        let (before, after) = world.repaired().await;
        assert!(!before.windows.contains(&window), "{what}: it is not open as it should be");
        assert!(before.drift.iter().any(|it| it.repairable && it.what.contains("postern-allow-")), "{what}");
        assert_eq!(after.drift, [], "{what}");
        assert!(!world.admits(OUTSIDE, 0, 22) && !world.admits(OUTSIDE, 0, 3389), "{what}");
        // The driver's next step opens it whole again.
        world.open(&window).await;
        let whole = world.observe(0).await;
        assert_eq!((whole.windows, whole.partial), ([window].into(), [].into()), "{what}");
        assert!(world.admits(ALICE, 0, 22), "{what}");
    }
}

#[tokio::test]
async fn a_window_that_is_missing_in_one_group_is_partial() {
    let (world, window) = open_world().await;
    world.delete_rules("nsg-nic", "postern-allow-");
    let observed = world.observe(0).await;
    assert_eq!((observed.windows, observed.partial), ([].into(), [window.clone()].into()));
    assert!(!world.admits(ALICE, 0, 22));
    world.open(&window).await;
    let observed = world.observe(0).await;
    assert_eq!((observed.windows, observed.partial), ([window].into(), [].into()));
}

#[tokio::test]
async fn a_window_moved_behind_the_denies_is_found() {
    let (world, _) = open_world().await;
    world.edit_rule("nsg-subnet", "postern-allow-", |rule| rule["priority"] = json!(4000));
    assert!(!world.admits(ALICE, 0, 22));
    let (_, after) = world.repaired().await;
    for window in after.windows {
        assert!(world.admits(ALICE, 0, 22), "{window:?} is said to be open");
    }
}

#[tokio::test]
async fn a_deny_that_is_edited_or_deleted_is_put_back() {
    for edit in [
        (|world: &DoubleWorld| world.delete_rules("nsg-subnet", "postern-deny-")) as fn(&DoubleWorld),
        |world| world.edit_rule("nsg-subnet", "postern-deny-", |rule| rule["access"] = json!("Allow")),
        |world| {
            world.edit_rule("nsg-subnet", "postern-deny-", |rule| {
                rule["sourceAddressPrefix"] = json!("192.0.2.0/24");
            });
        },
    ] {
        let (world, window) = open_world().await;
        world.delete_rules("nsg-nic", "postern-deny-");
        edit(&world);
        let (before, after) = world.repaired().await;
        assert!(before.drift.iter().any(|it| it.repairable), "{before:?}");
        assert_eq!(after.drift, []);
        assert_eq!(after.windows, [window].into(), "no window was touched");
        assert!(!world.admits(OUTSIDE, 0, 22) && world.admits(ALICE, 0, 22));
    }
}

#[tokio::test]
async fn what_terraform_wipes_is_put_back_while_it_is_known_that_it_was_there() {
    let (world, window) = open_world().await;
    // `terraform apply` with inline rules: everything that is not in the plan goes.
    for nsg in ["nsg-subnet", "nsg-nic"] {
        world.delete_rules(nsg, "postern-");
    }
    assert!(world.admits(OUTSIDE, 0, 22));
    let sweep = world.azure.sweep().await;
    let sighting = sweep.sightings.iter().find(|it| it.target == world.target(0)).unwrap();
    let held = sighting.held.as_ref().unwrap();
    assert_eq!(held.windows, [].into());
    assert!(held.drift.iter().any(|it| it.repairable), "{held:?}");
    world.azure.repair(&world.target(0)).await.unwrap();
    assert!(!world.admits(OUTSIDE, 0, 22));
    world.open(&window).await;
    assert!(world.admits(ALICE, 0, 22));
}

#[tokio::test]
async fn i2_a_broker_that_knows_nothing_finds_every_window_and_closes_it() {
    let (mut world, window) = open_world().await;
    let other = world.window(1, 2, "tcp/3389", "2001:db8::/64");
    world.open(&other).await;
    world.restart();
    let sweep = world.azure.sweep().await;
    assert_eq!(sweep.unread, []);
    for window in [&window, &other] {
        let sighting = sweep.sightings.iter().find(|it| it.target == window.target).unwrap();
        assert_eq!(sighting.held.as_ref().unwrap().windows, [window.clone()].into());
        world.close(window).await;
    }
    assert!(!world.admits(ALICE, 0, 22));
}

#[tokio::test]
async fn i2_a_deleted_machine_strands_no_rule() {
    let (mut world, window) = open_world().await;
    world.sim.remove(&world.vms[0].id);
    world.sim.remove(&world.vms[0].interface);
    let observed = world.azure.observe(&window.target).await;
    assert!(matches!(observed, Err(CloudError::NotFound { .. })), "{observed:?}");
    world.restart();
    let sweep = world.azure.sweep().await;
    let sighting = sweep.sightings.iter().find(|it| it.target == window.target);
    assert!(sighting.is_some(), "{sweep:?}");
    world.azure.repair(&window.target).await.unwrap();
    let others = world.vms[1].id.clone();
    for nsg in ["nsg-subnet", "nsg-nic"] {
        let left: Vec<_> = world
            .group_rules(nsg)
            .into_iter()
            .filter(|rule| rule["name"].as_str().unwrap().starts_with("postern-"))
            .filter(|rule| !rule["properties"]["description"].as_str().unwrap().contains("vm-2"))
            .collect();
        assert!(left.is_empty(), "{left:?} {others}");
    }
    assert!(!world.admits(OUTSIDE, 1, 22), "the other machine stays shut");
}

#[tokio::test]
async fn a_machine_whose_interface_moved_to_another_group_is_shut_there_and_cleaned_up_here() {
    let (mut world, window) = open_world().await;
    world.lab.nsg("nsg-new");
    world.lab.rule("nsg-new", "ssh", 300, "Allow", "*", "*", "22");
    world.sim.edit(&world.vms[0].interface, |nic| {
        nic["properties"]["networkSecurityGroup"] = json!({"id": world.lab.nsg_id("nsg-new")});
    });
    world.restart();
    let sweep = world.azure.sweep().await;
    let held = sweep.sightings.iter().find(|it| it.target == window.target).unwrap().held.clone().unwrap();
    assert!(held.drift.iter().any(|it| it.repairable), "{held:?}");
    assert_eq!(held.windows, [].into(), "it is not open in every group on the way");
    world.azure.repair(&window.target).await.unwrap();
    assert_eq!(world.managed_rules("nsg-nic"), [] as [&str; 0], "nothing is left where it was");
    assert_eq!(world.observe(0).await.drift, [], "the subnet's group keeps every source out");
    assert!(!world.admits(OUTSIDE, 0, 22));
    world.open(&window).await;
    assert!(world.admits(ALICE, 0, 22));
    world.close(&window).await;
    world.azure.release(&world.target(0)).await.unwrap();
    assert_eq!(world.managed_rules("nsg-new"), [] as [&str; 0]);
}

#[tokio::test]
async fn a_deleted_group_is_no_group_on_the_way() {
    let (world, window) = open_world().await;
    world.sim.edit(&world.vms[0].interface, |nic| {
        nic["properties"].as_object_mut().unwrap().remove("networkSecurityGroup");
    });
    world.sim.remove(&world.lab.nsg_id("nsg-nic"));
    let observed = world.observe(0).await;
    assert_eq!((observed.windows, observed.drift), ([window.clone()].into(), vec![]));
    world.close(&window).await;
    assert!(!world.admits(ALICE, 0, 22));
    // Deleted between two reads: the provider's memory of it does not keep a window open.
    let (world, window) = open_world().await;
    world.sim.edit(&world.vms[0].interface, |nic| {
        nic["properties"].as_object_mut().unwrap().remove("networkSecurityGroup");
    });
    world.sim.remove(&world.lab.nsg_id("nsg-nic"));
    world.close(&window).await;
    assert!(!world.admits(ALICE, 0, 22));
}

#[tokio::test]
async fn a_machine_with_a_new_address_is_shut_at_that_one_too() {
    let (mut world, window) = open_world().await;
    world.sim.edit(&world.vms[0].interface, |nic| {
        nic["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"] = json!("10.0.0.44");
    });
    assert!(world.admits(OUTSIDE, 0, 22), "the rules are for the old address");
    world.restart();
    let observed = world.observe(0).await;
    assert_eq!(observed.windows, [].into());
    assert!(observed.drift.iter().any(|it| it.repairable), "{observed:?}");
    world.azure.repair(&world.target(0)).await.unwrap();
    assert!(!world.admits(OUTSIDE, 0, 22));
    world.open(&window).await;
    assert!(world.admits(ALICE, 0, 22));
    assert_eq!(world.observe(0).await.drift, []);
}

#[tokio::test]
async fn i6_rules_that_only_look_like_posterns_are_left_alone() {
    let (world, window) = open_world().await;
    world.lab.rule("nsg-subnet", "postern-office", 2000, "Allow", "192.0.2.0/24", "*", "8080");
    world.lab.rule("nsg-subnet", "postern-allow-me", 2001, "Allow", "192.0.2.0/24", "*", "8081");
    let customers = |world: &DoubleWorld| -> Vec<_> {
        let all = world.group_rules("nsg-subnet").into_iter();
        all.filter(|rule| rule["properties"]["description"] == "customer").collect()
    };
    let before = customers(&world);
    assert_eq!(world.observe(0).await.drift, []);
    world.azure.repair(&world.target(0)).await.unwrap();
    world.close(&window).await;
    world.azure.release(&world.target(0)).await.unwrap();
    world.azure.release(&world.target(1)).await.unwrap();
    assert_eq!(customers(&world), before);
}

#[tokio::test]
async fn i6_the_rules_of_another_postern_in_the_same_subscription_are_left_alone() {
    let (world, window) = open_world().await;
    let mut settings = world.settings.clone();
    settings.deployment = "other.example".into();
    let other = postern_azure::Azure::connect(settings).unwrap();
    let sweep = other.sweep().await;
    assert!(sweep.sightings.iter().all(|it| it.held.as_ref().is_none_or(|held| held.windows.is_empty())));
    assert_eq!(other.observe(&window.target).await.unwrap().windows, [].into());
    other.close(&window.target, &[window.clone()].into()).await.unwrap();
    assert_eq!(other.release(&window.target).await.unwrap().changes, []);
    assert_eq!(world.observe(0).await.windows, [window].into());
}
