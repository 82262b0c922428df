//! The impact of a lockdown or a release beyond the instance: the customer's groups, their quota, and the
//! other machines that share them.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{CloudError, Concern, ConcernKind};

use super::LockdownOps;
use crate::api::Find;
use crate::names;
use crate::parking::{CustomerGroup, Holders, Parked, Quota};
use crate::resource::{Ec2Group, Ec2Interface};
use crate::rule::RuleSource;
use crate::snapshot::InstanceSnapshot;
use crate::tags;

impl LockdownOps<'_> {
    /// Adds to the snapshot whether only the primary interface counts: a node of a Kubernetes cluster lends
    /// its other interfaces to pods (EKS User Guide, "Security groups for Pods").
    pub(super) async fn with_interface_scope(
        &self,
        snapshot: &InstanceSnapshot,
    ) -> Result<InstanceSnapshot, CloudError> {
        let mut snapshot = snapshot.clone();
        if snapshot.own().is_none_or(|own| !own.tags.contains_key(tags::INTERFACES)) {
            let found = self.ec2.instances(Find::Where("instance-id", &[self.instance.to_owned()])).await?;
            let of_cluster = |key: &String| {
                key.starts_with("kubernetes.io/cluster/")
                    || key == "aws:eks:cluster-name"
                    || key == "eks:cluster-name"
            };
            snapshot.primary_only = found.iter().any(|instance| instance.tags.keys().any(of_cluster));
        }
        Ok(snapshot)
    }

    /// Reads the customer's groups, with the rules that are parked for them.
    pub(super) async fn read_customer_groups(
        &self,
        groups: &[String],
    ) -> Result<Vec<CustomerGroup>, CloudError> {
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.ec2.groups(Find::Where("group-id", groups)).await?;
        // By their names, which cannot be changed: a release must find them.
        let names: Vec<String> = groups.iter().map(|group| names::parked(group)).collect();
        let mut parked = self.ec2.groups(Find::Where("group-name", &names)).await?;
        parked.retain(|group| group.is_managed(self.deployment));
        let ids: Vec<String> = found.iter().chain(&parked).map(|group| group.id.clone()).collect();
        let mut rules = self.ec2.rules(Find::Where("group-id", &ids)).await?;
        // A rule whose source cannot be read cannot be put back either: it stays, and is reported as open.
        let mut rules_of = |id: &str| {
            let mut rules = rules.ingress.remove(id).unwrap_or_default();
            rules.retain(|rule| rule.source != RuleSource::Unreadable);
            rules
        };
        let mut customer_groups = Vec::new();
        for group in found {
            let parked = parked.iter().find(|parked| parked.parked_for() == Some(&group.id));
            let parked = parked.map(|parked| Parked {
                id: parked.id.clone(),
                rules: rules_of(&parked.id),
                holders: tags::holders(&parked.tags),
            });
            customer_groups.push(CustomerGroup {
                rules: rules_of(&group.id),
                id: group.id,
                exists: true,
                vpc: group.vpc,
                parked,
            });
        }
        // The parked rules of a group that is gone go too, with their last holder.
        for group in &parked {
            let Some(gone) = group.parked_for() else { continue };
            if customer_groups.iter().all(|customer_group| customer_group.id != gone) {
                let holders = tags::holders(&group.tags);
                let parked = Some(Parked { id: group.id.clone(), rules: Vec::new(), holders });
                customer_groups.push(CustomerGroup {
                    id: gone.to_owned(),
                    exists: false,
                    vpc: String::new(),
                    rules: Vec::new(),
                    parked,
                });
            }
        }
        Ok(customer_groups)
    }

    pub(super) async fn quota(&self, customer_groups: &[CustomerGroup]) -> Result<Quota, CloudError> {
        let lists: BTreeSet<String> = customer_groups
            .iter()
            .flat_map(|customer_group| &customer_group.rules)
            .filter_map(|rule| match &rule.source {
                RuleSource::PrefixList(list) => Some(list.clone()),
                RuleSource::Prefix(_)
                | RuleSource::Group(_)
                | RuleSource::Peer { .. }
                | RuleSource::Unreadable => None,
            })
            .collect();
        let lists: Vec<String> = lists.into_iter().collect();
        let prefix_lists =
            if lists.is_empty() { BTreeMap::new() } else { self.ec2.prefix_lists(&lists).await? };
        Ok(Quota { rules: self.rules_per_group, prefix_lists })
    }

    /// Returns a concern for each other machine on the groups that lose a rule, if it is not under JIT for
    /// these ports.
    pub(super) async fn shared_with(
        &self,
        customer_groups: &[CustomerGroup],
        touched: Vec<(usize, Holders)>,
        ports: &BTreeSet<ProtectedPort>,
        together: &BTreeSet<TargetId>,
    ) -> Result<Vec<Concern>, CloudError> {
        let groups: Vec<String> = touched
            .iter()
            .filter_map(|(index, _)| customer_groups.get(*index))
            .map(|customer_group| customer_group.id.clone())
            .collect();
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let interfaces = self.ec2.interfaces(Find::Where("group-id", &groups)).await?;
        let instances: BTreeSet<String> =
            interfaces.iter().filter_map(|interface| interface.instance.clone()).collect();
        let instances: Vec<String> = instances.into_iter().collect();
        let own = self.ec2.groups(Find::Where("tag:postern:instance", &instances)).await?;
        let is_managed = |group: &&Ec2Group| {
            group.tags.get(tags::MANAGED_BY).is_some_and(|owner| owner == self.deployment)
        };
        let locked: Holders =
            own.iter().filter(is_managed).flat_map(|group| tags::holders(&group.tags)).collect();
        let is_ordered =
            |instance: &str| together.iter().any(|target| target.segments().last() == Some(&instance));
        let mut concerns = BTreeSet::new();
        for interface in &interfaces {
            let who = match &interface.instance {
                Some(instance) if instance == self.instance || is_ordered(instance) => continue,
                Some(instance) => match locked.get(instance) {
                    Some(shut) if ports.is_subset(shut) => continue,
                    Some(shut) => {
                        let more: Vec<_> = ports.difference(shut).map(ToString::to_string).collect();
                        format!(
                            "the instance {instance}, which is under JIT, but not for {}",
                            more.join(", ")
                        )
                    }
                    None => format!("the instance {instance}, which is not under JIT"),
                },
                None => {
                    let Ec2Interface { id, description, .. } = interface;
                    format!("the interface {id} ({description}), which is not under JIT")
                }
            };
            for group in interface.groups.iter().filter(|group| groups.contains(group)) {
                let what = format!("{group} is also on {who}");
                concerns.insert(Concern { kind: ConcernKind::Shared, what });
            }
        }
        Ok(concerns.into_iter().collect())
    }
}
