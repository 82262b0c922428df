//! The description of a plan for an administrator.

use postern_provider::{Action, CloudChange, LockdownReport};

use super::{InstancePlan, InstanceStep, LockdownOps};
use crate::names;
use crate::parking::GroupStep;
use crate::resource::NewGroupRule;
use crate::tags;

impl InstancePlan {
    /// Describes the changes and concerns of the plan.
    pub(super) fn report(&self, ops: &LockdownOps<'_>) -> LockdownReport {
        let own = || self.own.clone().unwrap_or_else(|| names::own(ops.instance));
        let change = |action, resource, detail: String| CloudChange { action, resource, detail };
        let words = |step: &InstanceStep| match step {
            InstanceStep::MakeOwn { vpc, .. } => {
                change(Action::Create, own(), format!("a security group for its windows, in {vpc}"))
            }
            InstanceStep::ShutEgress(_) => change(Action::Remove, own(), "every egress rule".into()),
            InstanceStep::RemoveStray(rule) => change(Action::Remove, own(), rule.to_string()),
            InstanceStep::Mark(tags) => {
                // The state also holds the consent, which a dry run does not know yet.
                let word = |(key, value): (&String, &String)| match key.as_str() {
                    tags::STATE => format!("{key}={}", value.split(' ').next().unwrap_or_default()),
                    _ => format!("{key}={value}"),
                };
                let tags: Vec<_> = tags.iter().map(word).collect();
                change(Action::Mark, own(), tags.join(", "))
            }
            InstanceStep::Unmark(keys) => change(Action::Mark, own(), format!("without {}", keys.join(", "))),
            InstanceStep::Attach(interface) => change(Action::Attach, own(), format!("to {interface}")),
            InstanceStep::Detach { interface, group } => {
                change(Action::Detach, group.clone(), format!("from {interface}"))
            }
            InstanceStep::DeleteOwn => change(Action::Delete, own(), String::new()),
            InstanceStep::CustomerGroup(index, step) => {
                let group = self.customer_groups.get(*index).map_or("", |customer_group| &customer_group.id);
                let parked = |number: &usize| names::parked(group, *number);
                let let_in = |rule: &NewGroupRule| {
                    let described = if rule.description.is_empty() {
                        String::new()
                    } else {
                        format!(" ({})", rule.description)
                    };
                    format!("let {} in from {}{described}", rule.traffic, rule.source)
                };
                match step {
                    GroupStep::MakeParked(number, _) => change(
                        Action::Create,
                        parked(number),
                        format!("a security group that keeps rules of {group}"),
                    ),
                    GroupStep::Hold(number, instance, _) => {
                        change(Action::Mark, parked(number), format!("{instance} needs it"))
                    }
                    GroupStep::Park(number, rule) => change(Action::Park, parked(number), let_in(rule)),
                    GroupStep::Add(rule) => change(Action::Add, group.to_owned(), let_in(rule)),
                    GroupStep::Remove(rule) => change(Action::Remove, group.to_owned(), rule.to_string()),
                    GroupStep::Unpark(rule) => change(Action::Remove, rule.group.clone(), rule.to_string()),
                    GroupStep::ReleaseHolder(number, instance) => {
                        change(Action::Mark, parked(number), format!("{instance} no longer needs it"))
                    }
                    GroupStep::DeleteParked(number) => change(Action::Delete, parked(number), String::new()),
                }
            }
        };
        LockdownReport { changes: self.steps.iter().map(words).collect(), concerns: self.concerns.clone() }
    }
}
