//! What EC2 has, in the terms of this crate.

use std::collections::BTreeMap;

use crate::rule::{Rule, Source, Tags, Traffic};

/// A security group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) vpc: String,
    pub(crate) tags: Tags,
    /// How many rules it has, of both directions.
    pub(crate) rules: usize,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) id: String,
    /// The instance that it is attached to.
    pub(crate) instance: Option<String>,
    /// Its place on the instance: 0 is the primary one.
    pub(crate) index: i32,
    pub(crate) vpc: String,
    pub(crate) groups: Vec<String>,
    /// What it is, in EC2's words, where it is no instance's.
    pub(crate) description: String,
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
    pub(crate) ingress: BTreeMap<String, Vec<Rule>>,
    pub(crate) egress: BTreeMap<String, Vec<Rule>>,
}

/// A rule that is to be made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NewRule {
    pub(crate) traffic: Traffic,
    pub(crate) source: Source,
    pub(crate) description: String,
    pub(crate) tags: Tags,
}
