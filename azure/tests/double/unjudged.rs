//! Networks that cannot be read whole, and legal names.

use postern_azure_sim::Lab;
use postern_provider::{CloudError, Health, Provider as _};
use serde_json::json;

use crate::world::{DoubleWorld, SUBSCRIPTION, posterns_first};

const ALICE: &str = "203.0.113.7";

impl DoubleWorld {
    async fn judged(&self, number: usize) -> Health {
        let report = self.azure.assess(&["tcp/22".parse().unwrap()].into()).await;
        let one = report.assessments.into_iter().find(|one| one.target == self.target(number));
        one.expect("the machine is in the list").health
    }
}

#[tokio::test]
async fn i1_a_machine_of_which_a_part_cannot_be_read_is_not_called_healthy() {
    type Change = fn(&DoubleWorld);
    let cases: [(&str, &str, Change); 4] = [
        ("an address block", "10.0.0.16/28", |world| {
            world.sim.edit(&world.vms[1].interface, |nic| {
                let block = json!({"name": "block", "properties": {
                    "privateIPAddress": "10.0.0.16/28", "privateIPAddressPrefixLength": 28,
                    "subnet": nic["properties"]["ipConfigurations"][0]["properties"]["subnet"]
                }});
                nic["properties"]["ipConfigurations"].as_array_mut().unwrap().push(block);
            });
        }),
        ("a group that no list shows", "nsg-hidden", |world| {
            let hidden = world.lab.nsg_id("nsg-hidden");
            world.sim.edit(&world.vms[1].interface, |nic| {
                nic["properties"]["networkSecurityGroup"] = json!({"id": hidden});
            });
        }),
        ("a group whose id cannot be read", "cannot be read", |world| {
            world.sim.edit(&world.vms[1].interface, |nic| {
                nic["properties"]["networkSecurityGroup"] = json!({"id": "/odd"});
            });
        }),
        ("a second interface without a group", "10.1.0.7", |world| {
            world.lab.vnet("other", &["10.1.0.0/24"]);
            let subnet = world.lab.subnet("other", "open", "10.1.0.0/24", None, None);
            let second = world.lab.vm("second", &subnet, &["10.1.0.7"], None);
            world.sim.remove(&second.id);
            let vm = world.vms[1].id.clone();
            world.sim.edit(&second.interface, |nic| nic["properties"]["virtualMachine"] = json!({"id": vm}));
            world.sim.edit(&vm, |vm| {
                let interfaces = &mut vm["properties"]["networkProfile"]["networkInterfaces"];
                interfaces.as_array_mut().unwrap().push(json!({"id": second.interface}));
            });
        }),
    ];
    for (what, words, change) in cases {
        let world = DoubleWorld::new().await;
        world.lock(1).await;
        assert!(matches!(world.judged(1).await, Health::Healthy { .. }), "{what}");
        change(&world);
        let health = world.judged(1).await;
        assert!(
            matches!(&health, Health::NotApplicable { reason } if reason.contains(words)),
            "{what}: {health:?}"
        );
        let drift = world.observe(1).await.drift;
        assert!(drift.iter().any(|it| it.what.contains(words)), "{what}: {drift:?}");
        let refused = world.azure.plan_lockdown(&world.order(1, posterns_first())).await;
        assert!(
            matches!(&refused, Err(CloudError::Refused { reason }) if reason.contains(words)),
            "{what}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn i1_a_machine_with_an_interface_that_azure_does_not_show_is_not_called_healthy() {
    for (id, words) in [("hidden", "does not show its interface hidden"), ("/odd", "cannot be read")] {
        let world = DoubleWorld::new().await;
        world.lock(1).await;
        let id = if id.starts_with('/') { id.to_owned() } else { world.lab.id("networkInterfaces", id) };
        world.sim.edit(&world.vms[1].id, |vm| {
            let interfaces = &mut vm["properties"]["networkProfile"]["networkInterfaces"];
            interfaces.as_array_mut().unwrap().push(json!({"id": id}));
        });
        let health = world.judged(1).await;
        assert!(
            matches!(&health, Health::NotApplicable { reason } if reason.contains(words)),
            "{id}: {health:?}"
        );
        let drift = world.observe(1).await.drift;
        assert!(drift.iter().any(|it| it.what.contains(words)), "{id}: {drift:?}");
        let refused = world.azure.plan_lockdown(&world.order(1, posterns_first())).await;
        assert!(
            matches!(&refused, Err(CloudError::Refused { reason }) if reason.contains(words)),
            "{id}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_parsed_is_named() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    let odd = world.lab.id("azureFirewalls", "odd");
    world.sim.put(&odd, json!({"name": "odd", "properties": {"natRuleCollections": "none"}}));
    world.sim.edit(&world.vms[0].id, |vm| vm["properties"]["networkProfile"] = json!("none"));
    let report = world.azure.assess(&["tcp/22".parse().unwrap()].into()).await;
    for name in ["odd", "vm-1"] {
        let is_named = report.unread.iter().any(|it| it.place.to_lowercase().contains(name));
        assert!(is_named, "{name}: {:?}", report.unread);
    }
    assert!(report.assessments.iter().any(|it| it.target == world.target(1)), "the others are judged");
    let sweep = world.azure.sweep().await;
    assert!(sweep.unread.iter().any(|it| it.place.contains("odd")), "{:?}", sweep.unread);
    assert!(sweep.sightings.iter().any(|it| it.target == world.target(1)), "{sweep:?}");
}

#[tokio::test]
async fn interfaces_and_groups_of_resource_groups_with_any_legal_name_are_driven() {
    for name in ["Netz_(Büro)", "資源.群組"] {
        let mut world = DoubleWorld::new().await;
        let lab = Lab::new(&world.sim, SUBSCRIPTION, name);
        lab.nsg("far");
        lab.rule("far", "ssh", 300, "Allow", "*", "*", "22");
        let subnet = format!("{}/subnets/web", world.lab.id("virtualNetworks", "net"));
        let far = lab.vm("far", &subnet, &["10.0.0.8"], Some("far"));
        let vm = world.vms[1].id.clone();
        world.sim.remove(&far.id);
        world.sim.edit(&far.interface, |nic| nic["properties"]["virtualMachine"] = json!({"id": vm}));
        world.sim.edit(&vm, |vm| {
            vm["properties"]["networkProfile"]["networkInterfaces"] = json!([{"id": far.interface}]);
        });
        world.sim.edit(&world.vms[1].interface.clone(), |nic| {
            nic["properties"].as_object_mut().unwrap().remove("virtualMachine");
        });
        world.vms[1].interface = far.interface.clone();
        world.lock(1).await;
        assert!(!world.admits(ALICE, 1, 22), "{name}");
        let window = world.window(1, 1, "tcp/22", ALICE);
        world.open(&window).await;
        assert!(world.admits(ALICE, 1, 22), "{name}");
        let sweep = world.azure.sweep().await;
        let held = sweep.sightings.iter().find(|it| it.target == window.target).unwrap().held.as_ref();
        assert_eq!(held.unwrap().windows, [window.clone()].into(), "{name}");
        world.close(&window).await;
        world.azure.release(&window.target).await.unwrap();
        assert!(world.sim.rules(&lab.nsg_id("far")).iter().all(|rule| rule == "ssh"), "{name}");
    }
}

#[tokio::test]
async fn a_machine_that_cannot_be_a_target_is_named() {
    let world = DoubleWorld::new().await;
    let lab = Lab::new(&world.sim, SUBSCRIPTION, "Web (old)".replace(' ', "").as_str());
    let subnet = format!("{}/subnets/web", world.lab.id("virtualNetworks", "net"));
    lab.vm("odd", &subnet, &["10.0.0.8"], None);
    let report = world.azure.assess(&["tcp/22".parse().unwrap()].into()).await;
    assert!(report.unread.iter().any(|it| it.place.contains("odd")), "{:?}", report.unread);
}

#[tokio::test]
async fn sources_that_lie_within_each_other_open_and_close() {
    let world = DoubleWorld::new().await;
    world.lock(1).await;
    let sources = [
        "203.0.113.0/24",
        "203.0.113.7",
        "203.0.113.0/28",
        "198.51.100.0/24",
        "2001:db8::/32",
        "2001:db8::7",
    ];
    let windows: std::collections::BTreeSet<_> =
        sources.iter().map(|source| world.window(1, 1, "tcp/22", source)).collect();
    world.azure.open(&world.target(1), &windows).await.unwrap();
    assert!(
        world.admits(ALICE, 1, 22)
            && world.admits("203.0.113.200", 1, 22)
            && world.admits("2001:db8::9", 1, 22)
    );
    assert_eq!(world.observe(1).await.windows, windows);
    let wide = world.window(1, 1, "tcp/22", "203.0.113.0/24");
    world.close(&wide).await;
    assert!(world.admits(ALICE, 1, 22) && !world.admits("203.0.113.200", 1, 22));
    world.azure.close(&world.target(1), &windows).await.unwrap();
    assert_eq!(world.managed_rules("nsg-subnet").iter().filter(|name| name.contains("-allow-")).count(), 0);
}
