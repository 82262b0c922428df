//! The security rules that are accepted, and those that are refused.

use serde_json::{Value, json};

use crate::client::{Cloud, but, group, named, rule};

/// Checks that each of these is refused with its code, and changes nothing.
async fn are_refused(cases: Vec<(String, Value, &str)>) {
    let cloud = Cloud::new().await;
    cloud.put(&cloud.rule_id("customer"), &rule(4000)).await.good();
    let before = cloud.get(&cloud.nsg()).await.good();
    for (name, body, code) in cases {
        let reply = cloud.put(&cloud.rule_id(&name), &body).await;
        assert_eq!(reply.error(), (400, code), "{name}: {body}");
        assert_eq!(cloud.get(&cloud.nsg()).await.good(), before, "{name}: {body}");
        let whole = group(vec![named("customer", rule(4000)), named(&name, body.clone())]);
        assert_eq!(cloud.put(&cloud.nsg(), &whole).await.error(), (400, code), "in a group: {name}: {body}");
        assert_eq!(cloud.get(&cloud.nsg()).await.good(), before, "in a group: {name}: {body}");
    }
}

/// Checks that each of these is accepted, and read back as it was written.
async fn are_taken(cases: Vec<(String, Value)>) {
    for (name, body) in cases {
        let cloud = Cloud::new().await;
        let reply = cloud.put(&cloud.rule_id(&name), &body).await;
        assert_eq!(reply.status, 201, "{name}: {body}: {reply:?}");
        let read = cloud.get(&cloud.rule_id(&name)).await.good();
        assert_eq!(read["name"], json!(name));
        for (field, value) in body["properties"].as_object().unwrap() {
            assert_eq!(&read["properties"][field], value, "{name}: {field}");
        }
    }
}

fn with(changes: Value) -> Value {
    but(rule(100), changes)
}

#[tokio::test]
async fn a_name_has_80_characters_of_few_kinds_at_most() {
    let longest = "a".repeat(80);
    let good = ["a", "_", "9", "a.b-c_d", "1_", &longest, "postern-allow-01-20261123T150000Z"];
    are_taken(good.map(|name| (name.to_owned(), rule(100))).into()).await;
    // A space and a letter with an accent arrive as they are encoded.
    let too_long = "a".repeat(81);
    let bad = [&too_long, "-a", ".a", "a-", "a.", "a%20b", "a%C3%A4", "a:b", "a+b", "(a)"];
    are_refused(bad.map(|name| (name.to_owned(), rule(100), "InvalidResourceName")).into()).await;
}

#[tokio::test]
async fn a_description_has_140_characters_at_most() {
    let text = |length: usize| with(json!({"description": "ä".repeat(length)}));
    are_taken(vec![("a".into(), text(140)), ("a".into(), with(json!({"description": ""})))]).await;
    are_refused(vec![("a".into(), text(141), "SecurityRuleDescriptionTooLong")]).await;
}

#[tokio::test]
async fn a_priority_is_from_100_to_4096() {
    are_taken([100, 4096].map(|priority| ("a".to_owned(), rule(priority))).into()).await;
    let bad = [json!(99), json!(4097), json!(0), json!(-100), json!(65_000), json!("100"), Value::Null];
    let cases = bad.map(|priority| ("a".to_owned(), rule(priority), "SecurityRuleInvalidPriority"));
    are_refused(cases.into()).await;
}

#[tokio::test]
async fn a_priority_is_one_rules_alone_in_each_direction() {
    let cloud = Cloud::new().await;
    cloud.put(&cloud.rule_id("first"), &rule(100)).await.good();
    let before = cloud.get(&cloud.nsg()).await.good();
    let second = cloud.put(&cloud.rule_id("second"), &rule(100)).await;
    assert_eq!(second.error(), (400, "SecurityRuleConflict"));
    let whole = group(vec![named("a", rule(200)), named("b", rule(200))]);
    assert_eq!(cloud.put(&cloud.nsg(), &whole).await.error(), (400, "SecurityRuleConflict"));
    assert_eq!(cloud.get(&cloud.nsg()).await.good(), before);

    // Neither the other direction nor the rule itself is in the way.
    let outbound = but(rule(100), json!({"direction": "Outbound"}));
    assert_eq!(cloud.put(&cloud.rule_id("second"), &outbound).await.status, 201);
    let again = cloud.put(&cloud.rule_id("FIRST"), &but(rule(100), json!({"access": "Deny"}))).await;
    assert_eq!(again.status, 200);
    assert_eq!(cloud.sim.rules(&cloud.nsg()), ["first", "second"]);
    // A rule cannot be moved to where another is.
    cloud.put(&cloud.rule_id("third"), &rule(101)).await.good();
    assert_eq!(cloud.put(&cloud.rule_id("third"), &rule(100)).await.error(), (400, "SecurityRuleConflict"));
}

#[tokio::test]
async fn a_name_is_one_rules_alone_without_case() {
    let cloud = Cloud::new().await;
    let whole = group(vec![named("ssh", rule(100)), named("SSH", rule(101))]);
    assert_eq!(cloud.put(&cloud.nsg(), &whole).await.error(), (400, "DuplicateResourceName"));
    assert!(cloud.sim.rules(&cloud.nsg()).is_empty());
}

#[tokio::test]
async fn a_group_has_1000_rules_at_most() {
    let cloud = Cloud::new().await;
    let rules = |count: u16| -> Vec<Value> {
        (0..count).map(|at| named(&format!("rule-{at}"), rule(100 + at))).collect()
    };
    let reply = cloud.put(&cloud.nsg(), &group(rules(1001))).await;
    assert_eq!(reply.error(), (400, "SecurityRuleLimitExceeded"));
    cloud.put(&cloud.nsg(), &group(rules(1000))).await.good();
    let outbound = but(rule(100), json!({"direction": "Outbound"}));
    let reply = cloud.put(&cloud.rule_id("another"), &outbound).await;
    assert_eq!(reply.error(), (400, "SecurityRuleLimitExceeded"));
    assert_eq!(cloud.sim.rules(&cloud.nsg()).len(), 1000);
    // A rule can still be changed, and a removed one makes room.
    assert_eq!(cloud.put(&cloud.rule_id("rule-0"), &rule(4000)).await.status, 200);
    cloud.delete(&cloud.rule_id("rule-0")).await.good();
    assert_eq!(cloud.put(&cloud.rule_id("another"), &outbound).await.status, 201);
}

#[tokio::test]
async fn a_side_has_4000_addresses_at_most() {
    let side = |side: &str, count: usize| {
        let addresses: Vec<String> = (0..count).map(|at| format!("10.{}.{}.1", at / 250, at % 250)).collect();
        with(json!({format!("{side}AddressPrefix"): null, format!("{side}AddressPrefixes"): addresses}))
    };
    are_taken(["source", "destination"].map(|it| ("a".to_owned(), side(it, 4000))).into()).await;
    let cases = ["source", "destination"];
    are_refused(cases.map(|it| ("a".to_owned(), side(it, 4001), "SecurityRuleTooManyAddresses")).into())
        .await;
}

#[tokio::test]
async fn a_side_is_addresses_a_service_tag_or_all() {
    let one = |prefix: &str| with(json!({"sourceAddressPrefix": prefix}));
    let many =
        |prefixes: &[&str]| with(json!({"sourceAddressPrefix": null, "sourceAddressPrefixes": prefixes}));
    let scope = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
    let role = json!([{"id": format!("{scope}/applicationSecurityGroups/web")}]);
    let good = [
        one("*"),
        one("203.0.113.7"),
        one("203.0.113.0/24"),
        one("2001:db8::/32"),
        one("Internet"),
        one("VirtualNetwork"),
        one("AzureLoadBalancer"),
        one("Storage.EastUS2"),
        many(&["203.0.113.7", "198.51.100.0/24"]),
        many(&["2001:db8::1"]),
        with(json!({"destinationAddressPrefix": null, "destinationApplicationSecurityGroups": role})),
    ];
    are_taken(good.map(|body| ("a".to_owned(), body)).into()).await;

    let prefix = "SecurityRuleInvalidAddressPrefix";
    let fields = "SecurityRuleParameterContainsConflictingFields";
    let mixed = "SecurityRuleCannotMixIPv4AndIPv6";
    let bad = [
        (one("203.0.113.256"), prefix),
        (one("203.0.113.0/33"), prefix),
        (one("2001:db8::/129"), prefix),
        (one("203.0.113.1-203.0.113.9"), prefix),
        (one("203.0.113.1,203.0.113.9"), prefix),
        (one(" 203.0.113.1"), prefix),
        (many(&["203.0.113.7", "elsewhere!"]), prefix),
        (many(&["203.0.113.7", "*"]), prefix),
        (one(""), fields),
        (many(&[]), fields),
        (with(json!({"destinationAddressPrefix": null})), fields),
        (with(json!({"sourceAddressPrefixes": ["203.0.113.7"]})), fields),
        (with(json!({"destinationApplicationSecurityGroups": role})), fields),
        (many(&["203.0.113.7", "2001:db8::1"]), mixed),
        (with(json!({"sourceAddressPrefix": "203.0.113.7", "destinationAddressPrefix": "fd00::4"})), mixed),
    ];
    are_refused(bad.map(|(body, code)| ("a".to_owned(), body, code)).into()).await;
}

#[tokio::test]
async fn a_port_is_a_number_a_range_or_all() {
    let one = |range: &str| with(json!({"destinationPortRange": range}));
    let many = |ranges: &[&str]| with(json!({"destinationPortRange": null, "destinationPortRanges": ranges}));
    let good = [one("*"), one("0-65535"), one("22"), one("22-22"), many(&["22", "8000-8010"])];
    are_taken(good.map(|body| ("a".to_owned(), body)).into()).await;
    let bad = [
        one("65536"),
        one("-1"),
        one("22-"),
        one("23-22"),
        one("22,23"),
        one("ssh"),
        one(""),
        many(&[]),
        many(&["22", "70000"]),
        with(json!({"sourcePortRange": "x"})),
        with(json!({"sourcePortRange": null})),
    ];
    are_refused(bad.map(|body| ("a".to_owned(), body, "SecurityRuleInvalidPortRange")).into()).await;
}

#[tokio::test]
async fn access_direction_and_protocol_are_of_few_words() {
    let mut good = vec![with(json!({"access": "deny", "direction": "outbound"}))];
    good.extend(["Tcp", "UDP", "icmp", "Esp", "Ah", "*"].map(|word| with(json!({"protocol": word}))));
    are_taken(good.into_iter().map(|body| ("a".to_owned(), body)).collect()).await;
    let bad = [
        json!({"access": "Block"}),
        json!({"access": null}),
        json!({"direction": "Both"}),
        json!({"direction": null}),
        json!({"protocol": "Sctp"}),
        json!({"protocol": null}),
    ];
    are_refused(bad.map(|change| ("a".to_owned(), with(change), "InvalidRequestFormat")).into()).await;
}

#[tokio::test]
async fn a_body_is_an_object_and_a_call_has_a_version() {
    let cloud = Cloud::new().await;
    let before = cloud.get(&cloud.nsg()).await.good();
    for body in [json!([]), json!("text"), json!(null), json!(1)] {
        for id in [cloud.nsg(), cloud.rule_id("a")] {
            assert_eq!(cloud.put(&id, &body).await.error(), (400, "InvalidRequestContent"), "{id} {body}");
        }
    }
    assert_eq!(cloud.get(&cloud.nsg()).await.good(), before);
    let url = format!("{}{}", cloud.origin(), cloud.nsg());
    assert_eq!(cloud.follow(&url).await.error(), (400, "MissingApiVersionParameter"));
}
