//! A write of a network security group, and its effect on a group that was read.

use std::collections::BTreeMap;

use postern_provider::{Action, CloudChange};

use crate::id::ArmId;
use crate::names::RuleName;
use crate::network::Nsg;
use crate::rules::{NewNsgRule, RuleMatch};

/// A write of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RuleWrite {
    /// Writes one of Postern's rules.
    Put(ArmId, NewNsgRule),
    /// Deletes one of Postern's rules.
    Delete(ArmId, String),
    /// Moves one of the customer's rules to another priority; nothing else of it changes.
    Move {
        /// The group of the rule.
        group: ArmId,
        /// The name of the rule.
        rule: String,
        /// The priority that it has.
        from: u16,
        /// The priority that it gets.
        to: u16,
    },
}

/// The reason that an operation is impossible, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlanError(pub(crate) String);

impl RuleWrite {
    /// The group that the write changes.
    pub(crate) fn group(&self) -> &ArmId {
        match self {
            Self::Put(group, _) | Self::Delete(group, _) | Self::Move { group, .. } => group,
        }
    }

    /// Describes the write for an operator.
    pub(crate) fn change(&self) -> CloudChange {
        let resource = self.group().name().to_owned();
        match self {
            Self::Put(_, rule) => {
                let detail = match (&rule.matches, RuleName::read(&rule.name)) {
                    (RuleMatch::Nothing, Some(RuleName::Release(_))) => {
                        format!("rule {}: a release is under way", rule.name)
                    }
                    (RuleMatch::Nothing, _) => format!("rule {}: a note of where a rule was", rule.name),
                    (RuleMatch::Ports { protocol, ports, .. }, _) => {
                        let ports: Vec<String> =
                            ports.iter().map(|port| format!("{protocol}/{port}")).collect();
                        format!("rule {} (priority {}): shut {}", rule.name, rule.priority, ports.join(", "))
                    }
                };
                CloudChange { action: Action::Create, resource, detail }
            }
            Self::Delete(_, name) => {
                CloudChange { action: Action::Delete, resource, detail: format!("rule {name}") }
            }
            Self::Move { rule, from, to, .. } => {
                let detail = format!("rule {rule} from priority {from} to {to}");
                CloudChange { action: Action::Move, resource, detail }
            }
        }
    }
}

/// Returns the groups as they are after the writes.
pub(crate) fn apply(groups: &BTreeMap<ArmId, Nsg>, writes: &[RuleWrite]) -> BTreeMap<ArmId, Nsg> {
    let mut groups = groups.clone();
    for write in writes {
        let Some(group) = groups.get_mut(write.group()) else { continue };
        match write {
            RuleWrite::Put(_, rule) => {
                group.rules.retain(|other| !other.name.eq_ignore_ascii_case(&rule.name));
                group.rules.push(rule.read_back());
            }
            RuleWrite::Delete(_, name) => group.rules.retain(|rule| !rule.name.eq_ignore_ascii_case(name)),
            RuleWrite::Move { rule, to, .. } => {
                for moved in group.rules.iter_mut().filter(|other| other.name == *rule) {
                    moved.priority = *to;
                }
            }
        }
        group.rules.sort_by_key(|rule| (rule.is_default, rule.priority));
    }
    groups
}
