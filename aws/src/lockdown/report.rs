//! The description of a plan for an administrator.

use postern_provider::{Action, CloudChange, LockdownReport};

use super::{InstancePlan, InstanceStep, LockdownOps};
use crate::names;
use crate::parking::GroupStep;
use crate::resource::NewGroupRule;

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
                let tags: Vec<_> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
                change(Action::Mark, own(), tags.join(", "))
            }
            InstanceStep::Attach(interface) => change(Action::Attach, own(), format!("to {interface}")),
            InstanceStep::Detach(interface) => change(Action::Detach, own(), format!("from {interface}")),
            InstanceStep::DeleteOwn => change(Action::Delete, own(), String::new()),
            InstanceStep::CustomerGroup(index, step) => {
                let group = self.customer_groups.get(*index).map_or("", |customer_group| &customer_group.id);
                let parked = || names::parked(group);
                let let_in = |rule: &NewGroupRule| {
                    let described = if rule.description.is_empty() {
                        String::new()
                    } else {
                        format!(" ({})", rule.description)
                    };
                    format!("let {} in from {}{described}", rule.traffic, rule.source)
                };
                match step {
                    GroupStep::MakeParked(_) => change(
                        Action::Create,
                        parked(),
                        format!("a security group that keeps rules of {group}"),
                    ),
                    GroupStep::Hold(instance, _) => {
                        change(Action::Mark, parked(), format!("{instance} needs it"))
                    }
                    GroupStep::Park(rule) => change(Action::Park, parked(), let_in(rule)),
                    GroupStep::Add(rule) => change(Action::Add, group.to_owned(), let_in(rule)),
                    GroupStep::Remove(rule) => change(Action::Remove, group.to_owned(), rule.to_string()),
                    GroupStep::Unpark(rule) => change(Action::Remove, parked(), rule.to_string()),
                    GroupStep::ReleaseHolder(instance) => {
                        change(Action::Mark, parked(), format!("{instance} no longer needs it"))
                    }
                    GroupStep::DeleteParked => change(Action::Delete, parked(), String::new()),
                }
            }
        };
        LockdownReport { changes: self.steps.iter().map(words).collect(), concerns: self.concerns.clone() }
    }
}
