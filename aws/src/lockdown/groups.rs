//! The customer's groups with what is parked for them: the reads that decide, and the calls that change them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use postern_core::{ProtectedPort, TargetId};
use postern_provider::kit::{Attempt, CallError, attempt_until};
use postern_provider::{CloudError, LockdownOrder};
use postern_runtime::clock;

use super::recent::RecentWrites;
use crate::backoff::backoff;
use crate::ec2::{Ec2, Find};
use crate::names;
use crate::parking::{self, CustomerGroup, GroupStep, Holders, ParkedGroup, Quota};
use crate::resource::{Ec2Group, Ec2Interface, NewGroupRule};
use crate::rule::{RuleSource, Tags};
use crate::tags;

/// The numbers of parked groups that are read at once: the next ones only if one of these is there.
const NUMBERS_AT_ONCE: usize = 8;

/// The operations on customers' groups of one account and Region.
#[derive(Clone, Copy)]
pub(crate) struct GroupOps<'a> {
    pub(crate) ec2: &'a dyn Ec2,
    pub(crate) deployment: &'a str,
    pub(crate) rules_per_group: usize,
    /// The tags that every group of Postern's gets besides its own.
    pub(crate) tags: &'a Tags,
    pub(crate) recent: &'a Mutex<RecentWrites>,
}

/// The ids of the parked groups during the execution of a plan, by the customer's group and the number.
#[derive(Debug)]
pub(super) struct ParkedIds(BTreeMap<(String, usize), String>);

impl ParkedIds {
    /// Returns the ids of the parked groups that were read.
    pub(super) fn of(customer_groups: &[CustomerGroup]) -> Self {
        let ids = customer_groups.iter().flat_map(|group| {
            group.parked.iter().map(|parked| ((group.id.clone(), parked.number), parked.id.clone()))
        });
        Self(ids.collect())
    }
}

/// The outcome of giving parked rules back.
#[derive(Debug, Default)]
pub(crate) struct GivenBack {
    /// The groups whose rules were put back or dropped, in words.
    pub(crate) done: Vec<String>,
    /// The first failure: the next sweep tries again.
    pub(crate) failed: Option<CloudError>,
}

/// The machines on some of the customer's groups.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    pub(super) interfaces: Vec<Ec2Interface>,
    /// The own groups of the instances of these interfaces.
    own: BTreeMap<String, Ec2Group>,
}

/// Returns the ports for which another instance is in the same order; none if it is not.
pub(super) fn ordered<'a>(order: &'a LockdownOrder, instance: &str) -> Option<&'a BTreeSet<ProtectedPort>> {
    let is_it = |target: &TargetId| target.segments().last() == Some(&instance);
    order.together.iter().find(|(target, _)| is_it(target)).map(|(_, ports)| ports)
}

impl Neighbours {
    /// Returns the ports for which the instance is under lockdown; none if it is not.
    pub(super) fn ports_of(&self, instance: &str) -> Option<BTreeSet<ProtectedPort>> {
        let own = self.own.get(instance)?;
        let state = own.tags.get(tags::STATE).map_or("", String::as_str);
        if matches!(state, tags::PREPARING | tags::RELEASING) {
            return None;
        }
        tags::holders(&own.tags).remove(instance)
    }

    /// Returns the instances that have this group on an interface.
    pub(super) fn instances_on<'a>(&'a self, group: &'a str) -> impl Iterator<Item = &'a String> {
        let on =
            self.interfaces.iter().filter(move |interface| interface.groups.iter().any(|on| on == group));
        on.filter_map(|interface| interface.instance.as_ref())
    }

    /// Returns the instances that are under lockdown and have this group on an interface whose ports they
    /// guard, whatever the parked groups' tags list.
    fn holders(&self, group: &str) -> Holders {
        let mut holders = Holders::new();
        for interface in &self.interfaces {
            let Some(instance) = &interface.instance else { continue };
            let primary_only = self.own.get(instance).is_some_and(|own| {
                own.tags.get(tags::INTERFACES).is_some_and(|which| which == tags::PRIMARY)
            });
            if interface.is_guarded(primary_only) && interface.groups.iter().any(|on| on == group) {
                holders.extend(self.ports_of(instance).map(|ports| (instance.clone(), ports)));
            }
        }
        holders
    }
}

impl GroupOps<'_> {
    /// Reads the customer's groups, with the rules that are parked for them. A read that is older than what
    /// this broker wrote is repeated.
    pub(super) async fn read(&self, groups: &[String]) -> Result<Vec<CustomerGroup>, CloudError> {
        let read = attempt_until(backoff(), || async {
            let read = self.read_once(groups).await?;
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            let unshown = read.iter().find_map(|group| recent.unshown(group, clock::instant()));
            Ok::<_, CloudError>(unshown.map_or(Attempt::Shown(read), Attempt::NotYet))
        });
        match read.await? {
            Attempt::Shown(read) => Ok(read),
            Attempt::NotYet(what) => Err(CloudError::unavailable(format!(
                "EC2 does not show yet what was written a moment ago: {what}"
            ))),
        }
    }

    async fn read_once(&self, groups: &[String]) -> Result<Vec<CustomerGroup>, CloudError> {
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.ec2.groups(Find::Where("group-id", groups)).await?;
        let parked = self.parked_groups(groups).await?;
        let ids: Vec<String> = found.iter().chain(&parked).map(|group| group.id.clone()).collect();
        let mut rules = self.ec2.rules(Find::Where("group-id", &ids)).await?;
        // A rule whose source cannot be read cannot be put back either: it stays, and is reported as open.
        let mut rules_of = |id: &str| {
            let mut rules = rules.ingress.remove(id).unwrap_or_default();
            rules.retain(|rule| rule.source != RuleSource::Unreadable);
            rules
        };
        let mut parked_of: BTreeMap<String, Vec<ParkedGroup>> = BTreeMap::new();
        for group in parked {
            let Some((of, number)) = names::parked_parts(&group.name) else { continue };
            let holders = tags::holders(&group.tags);
            let other_tags = group.tags.len().saturating_sub(holders.len());
            let rules = rules_of(&group.id);
            let parked = ParkedGroup { number, rules, holders, other_tags, id: group.id.clone() };
            parked_of.entry(of.to_owned()).or_default().push(parked);
        }
        parked_of.values_mut().for_each(|parked| parked.sort_by_key(|parked| parked.number));
        let mut customer_groups = Vec::new();
        for group in found {
            customer_groups.push(CustomerGroup {
                rules: rules_of(&group.id),
                parked: parked_of.remove(&group.id).unwrap_or_default(),
                id: group.id,
                exists: true,
                vpc: group.vpc,
            });
        }
        // The parked rules of a group that is gone go too, with their last holder.
        for (id, parked) in parked_of {
            if self.ec2.has_group(&id).await? {
                return Err(CloudError::unavailable(format!("EC2 does not show the security group {id}")));
            }
            let (vpc, rules) = (String::new(), Vec::new());
            customer_groups.push(CustomerGroup { id, exists: false, vpc, rules, parked });
        }
        Ok(customer_groups)
    }

    /// Returns the parked groups of these groups, by their names, which cannot be changed: a release must find
    /// them.
    async fn parked_groups(&self, groups: &[String]) -> Result<Vec<Ec2Group>, CloudError> {
        let mut parked = Vec::new();
        let mut left: BTreeSet<&String> = groups.iter().collect();
        let mut first = 1;
        while !left.is_empty() {
            let numbers = first..first + NUMBERS_AT_ONCE;
            let names: Vec<String> = left
                .iter()
                .flat_map(|group| numbers.clone().map(|number| names::parked(group, number)))
                .collect();
            let found = self.ec2.groups(Find::Where("group-name", &names)).await?;
            left.retain(|group| found.iter().any(|found| found.parked_for() == Some(group.as_str())));
            parked.extend(found.into_iter().filter(|group| group.is_managed(self.deployment)));
            first += NUMBERS_AT_ONCE;
        }
        Ok(parked)
    }

    /// Returns the quota, and sets the family of the prefix lists in the groups' rules.
    pub(super) async fn quota(&self, customer_groups: &mut [CustomerGroup]) -> Result<Quota, CloudError> {
        let mut rules: Vec<_> = customer_groups
            .iter_mut()
            .flat_map(|group| {
                group.rules.iter_mut().chain(group.parked.iter_mut().flat_map(|parked| &mut parked.rules))
            })
            .collect();
        let lists: BTreeSet<String> = rules
            .iter()
            .filter_map(|rule| match &rule.source {
                RuleSource::PrefixList(list) | RuleSource::PrefixListV6(list) => Some(list.clone()),
                RuleSource::Prefix(_)
                | RuleSource::Group(_)
                | RuleSource::Peer { .. }
                | RuleSource::Unreadable => None,
            })
            .collect();
        let lists: Vec<String> = lists.into_iter().collect();
        let known = if lists.is_empty() { BTreeMap::new() } else { self.ec2.prefix_lists(&lists).await? };
        for rule in &mut rules {
            if let RuleSource::PrefixList(list) = &rule.source
                && known.get(list).is_some_and(|list| list.is_v6)
            {
                rule.source = RuleSource::PrefixListV6(list.clone());
            }
        }
        let prefix_lists = known.into_iter().filter_map(|(id, list)| Some((id, list.weight?))).collect();
        Ok(Quota { rules: self.rules_per_group, prefix_lists })
    }

    /// Reads the machines on these groups.
    pub(super) async fn neighbours(&self, groups: &[String]) -> Result<Neighbours, CloudError> {
        if groups.is_empty() {
            return Ok(Neighbours::default());
        }
        let interfaces = self.ec2.interfaces(Find::Where("group-id", groups)).await?;
        let instances: BTreeSet<&String> =
            interfaces.iter().filter_map(|interface| interface.instance.as_ref()).collect();
        // By name: another principal may have removed tags.
        let own: Vec<String> = instances.into_iter().map(|instance| names::own(instance)).collect();
        let found = if own.is_empty() {
            Vec::new()
        } else {
            self.ec2.groups(Find::Where("group-name", &own)).await?
        };
        let own = found.into_iter().filter(|group| group.is_managed(self.deployment));
        let own = own.filter_map(|group| Some((names::instance(&group.name)?.to_owned(), group))).collect();
        Ok(Neighbours { interfaces, own })
    }

    /// Returns the holders of a group besides this instance: those that the parked groups list, and those that
    /// are under lockdown with the group on an interface. A release opens a rule only if neither names one.
    pub(super) fn holders_besides(
        &self,
        instance: &str,
        customer_group: &CustomerGroup,
        neighbours: &Neighbours,
    ) -> Holders {
        let mut holders = customer_group.holders();
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for (other, ports) in neighbours.holders(&customer_group.id) {
            // A read may still show the own group of an instance that was released a moment ago.
            if !recent.has_left(&customer_group.id, &other, clock::instant()) {
                holders.entry(other).or_default().extend(ports);
            }
        }
        holders.remove(instance);
        holders
    }

    /// Puts back the rules of groups for which no instance needs them parked any more, and drops those of groups
    /// that are gone. A group whose rules cannot be put back holds no other up.
    pub(crate) async fn give_back(&self, groups: &[String]) -> GivenBack {
        let mut given_back = GivenBack::default();
        let read = async {
            let mut customer_groups = self.read(groups).await?;
            let quota = self.quota(&mut customer_groups).await?;
            Ok::<_, CloudError>((customer_groups, quota, self.neighbours(groups).await?))
        };
        let (customer_groups, quota, neighbours) = match read.await {
            Ok(read) => read,
            Err(error) => return GivenBack { failed: Some(error), ..given_back },
        };
        for group in customer_groups {
            let is_held = group.exists && !self.holders_besides("", &group, &neighbours).is_empty();
            if group.parked.is_empty() || is_held {
                continue;
            }
            match self.give_back_rules(&group, &quota).await {
                Ok(()) => {}
                // Without an answer to the deletion the rules are back, and no later sweep may find a trace of them.
                Err((CloudError::Unavailable { reason }, Some(GroupStep::DeleteParked(_)))) => {
                    given_back.failed.get_or_insert(CloudError::Unavailable { reason });
                }
                Err((error, _)) => {
                    given_back.failed.get_or_insert(error);
                    continue;
                }
            }
            let (id, count) = (&group.id, group.copies().count());
            tracing::warn!(
                event = "aws.parked_rules_given_back",
                group = id,
                rules = count,
                exists = group.exists,
                "no lockdown needed the parked rules of this security group; the sweep put them back, or dropped those of a group that is gone"
            );
            given_back.done.push(if group.exists {
                format!("{count} parked rules of {id}, which no lockdown needed")
            } else {
                format!("{count} parked rules of {id} were dropped, because the group is gone")
            });
        }
        given_back
    }

    /// Puts back the rules of one group. An error comes with its step; none if the plan failed.
    async fn give_back_rules(
        &self,
        group: &CustomerGroup,
        quota: &Quota,
    ) -> Result<(), (CloudError, Option<GroupStep>)> {
        let steps = parking::plan(group, &Holders::new(), self.deployment, quota)
            .map_err(|error| (CloudError::refused(error.to_string()), None))?;
        let mut ids = ParkedIds::of(std::slice::from_ref(group));
        for step in steps {
            self.carry_out(group, &mut ids, vec![step.clone()]).await.map_err(|error| (error, Some(step)))?;
        }
        Ok(())
    }

    /// Carries out steps on one customer's group that one call can do.
    pub(super) async fn carry_out(
        &self,
        customer_group: &CustomerGroup,
        ids: &mut ParkedIds,
        steps: Vec<GroupStep>,
    ) -> Result<(), CloudError> {
        let Some(first) = steps.first() else { return Ok(()) };
        let key = |number: usize| (customer_group.id.clone(), number);
        let id = |ids: &ParkedIds, number: usize| ids.0.get(&key(number)).cloned().unwrap_or_default();
        let mut parked = String::new();
        match first {
            GroupStep::MakeParked(number, holders) => {
                parked = self.make_parked(customer_group, *number, holders).await?;
                ids.0.insert(key(*number), parked.clone());
            }
            GroupStep::Hold(number, instance, ports) => {
                let fixed = [(tags::ROLE, tags::PARKED), (tags::PARKED_FOR, &customer_group.id)];
                let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
                let tags = fixed.into_iter().chain([tags::of_holder(instance, ports)]).collect();
                self.ec2.tag(&id(ids, *number), &tags).await?;
            }
            GroupStep::Park(number, _) => self.add(&id(ids, *number), &steps).await?,
            GroupStep::Add(_) => self.add(&customer_group.id, &steps).await?,
            GroupStep::Remove(_) => self.remove(&customer_group.id, &steps).await?,
            GroupStep::Unpark(rule) => self.remove(&rule.group, &steps).await?,
            GroupStep::ReleaseHolder(number, instance) => {
                self.ec2.untag(&id(ids, *number), &[format!("{}{instance}", tags::HOLDER)]).await?;
            }
            GroupStep::DeleteParked(number) => self.delete(&id(ids, *number)).await?,
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.wrote(customer_group, first, &parked, clock::instant());
        Ok(())
    }

    async fn make_parked(
        &self,
        customer_group: &CustomerGroup,
        number: usize,
        holders: &Holders,
    ) -> Result<String, CloudError> {
        let id = &customer_group.id;
        let fixed = [(tags::MANAGED_BY, self.deployment), (tags::ROLE, tags::PARKED), (tags::PARKED_FOR, id)];
        let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let holders = holders.iter().map(|(instance, ports)| tags::of_holder(instance, ports));
        let tags = self.tags.clone().into_iter().chain(fixed).chain(holders).collect();
        let description = format!("Postern: rules of {id} under lockdown. Do not delete: release needs it.");
        let name = names::parked(id, number);
        Ok(self.ec2.create_group(&name, &description, &customer_group.vpc, &tags).await?)
    }

    /// Deletes a group of Postern's, once EC2 shows that nothing uses it any more.
    pub(crate) async fn delete(&self, group: &str) -> Result<(), CloudError> {
        let deleted = attempt_until(backoff(), || async {
            match self.ec2.delete_group(group).await {
                Ok(()) => Ok(Attempt::Shown(())),
                Err(error) if error.code() == "InvalidGroup.NotFound" => Ok(Attempt::Shown(())),
                Err(error) if matches!(error.code(), "DependencyViolation" | "InvalidGroup.InUse") => {
                    tracing::debug!(%error, "security group still in use, will retry");
                    Ok(Attempt::NotYet(()))
                }
                Err(error) => Err(error),
            }
        });
        match deleted.await? {
            Attempt::Shown(()) => Ok(()),
            Attempt::NotYet(()) => Err(CloudError::unavailable(format!(
                "{group} is still in use: by an interface, or by a rule of another group that names it"
            ))),
        }
    }

    async fn add(&self, group: &str, steps: &[GroupStep]) -> Result<(), CloudError> {
        let rules: Vec<NewGroupRule> = steps.iter().filter_map(GroupStep::new_rule).cloned().collect();
        Ok(until_known(|| self.ec2.authorize(group, &rules)).await.map(drop)?)
    }

    async fn remove(&self, group: &str, steps: &[GroupStep]) -> Result<(), CloudError> {
        let ids: Vec<String> =
            steps.iter().filter_map(GroupStep::old_rule).map(|rule| rule.id.clone()).collect();
        Ok(self.ec2.revoke(group, &ids).await?)
    }
}

/// Repeats a call on a group that may have been created a moment ago until EC2 knows the group.
pub(super) async fn until_known<T, F>(call: impl Fn() -> F) -> Result<T, CallError>
where
    F: Future<Output = Result<T, CallError>>,
{
    let answered = attempt_until(backoff(), || async {
        match call().await {
            Err(error) if error.code() == "InvalidGroup.NotFound" => Ok(Attempt::NotYet(error)),
            answer => answer.map(Attempt::Shown),
        }
    });
    match answered.await? {
        Attempt::Shown(answer) => Ok(answer),
        Attempt::NotYet(error) => Err(error),
    }
}

impl GroupStep {
    fn new_rule(&self) -> Option<&NewGroupRule> {
        match self {
            Self::Park(_, rule) | Self::Add(rule) => Some(rule),
            Self::MakeParked(..)
            | Self::Hold(..)
            | Self::Remove(_)
            | Self::Unpark(_)
            | Self::ReleaseHolder(..)
            | Self::DeleteParked(_) => None,
        }
    }

    fn old_rule(&self) -> Option<&crate::rule::GroupRule> {
        match self {
            Self::Remove(rule) | Self::Unpark(rule) => Some(rule),
            Self::MakeParked(..)
            | Self::Hold(..)
            | Self::Park(..)
            | Self::Add(_)
            | Self::ReleaseHolder(..)
            | Self::DeleteParked(_) => None,
        }
    }
}
