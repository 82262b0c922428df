//! The calls to EC2 in one account and Region, in the terms of this crate.

use std::collections::BTreeMap;

use async_trait::async_trait;
use postern_provider::kit::CallError;

use crate::resource::{Ec2Group, Ec2Interface, Instance, NewGroupRule, PrefixList, Rules};
use crate::rule::{GroupRule, Tags};
use crate::trial::TrialOutcome;

/// EC2 in one account and Region. Reads may be older than the last change, and no change is sent twice.
#[async_trait]
pub(crate) trait Ec2: Send + Sync {
    /// Returns security groups.
    async fn groups(&self, find: Find<'_>) -> Result<Vec<Ec2Group>, CallError>;

    /// Reports whether a group exists. Only EC2's own "not found" says that it does not: an empty answer to a filter
    /// does not (I6).
    async fn has_group(&self, id: &str) -> Result<bool, CallError>;

    /// Returns network interfaces.
    async fn interfaces(&self, find: Find<'_>) -> Result<Vec<Ec2Interface>, CallError>;

    /// Returns the instances that are neither terminated nor about to be.
    async fn instances(&self, find: Find<'_>) -> Result<Vec<Instance>, CallError>;

    /// Returns the rules that the selection matches, by group and direction.
    async fn rules(&self, find: Find<'_>) -> Result<Rules, CallError>;

    /// Returns the number of rules that each of these prefix lists counts as, and its family.
    async fn prefix_lists(&self, ids: &[String]) -> Result<BTreeMap<String, PrefixList>, CallError>;

    /// Creates a group that has its tags from its first moment, and returns its id.
    async fn create_group(
        &self,
        name: &str,
        description: &str,
        vpc: &str,
        tags: &Tags,
    ) -> Result<String, CallError>;

    /// Deletes a group.
    async fn delete_group(&self, id: &str) -> Result<(), CallError>;

    /// Adds rules, which all have the same tags. EC2 adds all of them or none.
    async fn authorize(&self, group: &str, rules: &[NewGroupRule]) -> Result<Vec<GroupRule>, CallError>;

    /// Removes rules by id. By properties, EC2 would not report a rule that is missing in a default VPC.
    async fn revoke(&self, group: &str, rules: &[String]) -> Result<(), CallError>;

    /// Removes the rule with this traffic and source, if there is one. In a default VPC EC2 does not report that
    /// there was none.
    async fn revoke_like(&self, group: &str, rule: &NewGroupRule) -> Result<(), CallError>;

    /// Removes egress rules by id.
    async fn revoke_egress(&self, group: &str, rules: &[String]) -> Result<(), CallError>;

    /// Writes tags on a resource.
    async fn tag(&self, resource: &str, tags: &Tags) -> Result<(), CallError>;

    /// Removes tags from a resource, whatever their value.
    async fn untag(&self, resource: &str, keys: &[String]) -> Result<(), CallError>;

    /// Replaces all groups of an interface: EC2 has no other call for it, and no compare-and-swap.
    async fn set_groups(&self, interface: &str, groups: &[String]) -> Result<(), CallError>;

    /// Tries each action that the broker needs as a dry run, for a deployment. Changes nothing.
    async fn try_permissions(&self, deployment: &str) -> Vec<(&'static str, TrialOutcome)>;
}

/// A selection of resources.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Find<'a> {
    /// Everything in the Region.
    All,
    /// The resources for which the filter has one of these values.
    Where(&'a str, &'a [String]),
}
