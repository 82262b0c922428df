//! The execution of a plan, call after call.

use postern_provider::CloudError;
use postern_provider::kit::{Attempt, CallError, attempt_until};

use super::groups::{ParkedIds, until_known};
use super::{InstancePlan, InstanceStep, LockdownOps};
use crate::backoff::backoff;
use crate::ec2::Find;
use crate::names;
use crate::open_close::is_not_found;
use crate::parking::GroupStep;

impl LockdownOps<'_> {
    pub(super) async fn execute(&self, mut plan: InstancePlan) -> Result<(), CloudError> {
        let mut parked = ParkedIds::of(&plan.customer_groups);
        let mut own = plan.own.take();
        let was_there = own.is_some();
        for call in into_calls(plan.steps) {
            tracing::info!(target = %self.target, ?call, "changing security groups");
            match call {
                PlannedCall::Own(InstanceStep::MakeOwn { vpc, tags }) => {
                    let description =
                        format!("Postern: windows of {}. Made and deleted by the broker.", self.instance);
                    let name = names::own(self.instance);
                    own = Some(self.groups.ec2.create_group(&name, &description, &vpc, &tags).await?);
                }
                PlannedCall::Own(step) => {
                    let own = own.as_deref().unwrap_or_default();
                    let is_attaching = matches!(step, InstanceStep::Attach(_));
                    let done = self.on_own(own, step).await;
                    if matches!(done, Err(CloudError::Refused { .. })) && is_attaching && !was_there {
                        // No rule of the customer's was touched yet: leave nothing behind.
                        self.delete_failed_own_group(own).await;
                    }
                    done?;
                }
                PlannedCall::CustomerGroup(index, steps) => {
                    if let Some(customer_group) = plan.customer_groups.get(index) {
                        self.groups.carry_out(customer_group, &mut parked, steps).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn on_own(&self, own: &str, step: InstanceStep) -> Result<(), CloudError> {
        match step {
            InstanceStep::ShutEgress(rules) => self.shut_egress(own, rules).await,
            InstanceStep::RemoveStray(rule) => match self.groups.ec2.revoke(own, &[rule.id]).await {
                Err(error) if !is_not_found(&error) => Err(error.into()),
                Ok(()) | Err(_) => Ok(()),
            },
            InstanceStep::Mark(tags) => Ok(until_known(|| self.groups.ec2.tag(own, &tags)).await?),
            InstanceStep::Unmark(keys) => Ok(self.groups.ec2.untag(own, &keys).await?),
            InstanceStep::Attach(interface) => self.attach(own, &interface).await,
            InstanceStep::Detach { interface, group } => self.detach(&group, &interface).await,
            InstanceStep::DeleteOwn => self.groups.delete(own).await,
            InstanceStep::MakeOwn { .. } | InstanceStep::CustomerGroup(..) => Ok(()),
        }
    }

    async fn shut_egress(&self, own: &str, rules: Vec<String>) -> Result<(), CloudError> {
        let rules = if rules.is_empty() { self.egress_of_new(own).await? } else { rules };
        Ok(until_known(|| self.groups.ec2.revoke_egress(own, &rules)).await?)
    }

    /// Returns the egress rules of a new group. EC2 creates a group with an egress rule for everything, which a read may not show at
    /// once.
    async fn egress_of_new(&self, own: &str) -> Result<Vec<String>, CloudError> {
        let shown = attempt_until(backoff(), || async {
            let found = self.groups.ec2.rules(Find::Where("group-id", &[own.to_owned()])).await?;
            let rules: Vec<String> = found.egress.values().flatten().map(|rule| rule.id.clone()).collect();
            Ok::<_, CallError>(if rules.is_empty() { Attempt::NotYet(()) } else { Attempt::Shown(rules) })
        });
        match shown.await? {
            Attempt::Shown(rules) => Ok(rules),
            Attempt::NotYet(()) => {
                Err(CloudError::unavailable(format!("EC2 shows no egress rule of the new group {own} yet")))
            }
        }
    }

    async fn attach(&self, own: &str, interface: &str) -> Result<(), CloudError> {
        let attach = |groups: &mut Vec<String>| {
            if !groups.iter().any(|group| group == own) {
                groups.push(own.to_owned());
            }
        };
        self.change_groups(interface, attach).await
    }

    async fn detach(&self, own: &str, interface: &str) -> Result<(), CloudError> {
        self.change_groups(interface, |groups| groups.retain(|group| group != own)).await
    }

    /// Replaces the groups of an interface, and reads them back: EC2 has no compare-and-swap.
    async fn change_groups(
        &self,
        interface: &str,
        change: impl Fn(&mut Vec<String>) + Send + Sync,
    ) -> Result<(), CloudError> {
        let wanted = |now: &[String]| {
            let mut wanted = now.to_vec();
            change(&mut wanted);
            (wanted != now).then_some(wanted)
        };
        let mut sent = false;
        for wait in backoff() {
            let found = self
                .groups
                .ec2
                .interfaces(Find::Where("network-interface-id", &[interface.to_owned()]))
                .await?;
            let Some(now) = found.first() else { return Ok(()) };
            let Some(groups) = wanted(&now.groups) else { return Ok(()) };
            if sent {
                tokio::time::sleep(wait).await;
                sent = false;
            } else {
                until_known(|| self.groups.ec2.set_groups(interface, &groups)).await?;
                sent = true;
            }
        }
        Err(CloudError::unavailable(format!("another principal keeps changing the groups of {interface}")))
    }

    /// Deletes an own group that could not be attached everywhere, as far as EC2 allows.
    async fn delete_failed_own_group(&self, own: &str) {
        let undo = async {
            for interface in self.groups.ec2.interfaces(Find::Where("group-id", &[own.to_owned()])).await? {
                self.detach(own, &interface.id).await?;
            }
            self.groups.delete(own).await
        };
        if let Err(error) = undo.await {
            tracing::warn!(target = %self.target, %error, "cannot delete the own group after a failed lockdown; the next release deletes it");
        }
    }
}

/// The steps of one call.
#[derive(Debug)]
enum PlannedCall {
    Own(InstanceStep),
    CustomerGroup(usize, Vec<GroupStep>),
}

/// Joins neighbouring steps that one call can do: rules that are added with the same tags, and rules that are
/// removed.
fn into_calls(steps: Vec<InstanceStep>) -> Vec<PlannedCall> {
    let mut calls: Vec<PlannedCall> = Vec::new();
    for step in steps {
        match step {
            InstanceStep::CustomerGroup(index, step) => match calls.last_mut() {
                Some(PlannedCall::CustomerGroup(last, steps))
                    if *last == index && steps.last().is_some_and(|last| joins(last, &step)) =>
                {
                    steps.push(step);
                }
                _ => calls.push(PlannedCall::CustomerGroup(index, vec![step])),
            },
            step @ (InstanceStep::MakeOwn { .. }
            | InstanceStep::ShutEgress(_)
            | InstanceStep::RemoveStray(_)
            | InstanceStep::Mark(_)
            | InstanceStep::Unmark(_)
            | InstanceStep::Attach(_)
            | InstanceStep::Detach { .. }
            | InstanceStep::DeleteOwn) => calls.push(PlannedCall::Own(step)),
        }
    }
    calls
}

fn joins(first: &GroupStep, second: &GroupStep) -> bool {
    match (first, second) {
        (GroupStep::Park(number, one), GroupStep::Park(same, other)) => {
            number == same && one.tags == other.tags
        }
        (GroupStep::Add(one), GroupStep::Add(other)) => one.tags == other.tags,
        (GroupStep::Unpark(one), GroupStep::Unpark(other)) => one.group == other.group,
        (GroupStep::Remove(_), GroupStep::Remove(_)) => true,
        _ => false,
    }
}
