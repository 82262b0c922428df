//! Conversions between the SDK's types and this crate's. Pure.

use std::collections::BTreeMap;

use aws_sdk_ec2::types::builders::IpPermissionBuilder;
use aws_sdk_ec2::types::{
    GroupIdentifier, InstanceStateName, IpPermission, IpRange, Ipv6Range, ManagedPrefixList,
    NetworkInterface, NetworkInterfaceType, PrefixListId, SecurityGroup, SecurityGroupRule, Tag,
    UserIdGroupPair,
};
use ipnet::IpNet;
use postern_core::Protocol;

use crate::names;
use crate::resource::{Ec2Group, Ec2Interface, Instance, NewGroupRule, PrefixList};
use crate::rule::{Ec2Traffic, GroupRule, RuleSource, Tags};

/// Converts a group; none if EC2 left out its id.
pub(crate) fn group(group: &SecurityGroup) -> Option<Ec2Group> {
    let permissions = [group.ip_permissions(), group.ip_permissions_egress()].concat();
    let sources = |permission: &IpPermission| {
        permission.ip_ranges().len()
            + permission.ipv6_ranges().len()
            + permission.prefix_list_ids().len()
            + permission.user_id_group_pairs().len()
    };
    Some(Ec2Group {
        id: group.group_id()?.to_owned(),
        name: group.group_name().unwrap_or_default().to_owned(),
        vpc: group.vpc_id().unwrap_or_default().to_owned(),
        tags: tags(group.tags()),
        rules: permissions.iter().map(sources).sum(),
    })
}

/// Converts a network interface; none if EC2 left out its id.
pub(crate) fn interface(interface: &NetworkInterface) -> Option<Ec2Interface> {
    let attachment = interface.attachment();
    let instance = attachment.and_then(|at| at.instance_id());
    let id = |group: &GroupIdentifier| group.group_id().map(ToOwned::to_owned);
    let groups = interface.groups().iter().filter_map(id).collect();
    let is_misplaced =
        |group: &&GroupIdentifier| names::is_misplaced(group.group_name().unwrap_or_default(), instance);
    let misplaced = interface.groups().iter().filter(is_misplaced).filter_map(id).collect();
    Some(Ec2Interface {
        id: interface.network_interface_id()?.to_owned(),
        instance: instance.map(ToOwned::to_owned),
        index: attachment.and_then(|at| at.device_index()).unwrap_or_default(),
        vpc: interface.vpc_id().unwrap_or_default().to_owned(),
        groups,
        misplaced,
        is_managed: interface.requester_managed() == Some(true)
            || interface.interface_type().is_some_and(|kind| !is_machines(kind)),
        description: interface.description().unwrap_or_default().to_owned(),
    })
}

/// Reports whether interfaces of this type are a machine's own.
fn is_machines(kind: &NetworkInterfaceType) -> bool {
    matches!(kind.as_str(), "interface" | "efa" | "efa-only" | "evs" | "trunk")
}

/// Converts a prefix list, with its id; none if EC2 left out its id. A list counts as its most entries, and
/// one of AWS's own, which has no such number, as its weight (Amazon VPC User Guide, "AWS-managed prefix list
/// weight").
pub(crate) fn prefix_list(list: &ManagedPrefixList) -> Option<(String, PrefixList)> {
    let entries = list.max_entries().and_then(|most| usize::try_from(most).ok());
    let name = list.prefix_list_name().unwrap_or_default();
    let weight = entries.or_else(|| weight_of_aws_list(name.strip_prefix("com.amazonaws.")?));
    Some((
        list.prefix_list_id()?.to_owned(),
        PrefixList { weight, is_v6: list.address_family() == Some("IPv6") },
    ))
}

fn weight_of_aws_list(name: &str) -> Option<usize> {
    let (_, service) = name.split_once('.')?;
    match service.strip_prefix("ipv6.").unwrap_or(service) {
        "cloudfront.origin-facing" => Some(55),
        "route53-healthchecks" => Some(25),
        "vpc-lattice" => Some(10),
        "s3express" => Some(6),
        "groundstation" => Some(5),
        "ec2-instance-connect" => Some(2),
        "s3" | "dynamodb" => Some(1),
        _ => None,
    }
}

/// Converts an instance; none if it is terminated or about to be.
pub(crate) fn instance(instance: &aws_sdk_ec2::types::Instance) -> Option<Instance> {
    let gone = matches!(
        instance.state().and_then(|state| state.name()),
        Some(InstanceStateName::ShuttingDown | InstanceStateName::Terminated)
    );
    let id = instance.instance_id().filter(|_| !gone)?.to_owned();
    Some(Instance { id, tags: tags(instance.tags()) })
}

/// Converts a rule; none if EC2 left out a field that identifies it.
pub(crate) fn rule(rule: &SecurityGroupRule) -> Option<GroupRule> {
    let group = rule.group_id()?.to_owned();
    Some(GroupRule {
        id: rule.security_group_rule_id()?.to_owned(),
        traffic: traffic(rule.ip_protocol()?, rule.from_port(), rule.to_port()),
        source: source(rule).unwrap_or(RuleSource::Unreadable),
        description: rule.description().unwrap_or_default().to_owned(),
        tags: tags(rule.tags()),
        group,
    })
}

fn tags(tags: &[Tag]) -> Tags {
    let pair = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()));
    tags.iter().filter_map(pair).collect()
}

fn traffic(protocol: &str, from: Option<i32>, to: Option<i32>) -> Ec2Traffic {
    let port = |number: Option<i32>| number.and_then(|number| u16::try_from(number).ok());
    let ports = |protocol| Ec2Traffic::Ports {
        protocol,
        from: port(from).unwrap_or(0),
        to: port(to).unwrap_or(u16::MAX),
    };
    match protocol {
        "-1" => Ec2Traffic::All,
        "tcp" | "6" => ports(Protocol::Tcp),
        "udp" | "17" => ports(Protocol::Udp),
        other => {
            let kind = (from.unwrap_or(-1), to.unwrap_or(-1));
            Ec2Traffic::Other { protocol: other.to_owned(), kind }
        }
    }
}

fn source(rule: &SecurityGroupRule) -> Option<RuleSource> {
    if let Some(range) = rule.cidr_ipv4().or(rule.cidr_ipv6()) {
        return range.parse::<IpNet>().ok().map(|net| RuleSource::Prefix(net.trunc()));
    }
    if let Some(list) = rule.prefix_list_id() {
        return Some(RuleSource::PrefixList(list.to_owned()));
    }
    let referenced = rule.referenced_group_info()?;
    let group = referenced.group_id()?.to_owned();
    let other =
        referenced.user_id().filter(|account| rule.group_owner_id().is_some_and(|own| own != *account));
    Some(match other {
        Some(account) => RuleSource::Peer { group, account: account.to_owned() },
        None => RuleSource::Group(group),
    })
}

/// Converts new rules to the form of the request: those with the same traffic together.
pub(crate) fn permissions(rules: &[NewGroupRule]) -> Vec<IpPermission> {
    let mut by_traffic: BTreeMap<&Ec2Traffic, Vec<&NewGroupRule>> = BTreeMap::new();
    for rule in rules {
        by_traffic.entry(&rule.traffic).or_default().push(rule);
    }
    by_traffic.into_iter().map(|(traffic, rules)| permission(traffic, &rules)).collect()
}

fn permission(traffic: &Ec2Traffic, rules: &[&NewGroupRule]) -> IpPermission {
    let (protocol, from, to) = match traffic {
        Ec2Traffic::All => ("-1".to_owned(), None, None),
        Ec2Traffic::Ports { protocol, from, to } => {
            (protocol.to_string(), Some(i32::from(*from)), Some(i32::from(*to)))
        }
        Ec2Traffic::Other { protocol, kind: (from, to) } => (protocol.clone(), Some(*from), Some(*to)),
    };
    let permission = IpPermission::builder().ip_protocol(protocol).set_from_port(from).set_to_port(to);
    rules.iter().fold(permission, |permission, rule| with_source(permission, rule)).build()
}

fn with_source(permission: IpPermissionBuilder, rule: &NewGroupRule) -> IpPermissionBuilder {
    let described = Some(rule.description.clone()).filter(|text| !text.is_empty());
    match &rule.source {
        RuleSource::Prefix(IpNet::V4(net)) => permission
            .ip_ranges(IpRange::builder().cidr_ip(net.to_string()).set_description(described).build()),
        RuleSource::Prefix(IpNet::V6(net)) => permission
            .ipv6_ranges(Ipv6Range::builder().cidr_ipv6(net.to_string()).set_description(described).build()),
        // The provider never creates such a rule, because it never parks one.
        RuleSource::Unreadable => permission,
        RuleSource::PrefixList(list) | RuleSource::PrefixListV6(list) => permission
            .prefix_list_ids(PrefixListId::builder().prefix_list_id(list).set_description(described).build()),
        RuleSource::Group(group) => permission.user_id_group_pairs(
            UserIdGroupPair::builder().group_id(group).set_description(described).build(),
        ),
        RuleSource::Peer { group, account } => permission.user_id_group_pairs(
            UserIdGroupPair::builder().group_id(group).user_id(account).set_description(described).build(),
        ),
    }
}
