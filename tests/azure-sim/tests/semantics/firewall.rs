//! Azure Firewall: its translations are fields of it, and a slow write replaces all of it.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{Cloud, ip};

const PUBLIC: &str = "198.51.100.1";

async fn cloud() -> (Cloud, String) {
    let cloud = Cloud::new().await;
    let subnet = cloud.lab.subnet("net", "AzureFirewallSubnet", "10.0.1.0/26", None, None);
    let firewall = cloud.lab.firewall("fw", "10.0.1.4", PUBLIC, &subnet);
    (cloud, firewall)
}

fn translation(name: &str, from: &str, port: &str, to: (&str, &str)) -> Value {
    json!({
        "name": name, "sourceAddresses": [from], "destinationAddresses": [PUBLIC], "destinationPorts": [port],
        "protocols": ["TCP"], "translatedAddress": to.0, "translatedPort": to.1
    })
}

fn collection(name: &str, priority: i64, rules: Vec<Value>) -> Value {
    json!({"name": name, "properties": {"priority": priority, "action": {"type": "Dnat"}, "rules": rules}})
}

/// The firewall with these collections beside those that it has.
async fn with(cloud: &Cloud, firewall: &str, collections: Vec<Value>) -> Value {
    let mut body = cloud.get(firewall).await.good();
    body["properties"]["natRuleCollections"].as_array_mut().unwrap().extend(collections);
    body
}

impl Cloud {
    fn leads(&self, from: &str, firewall: &str, port: u16) -> Option<String> {
        let end = self.sim.through_firewall(ip(from), firewall, ip(PUBLIC), "Tcp", port);
        end.map(|(address, port)| format!("{address}:{port}"))
    }
}

#[tokio::test]
async fn a_translation_changes_the_address_and_the_port() {
    let (cloud, firewall) = cloud().await;
    let rule = translation("ssh", "203.0.113.0/24", "30001-30002", ("10.0.0.4", "22"));
    let body = with(&cloud, &firewall, vec![collection("postern", 300, vec![rule])]).await;
    assert_eq!(cloud.put(&firewall, &body).await.status, 200);
    let translated = Some("10.0.0.4:22".to_owned());
    assert_eq!(cloud.leads("203.0.113.7", &firewall, 30001), translated);
    assert_eq!(cloud.leads("203.0.113.7", &firewall.to_uppercase(), 30002), translated);
    assert_eq!(cloud.leads("203.0.113.7", &firewall, 30003), None);
    assert_eq!(cloud.leads("203.0.114.7", &firewall, 30001), None);
    assert_eq!(cloud.leads("203.0.114.7", &firewall, 443), Some("10.9.9.9:443".into()), "customer");
    let elsewhere = |public: &str, protocol: &str| {
        cloud.sim.through_firewall(ip("203.0.113.7"), &firewall, ip(public), protocol, 30001)
    };
    assert_eq!(elsewhere("198.51.100.2", "Tcp"), None);
    assert_eq!(elsewhere(PUBLIC, "Udp"), None);
}

#[tokio::test]
async fn the_collection_of_the_lowest_priority_decides() {
    let (cloud, firewall) = cloud().await;
    let to = |address: &'static str| vec![translation("ssh", "*", "30001", (address, "22"))];
    let both = vec![collection("late", 400, to("10.0.0.5")), collection("early", 300, to("10.0.0.4"))];
    cloud.put(&firewall, &with(&cloud, &firewall, both).await).await.good();
    assert_eq!(cloud.leads("203.0.113.7", &firewall, 30001), Some("10.0.0.4:22".into()));
}

#[tokio::test]
async fn a_firewall_with_a_policy_has_no_rules_of_its_own() {
    let cloud = Cloud::new().await;
    let subnet = cloud.lab.subnet("net", "AzureFirewallSubnet", "10.0.1.0/26", None, None);
    let firewall = cloud.lab.policy_firewall("fw", "10.0.1.4", PUBLIC, &subnet);
    assert_eq!(cloud.leads("203.0.113.7", &firewall, 443), None);
    let before = cloud.get(&firewall).await.good();
    let added = collection("postern", 300, vec![translation("ssh", "*", "30001", ("10.0.0.4", "22"))]);
    let reply = cloud.put(&firewall, &with(&cloud, &firewall, vec![added]).await).await;
    assert_eq!(reply.error(), (400, "AzureFirewallPolicyAndRuleCollectionsConflict"));
    assert_eq!(cloud.get(&firewall).await.good(), before);
    assert_eq!(cloud.leads("203.0.113.7", &firewall, 30001), None);
}

#[tokio::test]
async fn what_is_no_translation_is_refused_and_changes_nothing() {
    let (cloud, firewall) = cloud().await;
    let before = cloud.get(&firewall).await.good();
    let good = || translation("ssh", "*", "30001", ("10.0.0.4", "22"));
    let changed = |field: &str, value: Value| {
        let mut rule = good();
        rule[field] = value;
        vec![collection("postern", 300, vec![rule])]
    };
    let collections = "AzureFirewallRuleCollectionConflict";
    let priority = "AzureFirewallInvalidPriority";
    let names = "AzureFirewallRuleNameConflict";
    let incomplete = "AzureFirewallNatRuleIncomplete";
    for (added, code) in [
        (vec![collection("customer", 300, vec![good()])], collections),
        (vec![collection("postern", 200, vec![good()])], collections),
        (vec![collection("postern", 99, vec![good()])], priority),
        (vec![collection("postern", 65_001, vec![good()])], priority),
        (vec![collection("postern", 300, vec![good(), good()])], names),
        (changed("name", json!("")), names),
        (changed("destinationAddresses", json!(["198.51.100.99"])), "AzureFirewallNatRuleInvalidDestination"),
        (changed("translatedAddress", Value::Null), incomplete),
        (changed("translatedPort", Value::Null), incomplete),
        (changed("sourceAddresses", json!([])), incomplete),
        (changed("destinationPorts", json!([])), incomplete),
        (changed("protocols", json!([])), incomplete),
    ] {
        let body = with(&cloud, &firewall, added.clone()).await;
        assert_eq!(cloud.put(&firewall, &body).await.error(), (400, code), "{added:?}");
        assert_eq!(cloud.get(&firewall).await.good(), before, "{added:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_translation_is_in_force_once_the_slow_write_is_done() {
    const SPAN: Duration = Duration::from_secs(240);
    let (cloud, firewall) = cloud().await;
    cloud.sim.settle("Microsoft.Network/azureFirewalls", SPAN);
    let added = collection("postern", 300, vec![translation("ssh", "*", "30001", ("10.0.0.4", "22"))]);
    let reply = cloud.put(&firewall, &with(&cloud, &firewall, vec![added]).await).await;
    assert_eq!((reply.status, reply.state()), (200, "Updating"));
    assert_eq!(cloud.leads("203.0.113.7", &firewall, 30001), None);
    tokio::time::advance(SPAN).await;
    assert_eq!(cloud.leads("203.0.113.7", &firewall, 30001), Some("10.0.0.4:22".into()));

    let mut without = cloud.get(&firewall).await.good();
    without["properties"]["natRuleCollections"] = json!([]);
    let reply = cloud.put(&firewall, &without).await;
    assert!(cloud.leads("203.0.113.7", &firewall, 30001).is_some());
    let operation = reply.header("azure-asyncoperation").unwrap();
    assert_eq!(cloud.follow(operation).await.good()["status"], json!("InProgress"));
    tokio::time::advance(SPAN).await;
    assert_eq!(cloud.follow(operation).await.good()["status"], json!("Succeeded"));
    assert_eq!(cloud.leads("203.0.113.7", &firewall, 30001), None);
}

#[tokio::test]
async fn fields_that_no_model_knows_are_kept_as_they_are_written() {
    let (cloud, firewall) = cloud().await;
    let body = with(&cloud, &firewall, vec![]).await;
    assert!(body["x-unknown"]["deep"].is_array());
    cloud.put(&firewall, &body).await.good();
    let mut read = cloud.get(&firewall).await.good();
    read["etag"] = body["etag"].clone();
    assert_eq!(read, body);
    // A part of a firewall is written with the whole of it alone.
    let part = format!("{firewall}/natRuleCollections/postern");
    assert_eq!(cloud.put(&part, &collection("postern", 300, vec![])).await.error(), (404, "NotFound"));
}
