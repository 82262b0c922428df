//! Carrying out a plan, call after call.

use std::collections::BTreeMap;

use postern_provider::CloudError;

use super::{Act, Locking, Plan};
use crate::api::Find;
use crate::error::CallError;
use crate::names;
use crate::parking::{Step, Ward};
use crate::patience;
use crate::resource::NewRule;
use crate::tags;
use crate::windows::is_gone;

impl Locking<'_> {
    pub(super) async fn execute(&self, mut plan: Plan) -> Result<(), CloudError> {
        let mut parked: BTreeMap<usize, String> = plan
            .wards
            .iter()
            .enumerate()
            .filter_map(|(index, ward)| Some((index, ward.parked.as_ref()?.id.clone())))
            .collect();
        let mut own = plan.own.take();
        let was_there = own.is_some();
        for act in merged(plan.acts) {
            tracing::info!(target = %self.target, ?act, "changing security groups");
            match act {
                Merged::Own(Act::MakeOwn { vpc, tags }) => {
                    let description =
                        format!("Postern: windows of {}. Made and deleted by the broker.", self.instance);
                    let name = names::own(self.instance);
                    own = Some(self.ec2.create_group(&name, &description, &vpc, &tags).await?);
                }
                Merged::Own(act) => {
                    let own = own.as_deref().unwrap_or_default();
                    let is_attaching = matches!(act, Act::Attach(_));
                    let done = self.on_own(own, act).await;
                    if matches!(done, Err(CloudError::Refused { .. })) && is_attaching && !was_there {
                        // Nothing of the customer's was touched yet: leave nothing behind.
                        self.give_up(own).await;
                    }
                    done?;
                }
                Merged::Ward(index, steps) => {
                    if let Some(ward) = plan.wards.get(index) {
                        self.on_ward(ward, parked.entry(index).or_default(), steps).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn on_own(&self, own: &str, act: Act) -> Result<(), CloudError> {
        match act {
            Act::ShutEgress(rules) => self.shut_egress(own, rules).await,
            Act::Expel(rule) => match self.ec2.revoke(own, &[rule.id]).await {
                Err(error) if !is_gone(&error) => Err(error.into()),
                Ok(()) | Err(_) => Ok(()),
            },
            Act::Mark(tags) => Ok(known(|| self.ec2.tag(own, tags.clone())).await?),
            Act::Attach(interface) => self.attach(own, &interface).await,
            Act::Detach(interface) => self.detach(own, &interface).await,
            Act::DeleteOwn => self.delete(own).await,
            Act::MakeOwn { .. } | Act::Ward(..) => Ok(()),
        }
    }

    async fn shut_egress(&self, own: &str, mut rules: Vec<String>) -> Result<(), CloudError> {
        // A new group comes with a rule for everything, which a read may not show at once.
        for wait in patience::waits() {
            if !rules.is_empty() {
                break;
            }
            let found = self.ec2.rules(Find::Where("group-id", &[own.to_owned()])).await?;
            rules = found.egress.values().flatten().map(|rule| rule.id.clone()).collect();
            if rules.is_empty() {
                tokio::time::sleep(wait).await;
            }
        }
        if rules.is_empty() {
            return Err(CloudError::unavailable(format!(
                "EC2 shows no egress rule of the new group {own} yet"
            )));
        }
        Ok(known(|| self.ec2.revoke_egress(own, &rules)).await?)
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

    /// Replaces the groups of an interface, and looks whether it is so: there is no compare-and-swap.
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
        for wait in patience::waits() {
            let found =
                self.ec2.interfaces(Find::Where("network-interface-id", &[interface.to_owned()])).await?;
            let Some(now) = found.first() else { return Ok(()) };
            let Some(groups) = wanted(&now.groups) else { return Ok(()) };
            if sent {
                tokio::time::sleep(wait).await;
                sent = false;
            } else {
                known(|| self.ec2.set_groups(interface, &groups)).await?;
                sent = true;
            }
        }
        Err(CloudError::unavailable(format!("somebody else keeps changing the groups of {interface}")))
    }

    /// Takes an own group that could not be attached everywhere away again, as far as that goes.
    async fn give_up(&self, own: &str) {
        let undo = async {
            for interface in self.ec2.interfaces(Find::Where("group-id", &[own.to_owned()])).await? {
                self.detach(own, &interface.id).await?;
            }
            self.delete(own).await
        };
        if let Err(error) = undo.await {
            tracing::warn!(target = %self.target, %error, "what the failed lockdown left behind is taken away by the next release");
        }
    }

    /// Deletes a group of ours, once EC2 has noticed that nothing uses it any more.
    pub(crate) async fn delete(&self, group: &str) -> Result<(), CloudError> {
        for wait in patience::waits() {
            match self.ec2.delete_group(group).await {
                Ok(()) => return Ok(()),
                Err(error) if error.code() == "InvalidGroup.NotFound" => return Ok(()),
                Err(error) if matches!(error.code(), "DependencyViolation" | "InvalidGroup.InUse") => {
                    tracing::debug!(%error, "not yet");
                    tokio::time::sleep(wait).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(CloudError::unavailable(format!(
            "{group} is still in use: by an interface, or by a rule of another group that names it"
        )))
    }

    async fn on_ward(&self, ward: &Ward, parked: &mut String, steps: Vec<Step>) -> Result<(), CloudError> {
        match &steps[..] {
            [Step::MakeParked(holders), ..] => {
                let fixed = [
                    (tags::MANAGED_BY, self.deployment),
                    (tags::ROLE, tags::PARKED),
                    (tags::PARKED_FOR, &ward.group),
                ];
                let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
                let holders = holders.iter().map(|(instance, ports)| tags::of_holder(instance, ports));
                let tags = fixed.into_iter().chain(holders).collect();
                let description = format!(
                    "Postern: rules of {} under lockdown. Do not delete: release needs it.",
                    ward.group
                );
                let name = names::parked(&ward.group);
                *parked = self.ec2.create_group(&name, &description, &ward.vpc, &tags).await?;
            }
            [Step::Hold(instance, ports), ..] => {
                let fixed = [(tags::ROLE, tags::PARKED), (tags::PARKED_FOR, &ward.group)];
                let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
                self.ec2.tag(parked, fixed.into_iter().chain([tags::of_holder(instance, ports)])).await?;
            }
            [Step::Park(_), ..] => self.add(parked, &steps).await?,
            [Step::Add(_), ..] => self.add(&ward.group, &steps).await?,
            [Step::Remove(_), ..] => self.remove(&ward.group, &steps).await?,
            [Step::Unpark(_), ..] => self.remove(parked, &steps).await?,
            [Step::LetGo(instance), ..] => {
                self.ec2.untag(parked, &[format!("{}{instance}", tags::HOLDER)]).await?;
            }
            [Step::DeleteParked, ..] => self.delete(parked).await?,
            [] => {}
        }
        Ok(())
    }

    async fn add(&self, group: &str, steps: &[Step]) -> Result<(), CloudError> {
        let rules: Vec<NewRule> = steps.iter().filter_map(Step::new_rule).cloned().collect();
        Ok(known(|| self.ec2.authorize(group, &rules)).await.map(drop)?)
    }

    async fn remove(&self, group: &str, steps: &[Step]) -> Result<(), CloudError> {
        let ids: Vec<String> = steps.iter().filter_map(Step::old_rule).map(|rule| rule.id.clone()).collect();
        Ok(self.ec2.revoke(group, &ids).await?)
    }
}

/// A call on a group that may have been made a moment ago: EC2 may not know it everywhere yet.
async fn known<T, F>(call: impl Fn() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    for wait in patience::waits() {
        match call().await {
            Err(error) if error.code() == "InvalidGroup.NotFound" => tokio::time::sleep(wait).await,
            answer => return answer,
        }
    }
    call().await
}

impl Step {
    fn new_rule(&self) -> Option<&NewRule> {
        match self {
            Self::Park(rule) | Self::Add(rule) => Some(rule),
            Self::MakeParked(_)
            | Self::Hold(..)
            | Self::Remove(_)
            | Self::Unpark(_)
            | Self::LetGo(_)
            | Self::DeleteParked => None,
        }
    }

    fn old_rule(&self) -> Option<&crate::rule::Rule> {
        match self {
            Self::Remove(rule) | Self::Unpark(rule) => Some(rule),
            Self::MakeParked(_)
            | Self::Hold(..)
            | Self::Park(_)
            | Self::Add(_)
            | Self::LetGo(_)
            | Self::DeleteParked => None,
        }
    }
}

/// What one call does.
#[derive(Debug)]
enum Merged {
    Own(Act),
    Ward(usize, Vec<Step>),
}

/// Joins neighbours that one call can do: rules that are added with the same tags, and rules that are taken away.
fn merged(acts: Vec<Act>) -> Vec<Merged> {
    let mut calls: Vec<Merged> = Vec::new();
    for act in acts {
        match act {
            Act::Ward(index, step) => match calls.last_mut() {
                Some(Merged::Ward(last, steps))
                    if *last == index && steps.last().is_some_and(|last| joins(last, &step)) =>
                {
                    steps.push(step);
                }
                _ => calls.push(Merged::Ward(index, vec![step])),
            },
            act @ (Act::MakeOwn { .. }
            | Act::ShutEgress(_)
            | Act::Expel(_)
            | Act::Mark(_)
            | Act::Attach(_)
            | Act::Detach(_)
            | Act::DeleteOwn) => calls.push(Merged::Own(act)),
        }
    }
    calls
}

fn joins(first: &Step, second: &Step) -> bool {
    match (first, second) {
        (Step::Park(one), Step::Park(other)) | (Step::Add(one), Step::Add(other)) => one.tags == other.tags,
        (Step::Remove(_), Step::Remove(_)) | (Step::Unpark(_), Step::Unpark(_)) => true,
        _ => false,
    }
}
