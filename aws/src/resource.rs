//! The resources of EC2, in the terms of this crate.

use std::collections::{BTreeMap, BTreeSet};

use crate::rule::{Ec2Traffic, GroupRule, RuleSource, Tags};
use crate::{names, tags};

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ec2Group {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) vpc: String,
    pub(crate) tags: Tags,
    /// The number of its rules, of both directions.
    pub(crate) rules: usize,
}

impl Ec2Group {
    /// Returns the group whose rules it keeps, if it is a parked group.
    pub(crate) fn parked_for(&self) -> Option<&str> {
        names::parked_for(&self.name)
    }

    /// Returns the instances that it serves: by its name, which cannot be changed, if it is an own group, and by its tags
    /// if it is a parked one.
    pub(crate) fn serves(&self) -> BTreeSet<String> {
        match names::instance(&self.name) {
            Some(instance) => [instance.to_owned()].into(),
            None => tags::holders(&self.tags).into_keys().collect(),
        }
    }

    /// Reports whether it is this deployment's; a group without the tag counts as managed.
    pub(crate) fn is_managed(&self, deployment: &str) -> bool {
        self.tags.get(tags::MANAGED_BY).is_none_or(|owner| owner == deployment)
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ec2Interface {
    pub(crate) id: String,
    /// The instance that it is attached to.
    pub(crate) instance: Option<String>,
    /// Its device index on the instance: 0 is the primary one.
    pub(crate) index: i32,
    pub(crate) vpc: String,
    pub(crate) groups: Vec<String>,
    /// Those of its groups that are Postern's and do not belong there: parked groups, and own groups of other
    /// instances.
    pub(crate) misplaced: Vec<String>,
    /// A service made and manages it, for instance for a container or a load balancer: EC2 lets no one else
    /// change its groups (EC2 User Guide, "Requester-managed network interfaces").
    pub(crate) is_managed: bool,
    /// EC2's description of it, for interfaces of no instance.
    pub(crate) description: String,
}

impl Ec2Interface {
    /// Reports whether its ports are the machine's: not those of an interface that a service manages, which carries
    /// containers, nor, where only the primary interface counts, those of another one, which Kubernetes lends to pods.
    pub(crate) fn is_guarded(&self, primary_only: bool) -> bool {
        self.index == 0 || !primary_only && !self.is_managed
    }
}

/// A managed prefix list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PrefixList {
    /// The number of rules that it counts as; none if EC2 does not tell.
    pub(crate) weight: Option<usize>,
    /// Its ranges are IPv6.
    pub(crate) is_v6: bool,
}

/// An instance that is not terminated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) tags: Tags,
}

/// The rules of groups, both directions.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rules {
    pub(crate) ingress: BTreeMap<String, Vec<GroupRule>>,
    pub(crate) egress: BTreeMap<String, Vec<GroupRule>>,
}

/// A rule that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NewGroupRule {
    pub(crate) traffic: Ec2Traffic,
    pub(crate) source: RuleSource,
    pub(crate) description: String,
    pub(crate) tags: Tags,
}
