//! The checks of a security rule, a group and a firewall (Microsoft Learn, "Network security groups"; the codes are those
//! of Microsoft.Network).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::answer::Answer;

fn bad(code: &str, words: &str) -> Answer {
    Answer::error(400, code, words)
}

/// The rules that every group ends with.
pub(crate) fn defaults(group: &str) -> Value {
    let rule = |name: &str, priority: u16, access: &str, direction: &str, from: &str, to: &str| {
        json!({
            "id": format!("{group}/defaultSecurityRules/{name}"), "name": name, "etag": "W/\"0\"",
            "properties": {
                "provisioningState": "Succeeded", "protocol": "*", "sourcePortRange": "*", "destinationPortRange": "*",
                "sourceAddressPrefix": from, "destinationAddressPrefix": to, "access": access, "priority": priority,
                "direction": direction, "sourceAddressPrefixes": [], "destinationAddressPrefixes": [],
                "sourcePortRanges": [], "destinationPortRanges": []
            }
        })
    };
    json!([
        rule("AllowVnetInBound", 65_000, "Allow", "Inbound", "VirtualNetwork", "VirtualNetwork"),
        rule("AllowAzureLoadBalancerInBound", 65_001, "Allow", "Inbound", "AzureLoadBalancer", "*"),
        rule("DenyAllInBound", 65_500, "Deny", "Inbound", "*", "*"),
        rule("AllowVnetOutBound", 65_000, "Allow", "Outbound", "VirtualNetwork", "VirtualNetwork"),
        rule("AllowInternetOutBound", 65_001, "Allow", "Outbound", "*", "Internet"),
        rule("DenyAllOutBound", 65_500, "Deny", "Outbound", "*", "*"),
    ])
}

/// Checks a whole group.
pub(crate) fn check_group(body: &Value) -> Result<(), Answer> {
    let rules = body["properties"]["securityRules"].as_array().cloned().unwrap_or_default();
    for (at, rule) in rules.iter().enumerate() {
        let name = rule["name"].as_str().unwrap_or_default();
        if rules[..at].iter().any(|other| same(&other["name"], name)) {
            return Err(bad("DuplicateResourceName", &format!("Two rules have the name {name}.")));
        }
        check_rule(name, rule, &rules[..at])?;
    }
    Ok(())
}

/// Checks a rule beside the others of its group.
pub(crate) fn check_rule(name: &str, body: &Value, others: &[Value]) -> Result<(), Answer> {
    check_name(name)?;
    let rule = &body["properties"];
    if rule["description"].as_str().is_some_and(|text| text.chars().count() > 140) {
        return Err(bad("SecurityRuleDescriptionTooLong", "The description is longer than 140 characters."));
    }
    let priority = rule["priority"].as_i64().unwrap_or_default();
    if !(100..=4096).contains(&priority) {
        return Err(bad(
            "SecurityRuleInvalidPriority",
            &format!(
                "Security rule has invalid Priority. Value provided: {priority} Allowed range 100-4096."
            ),
        ));
    }
    let word = |field: &str, words: &[&str]| {
        let given = rule[field].as_str().unwrap_or_default();
        let is_one = words.iter().any(|word| word.eq_ignore_ascii_case(given));
        if is_one {
            Ok(())
        } else {
            Err(bad("InvalidRequestFormat", &format!("{field} cannot be {given:?}.")))
        }
    };
    word("access", &["Allow", "Deny"])?;
    word("direction", &["Inbound", "Outbound"])?;
    word("protocol", &["Tcp", "Udp", "Icmp", "Esp", "Ah", "*"])?;
    let others: Vec<&Value> = others.iter().filter(|other| !same(&other["name"], name)).collect();
    for other in &others {
        let other_rule = &other["properties"];
        if other_rule["priority"] == rule["priority"]
            && same(&other_rule["direction"], rule["direction"].as_str().unwrap_or_default())
        {
            let words = format!(
                "Security rule {name} conflicts with rule {}. Rules cannot have the same Priority and Direction.",
                other["name"]
            );
            return Err(bad("SecurityRuleConflict", &words));
        }
    }
    if others.len() >= 1000 {
        return Err(bad("SecurityRuleLimitExceeded", "A network security group has 1000 rules at most."));
    }
    for side in ["source", "destination"] {
        check_side(rule, side)?;
    }
    let families: BTreeSet<bool> = ["source", "destination"]
        .iter()
        .flat_map(|side| prefixes(rule, side))
        .filter_map(|it| net(&it))
        .map(|net| net.addr().is_ipv4())
        .collect();
    if families.len() > 1 {
        return Err(bad(
            "SecurityRuleCannotMixIPv4AndIPv6",
            "A rule cannot have prefixes of IPv4 and of IPv6.",
        ));
    }
    Ok(())
}

fn same(value: &Value, text: &str) -> bool {
    value.as_str().is_some_and(|it| it.eq_ignore_ascii_case(text))
}

fn check_name(name: &str) -> Result<(), Answer> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = name.as_bytes();
    let is_good = (1..=80).contains(&bytes.len())
        && word(bytes[0])
        && word(bytes[bytes.len() - 1])
        && bytes.iter().all(|byte| word(*byte) || b".-".contains(byte));
    if is_good {
        Ok(())
    } else {
        Err(bad("InvalidResourceName", &format!("Resource name {name} is invalid.")))
    }
}

fn list(rule: &Value, field: &str) -> Vec<String> {
    let items = rule[field].as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// The address prefixes of a side.
pub(crate) fn prefixes(rule: &Value, side: &str) -> Vec<String> {
    let one =
        rule[format!("{side}AddressPrefix")].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    one.into_iter().chain(list(rule, &format!("{side}AddressPrefixes"))).collect()
}

/// The port ranges of a side.
pub(crate) fn port_ranges(rule: &Value, side: &str) -> Vec<String> {
    let one = rule[format!("{side}PortRange")].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    one.into_iter().chain(list(rule, &format!("{side}PortRanges"))).collect()
}

/// The application security groups of a side.
pub(crate) fn application_groups(rule: &Value, side: &str) -> Vec<String> {
    let items = rule[format!("{side}ApplicationSecurityGroups")].as_array().into_iter().flatten();
    items.filter_map(|item| item["id"].as_str().map(str::to_ascii_lowercase)).collect()
}

pub(crate) fn net(prefix: &str) -> Option<IpNet> {
    prefix.parse().ok().or_else(|| prefix.parse::<IpAddr>().ok().map(IpNet::from))
}

fn check_side(rule: &Value, side: &str) -> Result<(), Answer> {
    let one = rule[format!("{side}AddressPrefix")].as_str().is_some_and(|text| !text.is_empty());
    let many = list(rule, &format!("{side}AddressPrefixes"));
    let given = usize::from(one)
        + usize::from(!many.is_empty())
        + usize::from(!application_groups(rule, side).is_empty());
    if given != 1 {
        return Err(bad(
            "SecurityRuleParameterContainsConflictingFields",
            &format!(
                "Give one of {side}AddressPrefix, {side}AddressPrefixes and {side}ApplicationSecurityGroups."
            ),
        ));
    }
    if many.len() > 4000 {
        return Err(bad("SecurityRuleTooManyAddresses", "A side has 4000 addresses at most."));
    }
    for prefix in prefixes(rule, side) {
        let is_tag = prefix.chars().all(|c| c.is_ascii_alphanumeric() || c == '.')
            && prefix.starts_with(|c: char| c.is_ascii_alphabetic());
        if prefix != "*" && !is_tag && net(&prefix).is_none() {
            return Err(bad(
                "SecurityRuleInvalidAddressPrefix",
                &format!("Security rule has invalid Address prefix. Value provided: {prefix}"),
            ));
        }
        if prefix == "*" && many.len() > 1 {
            return Err(bad("SecurityRuleInvalidAddressPrefix", "* cannot be one of several."));
        }
    }
    // The code is the one that issues about Microsoft.Network quote; the specification does not name it.
    let nets: Vec<IpNet> = many.iter().filter_map(|prefix| net(prefix)).collect();
    let overlap = |one: &IpNet, other: &IpNet| one.contains(other) || other.contains(one);
    if nets.iter().enumerate().any(|(at, one)| nets[..at].iter().any(|other| overlap(one, other))) {
        return Err(bad(
            "OverlappingSubnetsNotPermittedInSecurityRule",
            &format!("The {side} address prefixes of a security rule cannot overlap."),
        ));
    }
    let ranges = port_ranges(rule, side);
    if ranges.is_empty() {
        return Err(bad("SecurityRuleInvalidPortRange", &format!("{side}PortRange is missing.")));
    }
    for range in ranges {
        if ports(&range).is_none() {
            return Err(bad(
                "SecurityRuleInvalidPortRange",
                &format!("Security rule has invalid Port range. Value provided: {range}"),
            ));
        }
    }
    Ok(())
}

/// Reads `*`, a port or a range.
pub(crate) fn ports(text: &str) -> Option<(u16, u16)> {
    if text == "*" {
        return Some((0, u16::MAX));
    }
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to) = (from.parse().ok()?, to.parse().ok()?);
    (from <= to).then_some((from, to))
}

/// Checks a firewall.
pub(crate) fn check_firewall(body: &Value, read: impl Fn(&str) -> Option<Value>) -> Result<(), Answer> {
    let firewall = &body["properties"];
    let public: Vec<String> = firewall["ipConfigurations"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|end| read(end["properties"]["publicIPAddress"]["id"].as_str()?))
        .filter_map(|address| address["properties"]["ipAddress"].as_str().map(str::to_owned))
        .collect();
    let collections = firewall["natRuleCollections"].as_array().cloned().unwrap_or_default();
    if !collections.is_empty() && !firewall["firewallPolicy"].is_null() {
        return Err(bad(
            "AzureFirewallPolicyAndRuleCollectionsConflict",
            "A firewall with a policy has no rules of its own.",
        ));
    }
    let (mut names, mut priorities) = (BTreeSet::new(), BTreeSet::new());
    for collection in &collections {
        let name = collection["name"].as_str().unwrap_or_default();
        let priority = collection["properties"]["priority"].as_i64().unwrap_or_default();
        if !names.insert(name.to_owned()) || !priorities.insert(priority) {
            return Err(bad(
                "AzureFirewallRuleCollectionConflict",
                &format!("The name or the priority of the collection {name} is another's."),
            ));
        }
        if !(100..=65_000).contains(&priority) {
            return Err(bad(
                "AzureFirewallInvalidPriority",
                &format!("The priority {priority} of the collection {name} is out of range."),
            ));
        }
        let mut rules = BTreeSet::new();
        for rule in collection["properties"]["rules"].as_array().into_iter().flatten() {
            let name = rule["name"].as_str().unwrap_or_default();
            if name.is_empty() || !rules.insert(name.to_owned()) {
                return Err(bad(
                    "AzureFirewallRuleNameConflict",
                    &format!("The name {name:?} of a rule is another's, or empty."),
                ));
            }
            if let Some(strange) =
                list(rule, "destinationAddresses").iter().find(|address| !public.contains(address))
            {
                return Err(bad(
                    "AzureFirewallNatRuleInvalidDestination",
                    &format!("{strange} is no public address of the firewall."),
                ));
            }
            let has_all = ["translatedAddress", "translatedPort"].iter().all(|field| rule[field].is_string())
                && ["sourceAddresses", "destinationPorts", "protocols"]
                    .iter()
                    .all(|field| !list(rule, field).is_empty());
            if !has_all {
                return Err(bad(
                    "AzureFirewallNatRuleIncomplete",
                    &format!("The rule {name} lacks a field."),
                ));
            }
        }
    }
    Ok(())
}
