//! Edits of windows' rules, field by field, while the window is open and after its end. The fields are those of
//! `SecurityRulePropertiesFormat` and of `AzureFirewallNatRule` (azure-rest-api-specs, Microsoft.Network 2024-03-01).

use std::collections::BTreeSet;

use postern_core::plan::LayerWindow;
use postern_provider::{Observation, Provider as _};
use serde_json::{Value, json};

use crate::firewall::behind_a_firewall;
use crate::world::DoubleWorld;

const ALICE: &str = "203.0.113.7";
const OUTSIDE: &str = "203.0.113.99";

type Edit = fn(&mut Value);

/// Every field of a security rule, each edited in the ways that matter.
const OF_GROUPS: [(&str, Edit); 21] = [
    ("source *", |rule| one(rule, "sourceAddressPrefix", "*")),
    ("source Internet", |rule| one(rule, "sourceAddressPrefix", "Internet")),
    ("source 0.0.0.0/0", |rule| one(rule, "sourceAddressPrefix", "0.0.0.0/0")),
    ("another source", |rule| one(rule, "sourceAddressPrefix", OUTSIDE)),
    ("one more source", |rule| many(rule, "sourceAddressPrefix", &[ALICE, OUTSIDE])),
    ("halves of everyone", |rule| many(rule, "sourceAddressPrefix", &["0.0.0.0/1", "128.0.0.0/1"])),
    ("a group of machines", |rule| {
        many(rule, "sourceAddressPrefix", &[]);
        let office = format!("{NETWORK}/applicationSecurityGroups/office");
        rule["sourceApplicationSecurityGroups"] = json!([{"id": office}]);
    }),
    ("a source port", |rule| one(rule, "sourcePortRange", "40000-50000")),
    ("destination *", |rule| one(rule, "destinationAddressPrefix", "*")),
    ("destination VirtualNetwork", |rule| one(rule, "destinationAddressPrefix", "VirtualNetwork")),
    ("another destination", |rule| one(rule, "destinationAddressPrefix", "10.0.0.5")),
    ("one more destination", |rule| many(rule, "destinationAddressPrefix", &["10.0.0.4", "10.0.0.5"])),
    ("every port", |rule| one(rule, "destinationPortRange", "*")),
    ("a range of ports", |rule| one(rule, "destinationPortRange", "22-3389")),
    ("another port", |rule| one(rule, "destinationPortRange", "3389")),
    ("one more port", |rule| many(rule, "destinationPortRange", &["22", "3389"])),
    ("udp", |rule| rule["protocol"] = json!("Udp")),
    ("every protocol", |rule| rule["protocol"] = json!("*")),
    ("deny", |rule| rule["access"] = json!("Deny")),
    ("outbound", |rule| rule["direction"] = json!("Outbound")),
    ("another description", |rule| rule["description"] = json!("for the contractor")),
];

/// Every field of a rule of an Azure Firewall that translates.
const OF_FIREWALLS: [(&str, Edit); 11] = [
    ("source *", |rule| rule["sourceAddresses"] = json!(["*"])),
    ("another source", |rule| rule["sourceAddresses"] = json!([OUTSIDE])),
    ("one more source", |rule| rule["sourceAddresses"] = json!([ALICE, OUTSIDE])),
    ("an IP group", |rule| rule["sourceIpGroups"] = json!([format!("{NETWORK}/ipGroups/office")])),
    ("another address", |rule| rule["destinationAddresses"] = json!(["198.51.100.9"])),
    ("a range of ports", |rule| rule["destinationPorts"] = json!(["40000-50000"])),
    ("every protocol", |rule| rule["protocols"] = json!(["Any"])),
    ("udp", |rule| rule["protocols"] = json!(["UDP"])),
    ("another machine", |rule| rule["translatedAddress"] = json!("10.0.0.5")),
    ("another port", |rule| rule["translatedPort"] = json!("3389")),
    ("another description", |rule| rule["description"] = json!("for the contractor")),
];

const NETWORK: &str =
    "/subscriptions/00000000-0000-0000-0000-00000000000a/resourceGroups/Web/providers/Microsoft.Network";

/// Writes a field that has one value or a list: the other form goes.
fn one(rule: &mut Value, field: &str, value: &str) {
    let plural = if field.ends_with("Prefix") { "es" } else { "s" };
    rule[field] = json!(value);
    rule[format!("{field}{plural}")] = json!([]);
}

fn many(rule: &mut Value, field: &str, values: &[&str]) {
    let plural = if field.ends_with("Prefix") { "es" } else { "s" };
    rule[format!("{field}{plural}")] = json!(values);
    rule.as_object_mut().unwrap().remove(field);
}

impl DoubleWorld {
    /// Does the driver's work until the cloud holds the wanted windows: reads, closes, repairs, reads again and opens.
    async fn drive(&self, wanted: &BTreeSet<LayerWindow>) -> Observation {
        let target = self.target(0);
        let mut seen = self.observe(0).await;
        for _ in 0..3 {
            let unwanted: BTreeSet<LayerWindow> = seen
                .windows
                .union(&seen.partial)
                .filter(|window| !wanted.contains(*window))
                .cloned()
                .collect();
            if !unwanted.is_empty() {
                self.azure.close(&target, &unwanted).await.unwrap();
            }
            if !seen.strays.is_empty() || seen.drift.iter().any(|drift| drift.repairable) {
                self.azure.repair(&target).await.unwrap();
            }
            seen = self.observe(0).await;
            let missing: BTreeSet<LayerWindow> = wanted.difference(&seen.windows).cloned().collect();
            if !missing.is_empty() {
                self.azure.open(&target, &missing).await.unwrap();
                seen = self.observe(0).await;
            }
        }
        seen
    }

    fn edit_nat_rule(&self, edit: Edit) {
        self.sim.edit(&self.lab.id("azureFirewalls", "fw"), |firewall| {
            let collections = firewall["properties"]["natRuleCollections"].as_array_mut().unwrap();
            let is_managed = |it: &&mut Value| it["name"].as_str().unwrap().starts_with("postern-");
            let managed = collections.iter_mut().find(is_managed).unwrap();
            edit(&mut managed["properties"]["rules"][0]);
        });
    }

    fn windows_rules(&self, nsg: &str) -> Vec<String> {
        self.managed_rules(nsg).into_iter().filter(|name| name.starts_with("postern-allow-")).collect()
    }
}

/// Asserts that exactly the wanted windows are open, without drift.
fn is_as_wanted(seen: &Observation, wanted: &BTreeSet<LayerWindow>, what: &str) {
    assert_eq!((&seen.windows, &seen.partial), (wanted, &BTreeSet::new()), "{what}");
    assert_eq!((seen.drift.len(), seen.strays.len()), (0, 0), "{what}: {seen:?}");
}

#[tokio::test]
async fn i2_a_rule_of_a_window_that_is_edited_in_any_field_is_rewritten_during_the_window_and_goes_after_it()
{
    for (what, edit) in OF_GROUPS {
        for is_after in [false, true] {
            let mut world = DoubleWorld::new().await;
            world.lock(0).await;
            let window = world.window(0, 1, "tcp/22", ALICE);
            world.open(&window).await;
            let before = world.group_rules("nsg-subnet");
            world.edit_rule("nsg-subnet", "postern-allow-", edit);
            world.restart();
            let seen = world.observe(0).await;
            assert!(!seen.windows.contains(&window), "{what}: it is not open as it should be");
            assert_eq!(seen.strays.len(), 1, "{what}: {seen:?}");
            let wanted = if is_after { BTreeSet::new() } else { [window.clone()].into() };
            is_as_wanted(&world.drive(&wanted).await, &wanted, what);
            if is_after {
                assert_eq!(world.windows_rules("nsg-subnet"), [""; 0], "{what}");
            } else {
                assert_eq!(world.group_rules("nsg-subnet"), before, "{what}");
            }
            assert_eq!(world.admits(ALICE, 0, 22), !is_after, "{what}");
            assert!(!world.admits(OUTSIDE, 0, 22) && !world.admits(OUTSIDE, 0, 3389), "{what}");
            if is_after {
                world.azure.release(&world.target(0)).await.unwrap();
                assert_eq!(world.managed_rules("nsg-subnet"), [""; 0], "{what}");
            }
        }
    }
}

#[tokio::test]
async fn i2_a_close_and_another_lockdown_take_an_edited_rule_away() {
    for is_close in [true, false] {
        for (what, edit) in OF_GROUPS {
            let mut world = DoubleWorld::new().await;
            world.lock(0).await;
            let window = world.window(0, 1, "tcp/22", ALICE);
            world.open(&window).await;
            world.edit_rule("nsg-subnet", "postern-allow-", edit);
            world.restart();
            if is_close {
                world.close(&window).await;
                assert_eq!(world.windows_rules("nsg-nic"), [""; 0], "{what}");
            } else {
                assert!(!world.lock(0).await.changes.is_empty(), "{what}");
            }
            assert_eq!(world.windows_rules("nsg-subnet"), [""; 0], "{what}");
        }
    }
}

#[tokio::test]
async fn i2_a_rule_of_a_firewall_that_is_edited_in_any_field_is_rewritten_during_the_window_and_goes_after_it()
 {
    for (what, edit) in OF_FIREWALLS {
        for is_after in [false, true] {
            let mut world = behind_a_firewall().await;
            let customers = world.customer_collections();
            world.lock(0).await;
            let window = world.window(0, 1, "tcp/22", ALICE);
            world.open(&window).await;
            let before = world.firewall()["properties"]["natRuleCollections"].clone();
            world.edit_nat_rule(edit);
            world.restart();
            let seen = world.observe(0).await;
            assert!(!seen.windows.contains(&window), "{what}: it is not open as it should be");
            assert!(!seen.strays.is_empty(), "{what}: {seen:?}");
            let wanted = if is_after { BTreeSet::new() } else { [window.clone()].into() };
            is_as_wanted(&world.drive(&wanted).await, &wanted, what);
            if is_after {
                assert_eq!(
                    (world.customer_collections(), world.windows_rules("nsg")),
                    (customers, vec![]),
                    "{what}"
                );
            } else {
                assert_eq!(world.firewall()["properties"]["natRuleCollections"], before, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn i2_a_collection_of_a_firewall_that_is_renamed_keeps_no_window_open() {
    for is_after in [false, true] {
        let mut world = behind_a_firewall().await;
        world.lock(0).await;
        let window = world.window(0, 1, "tcp/22", ALICE);
        world.open(&window).await;
        let port = world.mapped(0, "tcp/22").await.unwrap();
        world.sim.edit(&world.lab.id("azureFirewalls", "fw"), |firewall| {
            let collections = firewall["properties"]["natRuleCollections"].as_array_mut().unwrap();
            let is_managed = |it: &&mut Value| it["name"].as_str().unwrap().starts_with("postern-");
            collections.iter_mut().find(is_managed).unwrap()["name"] = json!("elsewhere");
        });
        world.restart();
        let wanted = if is_after { BTreeSet::new() } else { [window.clone()].into() };
        is_as_wanted(&world.drive(&wanted).await, &wanted, "renamed");
        assert_eq!(world.gets_through(ALICE, port).is_some(), !is_after);
        let names = world.firewall()["properties"]["natRuleCollections"].to_string();
        assert!(!names.contains("elsewhere"), "{names}");
    }
}
