//! The edits of a firewall: Postern's rules change, and every other byte stays.

use proptest::prelude::*;

use super::*;

const COLLECTION: &str = "postern-abcd";

/// A firewall with the details that models lose: unknown fields, empty arrays, nulls, numbers as they were written, an odd order.
fn body(collections: &str) -> String {
    format!(
        r#"{{"zzz":[],"etag":"W/\"7\"","x":{{"n":1.50,"e":1e3,"u":"\u00e4","nul":null}},"properties":{{"threatIntelMode":"Alert","networkRuleCollections":[],"natRuleCollections":{collections},"additionalProperties":{{}},"big":12345678901234567890123}},"zones":["1", "2" ]}}"#
    )
}

const CUSTOMER_COLLECTION: &str = r#"{"name":"customer","properties":{"priority":200,"odd":[],"rules":[{"name":"web","destinationAddresses":["198.51.100.1"],"destinationPorts":["443","50000-50001"],"protocols":["TCP"],"translatedFqdn":"a.example","sourceIpGroups":[]}]}}"#;

fn rule(number: u8, port: u32) -> NewNatRule {
    NewNatRule {
        name: format!("postern-allow-{number}"),
        description: "a test".into(),
        sources: [format!("203.0.113.{number}").parse().unwrap()].into(),
        protocol: Protocol::Tcp,
        public: "198.51.100.1".parse().unwrap(),
        machine: "10.0.0.4".parse().unwrap(),
        port: Port::new(port).unwrap(),
    }
}

fn add(rules: &[NewNatRule]) -> FirewallEdit {
    FirewallEdit { add: rules.to_vec(), ..FirewallEdit::default() }
}

fn remove(names: &[&str]) -> FirewallEdit {
    FirewallEdit { remove: names.iter().map(|&name| name.to_owned()).collect(), ..FirewallEdit::default() }
}

fn edited(body: &str, edits: &[FirewallEdit]) -> Option<String> {
    let edited = edit(body.as_bytes(), edits, COLLECTION, &FirewallSettings::default()).unwrap();
    edited.map(|(body, _)| String::from_utf8(body.to_vec()).unwrap())
}

fn ports(body: &str) -> Vec<u16> {
    let value: serde_json::Value = serde_json::from_str(body).unwrap();
    let collections = value["properties"]["natRuleCollections"].as_array().unwrap().clone();
    let managed = collections.into_iter().find(|it| it["name"] == COLLECTION).unwrap();
    let rules = managed["properties"]["rules"].as_array().unwrap().clone();
    rules.iter().map(|rule| rule["destinationPorts"][0].as_str().unwrap().parse().unwrap()).collect()
}

#[test]
fn i2_a_rule_goes_from_a_collection_of_another_name_too_and_the_rest_of_that_stays() {
    let with = edited(&body(&format!("[{CUSTOMER_COLLECTION}]")), &[add(&[rule(7, 22)])]).unwrap();
    let renamed = with.replace(r#""name":"postern-abcd""#, r#""name":"elsewhere""#);
    let without = edited(&renamed, &[remove(&["postern-allow-7"])]).unwrap();
    assert_eq!(
        without,
        body(&format!("[{CUSTOMER_COLLECTION}]")),
        "a collection that held nothing else goes"
    );
    // Copied into the customer's collection.
    let copied =
        with.replace(r#""rules":[{"name":"web""#, r#""rules":[{"name":"postern-allow-7"},{"name":"web""#);
    assert_eq!(
        edited(&copied, &[remove(&["postern-allow-7"])]).unwrap(),
        body(&format!("[{CUSTOMER_COLLECTION}]"))
    );
}

#[test]
fn a_rule_comes_and_goes_and_every_other_byte_stays() {
    let before = body(&format!("[{CUSTOMER_COLLECTION}]"));
    let with = edited(&before, &[add(&[rule(7, 22)])]).unwrap();
    let managed = with.find(r#",{"name":"postern-abcd""#).unwrap();
    let end = managed + with[managed..].find("}]}}]").unwrap() + "}]}}".len();
    let without = format!("{}{}", &with[..managed], &with[end..]);
    assert_eq!(without, before, "all but Postern's collection is the same, byte for byte");
    assert_eq!(edited(&with, &[remove(&["postern-allow-7"])]).unwrap(), before);
}

#[test]
fn the_etag_comes_along_and_what_changes_nothing_is_not_written() {
    let before = body(&format!("[{CUSTOMER_COLLECTION}]"));
    let (_, etag) = edit(before.as_bytes(), &[add(&[rule(7, 22)])], COLLECTION, &FirewallSettings::default())
        .unwrap()
        .unwrap();
    assert_eq!(etag.as_deref(), Some("W/\"7\""));
    assert_eq!(edited(&before, &[FirewallEdit::default(), remove(&["postern-allow-7"])]), None);
    let with = edited(&before, &[add(&[rule(7, 22)])]).unwrap();
    assert_eq!(edited(&with, &[add(&[rule(7, 22)])]), None, "it is there");
    assert_eq!(edited(&before, &[add(&[rule(7, 22)]), remove(&["postern-allow-7"])]), None);
}

#[test]
fn a_firewall_without_collections_gets_one_and_loses_it() {
    for empty in ["[]", "null"] {
        let with = edited(&body(empty), &[add(&[rule(7, 22)])]).unwrap();
        assert_eq!(ports(&with).len(), 1);
        assert_eq!(edited(&with, &[remove(&["postern-allow-7"])]).unwrap(), body("[]"));
    }
}

#[test]
fn posterns_collection_keeps_its_place_and_the_fields_that_another_principal_added() {
    let with = edited(&body("[]"), &[add(&[rule(7, 22)])]).unwrap();
    let odd = with.replacen(r#""priority":200"#, r#""priority":333,"note":"x""#, 1);
    let more = edited(&odd, &[add(&[rule(8, 22)])]).unwrap();
    assert!(more.contains(r#""priority":333,"note":"x""#), "{more}");
}

#[test]
fn a_port_belongs_to_one_port_of_one_machine() {
    let before = body(&format!("[{CUSTOMER_COLLECTION}]"));
    let with = edited(&before, &[add(&[rule(7, 22), rule(8, 22), rule(9, 3389)])]).unwrap();
    let [a, b, c] = ports(&with)[..] else { panic!("{with}") };
    assert!(a == b && a != c, "{a} {b} {c}");
    let settings = FirewallSettings { ports: 50_000..=50_002, ..FirewallSettings::default() };
    let small = edit(before.as_bytes(), &[add(&[rule(7, 22)])], COLLECTION, &settings).unwrap().unwrap();
    assert_eq!(ports(std::str::from_utf8(&small.0).unwrap()), [50_002], "the customer's rule has the others");
    let none = FirewallSettings { ports: 50_000..=50_001, ..settings };
    let refused = edit(before.as_bytes(), &[add(&[rule(7, 22)])], COLLECTION, &none);
    assert!(matches!(refused, Err(EditError::NoPort { .. })), "{refused:?}");
}

#[test]
fn the_priority_is_one_that_no_collection_has() {
    let with = edited(&body(&format!("[{CUSTOMER_COLLECTION}]")), &[add(&[rule(7, 22)])]).unwrap();
    assert!(with.contains(r#""name":"postern-abcd","properties":{"priority":201,"#), "{with}");
}

#[test]
fn a_firewall_with_a_policy_and_what_is_no_firewall_are_refused() {
    let policy = r#"{"properties":{"firewallPolicy":{"id":"/the/policy"}}}"#;
    let refused = edit(policy.as_bytes(), &[], COLLECTION, &FirewallSettings::default());
    assert_eq!(refused, Err(EditError::Policy("/the/policy".into())));
    for broken in ["", "[]", r#"{"properties":[]}"#, r#"{"properties":{"natRuleCollections":{}}}"#] {
        let refused =
            edit(broken.as_bytes(), &[add(&[rule(7, 22)])], COLLECTION, &FirewallSettings::default());
        assert!(matches!(refused, Err(EditError::Unreadable(_))), "{broken}: {refused:?}");
    }
}

proptest! {
    #[test]
    fn edits_together_are_the_same_as_one_after_the_other(
        edits in prop::collection::vec((prop::collection::vec(0..6_u8, 0..4), prop::collection::btree_set(0..6_u8, 0..4)), 1..6)
    ) {
        let edits: Vec<FirewallEdit> = edits
            .into_iter()
            .map(|(add, remove)| FirewallEdit {
                add: add.into_iter().map(|number| rule(number, if number % 2 == 0 { 22 } else { 3389 })).collect(),
                remove: remove.into_iter().map(|number| format!("postern-allow-{number}")).collect(),
            })
            .collect();
        let before = body(&format!("[{CUSTOMER_COLLECTION}]"));
        let together = edited(&before, &edits).unwrap_or_else(|| before.clone());
        let mut apart = before;
        for one in edits {
            apart = edited(&apart, &[one]).unwrap_or(apart);
        }
        // A collection that went and came again is a new one in either way; the ports are the same each time.
        prop_assert_eq!(apart, together);
    }
}
