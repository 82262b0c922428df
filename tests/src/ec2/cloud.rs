//! An account in a Region, as its owner sees it: for making what a test needs, and for looking at what became of it.

use std::collections::{BTreeMap, BTreeSet};

use aws_credential_types::Credentials;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::config::{BehaviorVersion, Region};
use aws_sdk_ec2::types::{
    Filter, InstanceNetworkInterfaceSpecification, IpPermission, IpRange, Ipv6Range, PrefixListId,
    ResourceType, SecurityGroupRule, Tag, TagSpecification, UserIdGroupPair,
};

use aws_sdk_ec2::types::{SecurityGroupRuleRequest, SecurityGroupRuleUpdate};

use super::ACCOUNT;
use crate::netns::Netns;

/// An account in a Region.
#[derive(Debug, Clone)]
pub struct Cloud {
    netns: Netns,
    client: Client,
    account: String,
    region: String,
}

/// A rule to be made, or one that is there, but for its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleSpec {
    /// The protocol: `tcp`, `udp`, `icmp`, or `-1`.
    pub protocol: String,
    /// The first port.
    pub from: i32,
    /// The last port.
    pub to: i32,
    /// An address range, `pl-…` or `sg-…`.
    pub source: String,
    /// The description.
    pub description: String,
    /// The tags.
    pub tags: BTreeMap<String, String>,
}

/// The ingress rules of a group.
pub type Snapshot = BTreeSet<RuleSpec>;

impl RuleSpec {
    /// Admits TCP ports from a source.
    pub fn tcp(from: u16, to: u16, source: &str) -> Self {
        Self {
            protocol: "tcp".into(),
            from: from.into(),
            to: to.into(),
            source: source.into(),
            description: String::new(),
            tags: BTreeMap::new(),
        }
    }

    /// Admits all traffic from a source.
    pub fn all(source: &str) -> Self {
        Self { protocol: "-1".into(), from: -1, to: -1, ..Self::tcp(0, 0, source) }
    }

    /// Sets the description.
    #[must_use]
    pub fn described(mut self, words: &str) -> Self {
        self.description = words.into();
        self
    }

    /// Adds a tag.
    #[must_use]
    pub fn tagged(mut self, key: &str, value: &str) -> Self {
        self.tags.insert(key.into(), value.into());
        self
    }

    fn of(rule: &SecurityGroupRule) -> Self {
        let referenced = rule.referenced_group_info().and_then(|info| info.group_id());
        let source = rule.cidr_ipv4().or(rule.cidr_ipv6()).or(rule.prefix_list_id()).or(referenced);
        let tag = |tag: &Tag| {
            (tag.key().unwrap_or_default().to_owned(), tag.value().unwrap_or_default().to_owned())
        };
        Self {
            protocol: rule.ip_protocol().unwrap_or_default().into(),
            from: rule.from_port().unwrap_or(-1),
            to: rule.to_port().unwrap_or(-1),
            source: source.unwrap_or_default().into(),
            description: rule.description().unwrap_or_default().into(),
            tags: rule.tags().iter().map(tag).collect(),
        }
    }

    fn permission(&self) -> IpPermission {
        let described = Some(self.description.clone()).filter(|words| !words.is_empty());
        let permission =
            IpPermission::builder().ip_protocol(&self.protocol).from_port(self.from).to_port(self.to);
        let source = self.source.clone();
        match &self.source {
            list if list.starts_with("pl-") => permission.prefix_list_ids(
                PrefixListId::builder().prefix_list_id(source).set_description(described).build(),
            ),
            group if group.starts_with("sg-") => permission.user_id_group_pairs(
                UserIdGroupPair::builder().group_id(source).set_description(described).build(),
            ),
            range if range.contains(':') => permission
                .ipv6_ranges(Ipv6Range::builder().cidr_ipv6(source).set_description(described).build()),
            _ => permission.ip_ranges(IpRange::builder().cidr_ip(source).set_description(described).build()),
        }
        .build()
    }
}

impl Cloud {
    pub(super) fn new(netns: Netns, endpoint: &str, account: &str, region: &str) -> Self {
        let http = aws_smithy_http_client::Builder::new().build_http();
        let config = |credentials: Credentials| {
            aws_config::SdkConfig::builder()
                .behavior_version(BehaviorVersion::latest())
                .endpoint_url(endpoint)
                .region(Region::new(region.to_owned()))
                .http_client(http.clone())
                .credentials_provider(aws_credential_types::provider::SharedCredentialsProvider::new(
                    credentials,
                ))
                .build()
        };
        let own = config(Credentials::for_tests());
        let config = if account == ACCOUNT {
            own
        } else {
            let role = format!("arn:aws:iam::{account}:role/owner");
            let assumed = netns.run(async move {
                let call =
                    aws_sdk_sts::Client::new(&own).assume_role().role_arn(role).role_session_name("owner");
                call.send().await.expect("moto lends every role").credentials
            });
            let assumed = assumed.expect("an assumed role has credentials");
            config(Credentials::new(
                assumed.access_key_id(),
                assumed.secret_access_key(),
                Some(assumed.session_token().to_owned()),
                None,
                "a test",
            ))
        };
        Self { netns, client: Client::new(&config), account: account.to_owned(), region: region.to_owned() }
    }

    /// Makes calls of one's own.
    pub fn run<T, F>(&self, work: impl FnOnce(Client) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.netns.run(work(self.client.clone()))
    }

    /// The target of an instance.
    pub fn target(&self, instance: &str) -> String {
        format!("aws:{}/{}/{instance}", self.account, self.region)
    }

    /// The VPC that is there from the start.
    pub fn vpc(&self) -> String {
        let vpcs = self.run(|client| async move { client.describe_vpcs().send().await });
        let vpcs = vpcs.expect("moto describes VPCs");
        vpcs.vpcs().first().and_then(|vpc| vpc.vpc_id()).expect("there is a default VPC").to_owned()
    }

    /// A new group with these rules. Its id.
    pub fn group(&self, name: &str, rules: &[RuleSpec]) -> String {
        let (vpc, name) = (self.vpc(), name.to_owned());
        let made = self.run(|client| async move {
            client.create_security_group().group_name(name).description("a test").vpc_id(vpc).send().await
        });
        let group = made.expect("a group can be made").group_id.expect("a group has an id");
        rules.iter().for_each(|rule| self.allow(&group, rule));
        group
    }

    /// Adds a rule.
    pub fn allow(&self, group: &str, rule: &RuleSpec) {
        let (group, permission) = (group.to_owned(), rule.permission());
        let tags = (!rule.tags.is_empty()).then(|| {
            let tags =
                rule.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
            vec![
                TagSpecification::builder()
                    .resource_type(ResourceType::SecurityGroupRule)
                    .set_tags(Some(tags))
                    .build(),
            ]
        });
        let made = self.run(|client| async move {
            let call = client.authorize_security_group_ingress().group_id(group).ip_permissions(permission);
            call.set_tag_specifications(tags).send().await
        });
        made.unwrap_or_else(|error| panic!("{rule:?}: {error:?}"));
    }

    /// Takes a rule away.
    pub fn revoke(&self, group: &str, rule: &RuleSpec) {
        let (group, permission) = (group.to_owned(), rule.permission());
        let gone = self.run(|client| async move {
            client.revoke_security_group_ingress().group_id(group).ip_permissions(permission).send().await
        });
        gone.unwrap_or_else(|error| panic!("{rule:?}: {error:?}"));
    }

    /// Widens every ingress rule of a group to every port and half of all addresses, in place: id and tags stay.
    pub fn widen_rules(&self, group: &str) {
        for rule in self.described(group).into_iter().filter(|rule| rule.is_egress() != Some(true)) {
            let wide = SecurityGroupRuleRequest::builder()
                .ip_protocol("tcp")
                .from_port(0)
                .to_port(65535)
                .cidr_ipv4("0.0.0.0/1")
                .build();
            let update = SecurityGroupRuleUpdate::builder()
                .set_security_group_rule_id(rule.security_group_rule_id)
                .security_group_rule(wide)
                .build();
            let group = group.to_owned();
            self.run(|client| async move {
                client.modify_security_group_rules().group_id(group).security_group_rules(update).send().await
            })
            .expect("a rule can be modified");
        }
    }

    /// Takes tags off every rule of a group, so that no window owns them.
    pub fn untag_rules(&self, group: &str) {
        for rule in self.described(group) {
            let id = rule.security_group_rule_id.expect("a rule has an id");
            let tags = rule.tags.unwrap_or_default();
            self.run(
                |client| async move { client.delete_tags().resources(id).set_tags(Some(tags)).send().await },
            )
            .expect("tags can be deleted");
        }
    }

    /// Takes a tag off a resource.
    pub fn untag(&self, resource: &str, key: &str) {
        let (resource, tag) = (resource.to_owned(), Tag::builder().key(key).build());
        self.run(|client| async move { client.delete_tags().resources(resource).tags(tag).send().await })
            .expect("a tag can be taken off");
    }

    /// The tags of a group.
    pub fn tags(&self, group: &str) -> BTreeMap<String, String> {
        let id = group.to_owned();
        let found =
            self.run(|client| async move { client.describe_security_groups().group_ids(id).send().await });
        let found = found.expect("moto describes groups");
        let tags = found.security_groups().iter().flat_map(|group| group.tags());
        tags.map(|tag| (tag.key().unwrap_or_default().to_owned(), tag.value().unwrap_or_default().to_owned()))
            .collect()
    }

    /// The ids of the rules of a group, of both directions, with what they are.
    pub fn rule_ids(&self, group: &str) -> Vec<(String, RuleSpec)> {
        let id =
            |rule: &SecurityGroupRule| rule.security_group_rule_id().expect("a rule has an id").to_owned();
        self.described(group).iter().map(|rule| (id(rule), RuleSpec::of(rule))).collect()
    }

    /// Lets a group send everything everywhere.
    pub fn allow_egress(&self, group: &str) {
        let (group, permission) = (group.to_owned(), RuleSpec::all("0.0.0.0/0").permission());
        let made = self.run(|client| async move {
            client.authorize_security_group_egress().group_id(group).ip_permissions(permission).send().await
        });
        made.expect("an egress rule can be made");
    }

    /// Deletes a group.
    pub fn delete_group(&self, group: &str) {
        let id = group.to_owned();
        self.run(|client| async move { client.delete_security_group().group_id(id).send().await })
            .expect("a group can be deleted");
    }

    /// Attaches one interface more, with these groups, to an instance, and returns its id.
    pub fn plug_in(&self, instance: &str, index: i32, groups: &[&str]) -> String {
        let subnets = self.run(|client| async move { client.describe_subnets().send().await });
        let subnets = subnets.expect("moto describes subnets");
        let subnet =
            subnets.subnets().first().and_then(|subnet| subnet.subnet_id()).expect("a default subnet");
        let (subnet, groups) = (subnet.to_owned(), groups.iter().map(|group| (*group).to_owned()).collect());
        let made = self.run(|client| async move {
            client.create_network_interface().subnet_id(subnet).set_groups(Some(groups)).send().await
        });
        let made = made.expect("an interface can be made").network_interface.expect("it is described");
        let interface = made.network_interface_id.expect("an interface has an id");
        let (id, instance) = (interface.clone(), instance.to_owned());
        self.run(|client| async move {
            let call = client.attach_network_interface().network_interface_id(id).instance_id(instance);
            call.device_index(index).send().await
        })
        .expect("an interface can be attached");
        interface
    }

    /// A prefix list of these ranges. Its id.
    pub fn prefix_list(&self, ranges: &[&str]) -> String {
        let entries: Vec<_> = ranges
            .iter()
            .map(|range| aws_sdk_ec2::types::AddPrefixListEntry::builder().cidr(*range).build())
            .collect();
        let most = i32::try_from(ranges.len()).expect("a short list");
        let made = self.run(|client| async move {
            client
                .create_managed_prefix_list()
                .prefix_list_name("a-test")
                .address_family("IPv4")
                .max_entries(most)
                .set_entries(Some(entries))
                .send()
                .await
        });
        let list = made.expect("a prefix list can be made").prefix_list.expect("it is described");
        list.prefix_list_id.expect("a prefix list has an id")
    }

    /// A running instance whose interfaces, one for each list, have these groups. Its id.
    pub fn instance(&self, name: &str, interfaces: &[&[&str]]) -> String {
        self.instances(name, 1, interfaces).pop().expect("one was started")
    }

    /// Starts several instances alike.
    pub fn instances(&self, name: &str, count: i32, interfaces: &[&[&str]]) -> Vec<String> {
        let subnets = self.run(|client| async move { client.describe_subnets().send().await });
        let subnets = subnets.expect("moto describes subnets");
        let subnet =
            subnets.subnets().first().and_then(|subnet| subnet.subnet_id()).expect("a default subnet");
        let specifications: Vec<_> = interfaces
            .iter()
            .zip(0..)
            .map(|(groups, index)| {
                InstanceNetworkInterfaceSpecification::builder()
                    .device_index(index)
                    .delete_on_termination(true)
                    .subnet_id(subnet)
                    .set_groups(Some(groups.iter().map(|group| (*group).to_owned()).collect()))
                    .build()
            })
            .collect();
        let tags = TagSpecification::builder()
            .resource_type(ResourceType::Instance)
            .tags(Tag::builder().key("Name").value(name).build())
            .build();
        let started = self.run(|client| async move {
            client
                .run_instances()
                .image_id("ami-12c6146b")
                .min_count(count)
                .max_count(count)
                .set_network_interfaces(Some(specifications))
                .tag_specifications(tags)
                .send()
                .await
        });
        let started = started.unwrap_or_else(|error| panic!("cannot start instances: {error:?}"));
        started
            .instances()
            .iter()
            .filter_map(|instance| instance.instance_id())
            .map(ToOwned::to_owned)
            .collect()
    }

    /// Tags a resource.
    pub fn tag(&self, resource: &str, key: &str, value: &str) {
        let (resource, tag) = (resource.to_owned(), Tag::builder().key(key).value(value).build());
        self.run(|client| async move { client.create_tags().resources(resource).tags(tag).send().await })
            .expect("a resource can be tagged");
    }

    /// Terminates an instance.
    pub fn terminate(&self, instance: &str) {
        let id = instance.to_owned();
        self.run(|client| async move { client.terminate_instances().instance_ids(id).send().await })
            .expect("an instance can be terminated");
    }

    /// The ingress rules of a group.
    pub fn rules(&self, group: &str) -> Snapshot {
        self.described(group).iter().filter(|rule| rule.is_egress() != Some(true)).map(RuleSpec::of).collect()
    }

    /// Returns the number of a group's egress rules.
    pub fn egress(&self, group: &str) -> usize {
        self.described(group).iter().filter(|rule| rule.is_egress() == Some(true)).count()
    }

    fn described(&self, group: &str) -> Vec<SecurityGroupRule> {
        let filter = Filter::builder().name("group-id").values(group).build();
        let found = self
            .run(|client| async move { client.describe_security_group_rules().filters(filter).send().await });
        found.expect("moto describes rules").security_group_rules.unwrap_or_default()
    }

    /// The id of the group with a name.
    pub fn group_named(&self, name: &str) -> Option<String> {
        let filter = Filter::builder().name("group-name").values(name).build();
        let found =
            self.run(|client| async move { client.describe_security_groups().filters(filter).send().await });
        found.expect("moto describes groups").security_groups().first()?.group_id().map(ToOwned::to_owned)
    }

    /// The id of an instance's own group.
    pub fn own_group(&self, instance: &str) -> Option<String> {
        self.group_named(&format!("postern-{instance}"))
    }

    /// The windows' rules of an instance: port and source.
    pub fn windows(&self, instance: &str) -> BTreeSet<(i32, String)> {
        let group = self.own_group(instance);
        let rules = group.map(|group| self.rules(&group)).unwrap_or_default();
        rules.into_iter().map(|rule| (rule.from, rule.source)).collect()
    }

    /// The groups on each interface of an instance.
    pub fn interfaces(&self, instance: &str) -> BTreeMap<String, BTreeSet<String>> {
        let filter = Filter::builder().name("attachment.instance-id").values(instance).build();
        let found = self
            .run(|client| async move { client.describe_network_interfaces().filters(filter).send().await });
        let found = found.expect("moto describes interfaces").network_interfaces.unwrap_or_default();
        let groups = |groups: &[aws_sdk_ec2::types::GroupIdentifier]| {
            groups.iter().filter_map(|group| group.group_id()).map(ToOwned::to_owned).collect()
        };
        found
            .iter()
            .filter_map(|interface| {
                Some((interface.network_interface_id()?.to_owned(), groups(interface.groups())))
            })
            .collect()
    }

    /// Replaces the groups of an interface.
    pub fn set_groups(&self, interface: &str, groups: &[&str]) {
        let (id, groups) = (interface.to_owned(), groups.iter().map(|group| (*group).to_owned()).collect());
        self.run(|client| async move {
            client
                .modify_network_interface_attribute()
                .network_interface_id(id)
                .set_groups(Some(groups))
                .send()
                .await
        })
        .expect("the groups of an interface can be replaced");
    }

    /// Returns every group with the tag of a Postern, by name.
    pub fn groups_of_postern(&self) -> BTreeSet<String> {
        let filter = Filter::builder().name("tag-key").values("postern:managed-by").build();
        let found =
            self.run(|client| async move { client.describe_security_groups().filters(filter).send().await });
        let found = found.expect("moto describes groups");
        found.security_groups().iter().filter_map(|group| group.group_name()).map(ToOwned::to_owned).collect()
    }
}
