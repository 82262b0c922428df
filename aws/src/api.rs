//! The calls to EC2 through Amazon's SDK, within the client-side rates.
//!
//! The SDK retries a read a few times and never retries a write: the provider reads EC2 to find out what a
//! failed write did.

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{Filter, ResourceType, Tag, TagSpecification};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use postern_provider::kit::CallError;

use crate::ec2::{Ec2, Find};
use crate::error::call_error;
use crate::permissions::{self, DryRuns};
use crate::rates::{ActionBuckets, ActionKind};
use crate::resource::{Ec2Group, Ec2Interface, Instance, NewGroupRule, PrefixList, Rules};
use crate::rule::{GroupRule, Tags};
use crate::trial::TrialOutcome;
use crate::wire;

/// The most values of a filter, and the most items of a page (EC2 API reference).
const VALUES_PER_FILTER: usize = 200;
const PAGE_SIZE: i32 = 1000;
const PREFIX_LIST_PAGE_SIZE: i32 = 100;

/// EC2 in one account and Region, through the SDK.
pub(crate) struct SdkEc2 {
    pub(crate) reads: Client,
    pub(crate) writes: Client,
    pub(crate) buckets: ActionBuckets,
}

impl Find<'_> {
    fn kind(&self) -> ActionKind {
        match self {
            Self::All => ActionKind::DescribeAll,
            Self::Where(..) => ActionKind::Describe,
        }
    }

    /// Returns one filter for each batch of values that a call takes.
    fn batches(&self) -> Vec<Option<Filter>> {
        match self {
            Self::All => vec![None],
            Self::Where(name, values) => {
                let filter =
                    |some: &[String]| Filter::builder().name(*name).set_values(Some(some.to_vec())).build();
                values.chunks(VALUES_PER_FILTER).map(|some| Some(filter(some))).collect()
            }
        }
    }
}

/// Reads every page of every batch of a `Describe` action.
macro_rules! pages {
    ($ec2:expr, $find:expr, $call:ident, $action:literal, $items:ident, $each:expr) => {
        pages!($ec2, $find, $call, $action, $items, PAGE_SIZE, $each)
    };
    ($ec2:expr, $find:expr, $call:ident, $action:literal, $items:ident, $size:expr, $each:expr) => {{
        let find = $find;
        for filter in find.batches() {
            let mut next = None;
            loop {
                $ec2.buckets.take(&(find.kind(), $action)).await;
                let page = $ec2
                    .reads
                    .$call()
                    .set_filters(filter.clone().map(|filter| vec![filter]))
                    .max_results($size)
                    .set_next_token(next)
                    .send()
                    .await
                    .map_err(|error| call_error($action, &error))?;
                page.$items().iter().for_each($each);
                next = page.next_token().filter(|token| !token.is_empty()).map(ToOwned::to_owned);
                if next.is_none() {
                    break;
                }
            }
        }
    }};
}

#[async_trait]
impl Ec2 for SdkEc2 {
    async fn groups(&self, find: Find<'_>) -> Result<Vec<Ec2Group>, CallError> {
        let mut found = Vec::new();
        pages!(self, find, describe_security_groups, "DescribeSecurityGroups", security_groups, |group| {
            found.extend(wire::group(group));
        });
        Ok(found)
    }

    async fn has_group(&self, id: &str) -> Result<bool, CallError> {
        const ACTION: &str = "DescribeSecurityGroups";
        self.buckets.take(&(ActionKind::Describe, ACTION)).await;
        match done(ACTION, self.reads.describe_security_groups().group_ids(id).send().await) {
            Ok(answer) => Ok(!answer.security_groups().is_empty()),
            Err(error) if error.code() == "InvalidGroup.NotFound" => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn interfaces(&self, find: Find<'_>) -> Result<Vec<Ec2Interface>, CallError> {
        let mut found = Vec::new();
        pages!(
            self,
            find,
            describe_network_interfaces,
            "DescribeNetworkInterfaces",
            network_interfaces,
            |interface| found.extend(wire::interface(interface))
        );
        Ok(found)
    }

    async fn instances(&self, find: Find<'_>) -> Result<Vec<Instance>, CallError> {
        let mut found = Vec::new();
        pages!(self, find, describe_instances, "DescribeInstances", reservations, |reservation| {
            found.extend(reservation.instances().iter().filter_map(wire::instance));
        });
        Ok(found)
    }

    async fn rules(&self, find: Find<'_>) -> Result<Rules, CallError> {
        let mut found = Rules::default();
        pages!(
            self,
            find,
            describe_security_group_rules,
            "DescribeSecurityGroupRules",
            security_group_rules,
            |rule| {
                if let Some(read) = wire::rule(rule) {
                    let side =
                        if rule.is_egress() == Some(true) { &mut found.egress } else { &mut found.ingress };
                    side.entry(read.group.clone()).or_default().push(read);
                }
            }
        );
        Ok(found)
    }

    async fn prefix_lists(&self, ids: &[String]) -> Result<BTreeMap<String, PrefixList>, CallError> {
        let mut found = BTreeMap::new();
        pages!(
            self,
            Find::Where("prefix-list-id", ids),
            describe_managed_prefix_lists,
            "DescribeManagedPrefixLists",
            prefix_lists,
            PREFIX_LIST_PAGE_SIZE,
            |list| found.extend(wire::prefix_list(list))
        );
        Ok(found)
    }

    async fn create_group(
        &self,
        name: &str,
        description: &str,
        vpc: &str,
        tags: &Tags,
    ) -> Result<String, CallError> {
        const ACTION: &str = "CreateSecurityGroup";
        self.buckets.take(&(ActionKind::Change, ACTION)).await;
        let call = self.writes.create_security_group().group_name(name).description(description).vpc_id(vpc);
        let tags = specification(ResourceType::SecurityGroup, tags);
        let answer = done(ACTION, call.tag_specifications(tags).send().await)?;
        let missing = || CallError::no_answer(ACTION, "the answer has no group id");
        answer.group_id().map(ToOwned::to_owned).ok_or_else(missing)
    }

    async fn delete_group(&self, id: &str) -> Result<(), CallError> {
        const ACTION: &str = "DeleteSecurityGroup";
        self.buckets.take(&(ActionKind::Change, ACTION)).await;
        done(ACTION, self.writes.delete_security_group().group_id(id).send().await).map(drop)
    }

    async fn authorize(&self, group: &str, rules: &[NewGroupRule]) -> Result<Vec<GroupRule>, CallError> {
        const ACTION: &str = "AuthorizeSecurityGroupIngress";
        self.buckets.take(&(ActionKind::Change, ACTION)).await;
        let tags = rules.first().map(|rule| &rule.tags).filter(|tags| !tags.is_empty());
        let call = self
            .writes
            .authorize_security_group_ingress()
            .group_id(group)
            .set_ip_permissions(Some(wire::permissions(rules)))
            .set_tag_specifications(
                tags.map(|tags| vec![specification(ResourceType::SecurityGroupRule, tags)]),
            );
        let answer = done(ACTION, call.send().await)?;
        Ok(answer.security_group_rules().iter().filter_map(wire::rule).collect())
    }

    async fn revoke(&self, group: &str, rules: &[String]) -> Result<(), CallError> {
        const ACTION: &str = "RevokeSecurityGroupIngress";
        self.buckets.take(&(ActionKind::Change, ACTION)).await;
        let call = self.writes.revoke_security_group_ingress().group_id(group);
        let ids = Some(rules.to_vec());
        done(ACTION, call.set_security_group_rule_ids(ids).send().await).map(drop)
    }

    async fn revoke_like(&self, group: &str, rule: &NewGroupRule) -> Result<(), CallError> {
        const ACTION: &str = "RevokeSecurityGroupIngress";
        self.buckets.take(&(ActionKind::Change, ACTION)).await;
        // EC2 compares a description that is given: without one, it finds a rule with any.
        let plain = NewGroupRule { description: String::new(), ..rule.clone() };
        let call = self.writes.revoke_security_group_ingress().group_id(group);
        let permissions = Some(wire::permissions(&[plain]));
        done(ACTION, call.set_ip_permissions(permissions).send().await).map(drop)
    }

    async fn revoke_egress(&self, group: &str, rules: &[String]) -> Result<(), CallError> {
        const ACTION: &str = "RevokeSecurityGroupEgress";
        self.buckets.take(&(ActionKind::Change, ACTION)).await;
        let call = self.writes.revoke_security_group_egress().group_id(group);
        let ids = Some(rules.to_vec());
        done(ACTION, call.set_security_group_rule_ids(ids).send().await).map(drop)
    }

    async fn tag(&self, resource: &str, tags: &Tags) -> Result<(), CallError> {
        const ACTION: &str = "CreateTags";
        self.buckets.take(&(ActionKind::Tag, ACTION)).await;
        let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let call = self.writes.create_tags().resources(resource).set_tags(Some(tags));
        done(ACTION, call.send().await).map(drop)
    }

    async fn untag(&self, resource: &str, keys: &[String]) -> Result<(), CallError> {
        const ACTION: &str = "DeleteTags";
        self.buckets.take(&(ActionKind::Tag, ACTION)).await;
        let tags = keys.iter().map(|key| Tag::builder().key(key).build()).collect();
        let call = self.writes.delete_tags().resources(resource).set_tags(Some(tags));
        done(ACTION, call.send().await).map(drop)
    }

    async fn set_groups(&self, interface: &str, groups: &[String]) -> Result<(), CallError> {
        const ACTION: &str = "ModifyNetworkInterfaceAttribute";
        self.buckets.take(&(ActionKind::ModifyInterface, ACTION)).await;
        let call = self.writes.modify_network_interface_attribute().network_interface_id(interface);
        done(ACTION, call.set_groups(Some(groups.to_vec())).send().await).map(drop)
    }

    async fn try_permissions(&self, deployment: &str) -> Vec<(&'static str, TrialOutcome)> {
        let dry_runs = DryRuns { reads: &self.reads, writes: &self.writes, ec2: self };
        permissions::in_place(&dry_runs, deployment).await
    }
}

fn specification(resource: ResourceType, tags: &Tags) -> TagSpecification {
    let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
    TagSpecification::builder().resource_type(resource).set_tags(Some(tags)).build()
}

fn done<T, E>(action: &'static str, answer: Result<T, SdkError<E, HttpResponse>>) -> Result<T, CallError>
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    answer.map_err(|error| call_error(action, &error))
}
