//! A plan in words.

use postern_provider::{Action, Change, LockdownReport};

use super::{Act, Locking, Plan};
use crate::names;
use crate::parking::Step;
use crate::resource::NewRule;

impl Plan {
    /// What is to be changed, in words.
    pub(super) fn report(&self, locking: &Locking<'_>) -> LockdownReport {
        let own = || self.own.clone().unwrap_or_else(|| names::own(locking.instance));
        let change = |action, resource, detail: String| Change { action, resource, detail };
        let words = |act: &Act| match act {
            Act::MakeOwn { vpc, .. } => {
                change(Action::Create, own(), format!("a security group for its windows, in {vpc}"))
            }
            Act::ShutEgress(_) => change(Action::Remove, own(), "every egress rule".into()),
            Act::Expel(rule) => change(Action::Remove, own(), rule.to_string()),
            Act::Mark(tags) => {
                let tags: Vec<_> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
                change(Action::Mark, own(), tags.join(", "))
            }
            Act::Attach(interface) => change(Action::Attach, own(), format!("to {interface}")),
            Act::Detach(interface) => change(Action::Detach, own(), format!("from {interface}")),
            Act::DeleteOwn => change(Action::Delete, own(), String::new()),
            Act::Ward(index, step) => {
                let group = self.wards.get(*index).map_or("", |ward| &ward.group);
                let parked = || names::parked(group);
                let let_in = |rule: &NewRule| {
                    let described = if rule.description.is_empty() {
                        String::new()
                    } else {
                        format!(" ({})", rule.description)
                    };
                    format!("let {} in from {}{described}", rule.traffic, rule.source)
                };
                match step {
                    Step::MakeParked(_) => change(
                        Action::Create,
                        parked(),
                        format!("a security group that keeps rules of {group}"),
                    ),
                    Step::Hold(instance, _) => change(Action::Mark, parked(), format!("{instance} needs it")),
                    Step::Park(rule) => change(Action::Park, parked(), let_in(rule)),
                    Step::Add(rule) => change(Action::Add, group.to_owned(), let_in(rule)),
                    Step::Remove(rule) => change(Action::Remove, group.to_owned(), rule.to_string()),
                    Step::Unpark(rule) => change(Action::Remove, parked(), rule.to_string()),
                    Step::LetGo(instance) => {
                        change(Action::Mark, parked(), format!("{instance} no longer needs it"))
                    }
                    Step::DeleteParked => change(Action::Delete, parked(), String::new()),
                }
            }
        };
        LockdownReport { changes: self.acts.iter().map(words).collect(), concerns: self.concerns.clone() }
    }
}
