//! The impact of a lockdown beyond the instance: the other machines that share its groups.

use std::collections::BTreeSet;

use postern_core::ProtectedPort;
use postern_provider::{CloudError, Concern, ConcernKind, LockdownOrder};

use super::LockdownOps;
use super::groups::{Neighbours, ordered};
use crate::ec2::Find;
use crate::resource::Ec2Interface;
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
            let found =
                self.groups.ec2.instances(Find::Where("instance-id", &[self.instance.to_owned()])).await?;
            let of_cluster = |key: &String| {
                key.starts_with("kubernetes.io/cluster/")
                    || key == "aws:eks:cluster-name"
                    || key == "eks:cluster-name"
            };
            snapshot.primary_only = found.iter().any(|instance| instance.tags.keys().any(of_cluster));
        }
        Ok(snapshot)
    }

    /// Returns a concern for each other machine on the groups that lose a rule, if it is not under JIT for
    /// these ports.
    pub(super) fn shared_with(
        &self,
        touched: &BTreeSet<String>,
        neighbours: &Neighbours,
        order: &LockdownOrder,
    ) -> Vec<Concern> {
        let ports = &order.ports;
        let without = |shut: &BTreeSet<ProtectedPort>| {
            let more: Vec<_> = ports.difference(shut).map(ToString::to_string).collect();
            more.join(", ")
        };
        let mut concerns = BTreeSet::new();
        for interface in &neighbours.interfaces {
            let who = match &interface.instance {
                Some(instance) if instance == self.instance => continue,
                Some(instance) => match (ordered(order, instance), neighbours.ports_of(instance)) {
                    (Some(shut), _) if ports.is_subset(shut) => continue,
                    (Some(shut), _) => format!(
                        "the instance {instance}, which this command puts under JIT, but not for {}",
                        without(shut)
                    ),
                    (None, Some(shut)) if ports.is_subset(&shut) => continue,
                    (None, Some(shut)) => {
                        format!("the instance {instance}, which is under JIT, but not for {}", without(&shut))
                    }
                    (None, None) => format!("the instance {instance}, which is not under JIT"),
                },
                None => {
                    let Ec2Interface { id, description, .. } = interface;
                    format!("the interface {id} ({description}), which is not under JIT")
                }
            };
            for group in interface.groups.iter().filter(|group| touched.contains(*group)) {
                let what = format!("{group} is also on {who}");
                concerns.insert(Concern { kind: ConcernKind::Shared, what });
            }
        }
        concerns.into_iter().collect()
    }
}
