//! The connections that get in.

use postern_azure_sim::Vm;
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Cloud, but, group, ip, named, rule};

const OUTSIDE: &str = "203.0.113.7";
const INSIDE: &str = "10.0.3.3";
const BALANCER: &str = "168.63.129.16";

/// A machine behind the group `nsg`, which has these rules alone.
async fn behind(rules: Vec<Value>) -> (Cloud, Vm) {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4", "fd00::4"], None, Some("nsg"));
    cloud.put(&cloud.nsg(), &group(rules)).await.good();
    (cloud, vm)
}

impl Cloud {
    fn decides(&self, from: &str, vm: &Vm, port: u16) -> (bool, String) {
        let verdict = self.sim.admits(ip(from), &vm.interface, "Tcp", port);
        (verdict.admitted, verdict.by)
    }
}

#[tokio::test]
async fn the_subnets_group_is_asked_first_and_both_must_allow() {
    for (subnet, interface, admitted, by) in [
        ("Allow", "Allow", true, "inner/ssh"),
        ("Deny", "Allow", false, "outer/ssh"),
        ("Allow", "Deny", false, "inner/ssh"),
        ("Deny", "Deny", false, "outer/ssh"),
    ] {
        let cloud = Cloud::new().await;
        for (name, access) in [("outer", subnet), ("inner", interface)] {
            cloud.lab.nsg(name);
            let id = format!("{}/securityRules/ssh", cloud.lab.nsg_id(name));
            cloud.put(&id, &but(rule(100), json!({"access": access}))).await.good();
        }
        let vm = cloud.vm(&["10.0.0.4"], Some("outer"), Some("inner"));
        assert_eq!(cloud.decides(OUTSIDE, &vm, 22), (admitted, by.into()), "{subnet} {interface}");
    }
}

#[tokio::test]
async fn a_machine_behind_no_group_lets_all_in() {
    let cloud = Cloud::new().await;
    let vm = cloud.vm(&["10.0.0.4"], None, None);
    assert_eq!(cloud.decides(OUTSIDE, &vm, 22), (true, String::new()));
    assert_eq!(cloud.decides("2001:db8::7", &vm, 22), (false, "no address".into()));
}

#[tokio::test]
async fn the_lowest_priority_decides() {
    let deny = |priority: u16| but(rule(priority), json!({"access": "Deny"}));
    for (rules, admitted) in [
        (vec![named("late", rule(200)), named("early", deny(100))], false),
        (vec![named("late", deny(200)), named("early", rule(100))], true),
        (vec![named("early", rule(100)), named("late", deny(4096))], true),
    ] {
        let (cloud, vm) = behind(rules).await;
        assert_eq!(cloud.decides(OUTSIDE, &vm, 22), (admitted, "nsg/early".into()));
    }
}

#[tokio::test]
async fn a_group_ends_with_the_default_rules() {
    let (cloud, vm) = behind(vec![]).await;
    for (from, admitted, by) in [
        (OUTSIDE, false, "DenyAllInBound"),
        (INSIDE, true, "AllowVnetInBound"),
        ("fd00::9", true, "AllowVnetInBound"),
        ("2001:db8::7", false, "DenyAllInBound"),
        (BALANCER, true, "AllowAzureLoadBalancerInBound"),
    ] {
        assert_eq!(cloud.decides(from, &vm, 22), (admitted, format!("nsg/{by}")), "{from}");
    }
    // A read shows them apart from the group's own, and no write puts them there.
    let mut read = cloud.get(&cloud.nsg()).await.good();
    let defaults = read["properties"]["defaultSecurityRules"].as_array().unwrap().clone();
    let priorities: Vec<_> = defaults.iter().map(|rule| rule["properties"]["priority"].as_u64()).collect();
    assert_eq!(priorities, [65_000, 65_001, 65_500, 65_000, 65_001, 65_500].map(Some));
    assert_eq!(read["properties"]["securityRules"], json!([]));
    read["properties"]["defaultSecurityRules"] = json!([]);
    cloud.put(&cloud.nsg(), &read).await.good();
    let read = cloud.get(&cloud.nsg()).await.good();
    assert_eq!(read["properties"]["defaultSecurityRules"], json!(defaults));
}

#[tokio::test]
async fn a_service_tag_is_the_addresses_that_it_names() {
    let from = |tag: &str| vec![named("tag", but(rule(100), json!({"sourceAddressPrefix": tag})))];
    for (tag, admitted) in [
        ("Internet", [true, false, true]),
        ("internet", [true, false, true]),
        ("VirtualNetwork", [false, true, false]),
        ("AzureLoadBalancer", [false, false, true]),
        ("*", [true, true, true]),
    ] {
        let (cloud, vm) = behind(from(tag)).await;
        let decided = [OUTSIDE, INSIDE, BALANCER].map(|it| cloud.decides(it, &vm, 22).1 == "nsg/tag");
        assert_eq!(decided, admitted, "{tag}");
    }
}

#[tokio::test]
async fn a_rule_may_have_several_sources_destinations_and_ports() {
    let several = but(
        rule(100),
        json!({
            "sourceAddressPrefix": null, "sourceAddressPrefixes": ["203.0.113.7", "198.51.100.0/24"],
            "destinationAddressPrefix": null, "destinationAddressPrefixes": ["10.0.0.9", "10.0.0.4/32"],
            "destinationPortRange": null, "destinationPortRanges": ["22", "8000-8010"]
        }),
    );
    let (cloud, vm) = behind(vec![named("several", several)]).await;
    for (from, port, admitted) in [
        ("203.0.113.7", 22, true),
        ("198.51.100.255", 8000, true),
        ("198.51.100.1", 8010, true),
        ("203.0.113.8", 22, false),
        ("203.0.113.7", 23, false),
        ("203.0.113.7", 8011, false),
        ("203.0.113.7", 7999, false),
    ] {
        assert_eq!(cloud.admits(from, &vm, port), admitted, "{from} {port}");
    }
}

#[tokio::test]
async fn a_rule_is_for_its_direction_protocol_destination_and_port_alone() {
    for (change, admitted) in [
        (json!({}), true),
        (json!({"protocol": "*"}), true),
        (json!({"protocol": "TCP"}), true),
        (json!({"destinationAddressPrefix": "10.0.0.0/24"}), true),
        (json!({"destinationAddressPrefix": "VirtualNetwork"}), true),
        (json!({"destinationPortRange": "*"}), true),
        (json!({"direction": "Outbound"}), false),
        (json!({"protocol": "Udp"}), false),
        (json!({"destinationAddressPrefix": "10.0.0.5"}), false),
        (json!({"destinationAddressPrefix": "Internet"}), false),
        (json!({"destinationPortRange": "80"}), false),
        (json!({"sourceAddressPrefix": "203.0.113.8"}), false),
    ] {
        let (cloud, vm) = behind(vec![named("it", but(rule(100), change.clone()))]).await;
        assert_eq!(cloud.admits(OUTSIDE, &vm, 22), admitted, "{change}");
    }
}

#[tokio::test]
async fn a_rule_for_an_application_security_group_is_for_its_members() {
    let cloud = Cloud::new().await;
    let role = cloud.lab.id("applicationSecurityGroups", "Web");
    let to_role = but(
        rule(100),
        json!({"destinationAddressPrefix": null, "destinationApplicationSecurityGroups": [{"id": role}]}),
    );
    let vm = cloud.vm(&["10.0.0.4"], None, Some("nsg"));
    cloud.put(&cloud.rule_id("role"), &to_role).await.good();
    assert!(!cloud.admits(OUTSIDE, &vm, 22));
    cloud.sim.edit(&vm.interface, |interface| {
        interface["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] =
            json!([{"id": role.to_lowercase()}]);
    });
    assert!(cloud.admits(OUTSIDE, &vm, 22));
}

#[tokio::test]
async fn an_address_of_the_other_family_is_judged_by_its_own_rules() {
    let six = but(
        rule(100),
        json!({"sourceAddressPrefix": "2001:db8::/32", "destinationAddressPrefix": "fd00::4"}),
    );
    let (cloud, vm) = behind(vec![named("six", six)]).await;
    assert!(cloud.admits("2001:db8::7", &vm, 22));
    assert!(!cloud.admits("2001:db9::7", &vm, 22));
    assert!(!cloud.admits(OUTSIDE, &vm, 22));
}

#[tokio::test]
async fn the_effective_groups_of_an_interface_are_the_subnets_and_its_own() {
    let cloud = Cloud::new().await;
    for name in ["outer", "inner"] {
        cloud.lab.nsg(name);
    }
    cloud.lab.rule("inner", "ssh", 100, "Allow", "*", "*", "22");
    let vm = cloud.vm(&["10.0.0.4"], Some("outer"), Some("inner"));
    let id = format!("{}/effectiveNetworkSecurityGroups", vm.interface);
    let found = cloud.send(Method::POST, &id, None, None).await.unwrap().good();
    let groups = found["value"].as_array().unwrap();
    let ids: Vec<_> = groups.iter().map(|group| &group["networkSecurityGroup"]["id"]).collect();
    assert_eq!(ids, [&json!(cloud.lab.nsg_id("outer")), &json!(cloud.lab.nsg_id("inner"))]);
    assert_eq!(groups[1]["effectiveSecurityRules"][0]["name"], json!("ssh"));
}
