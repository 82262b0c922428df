//! Lockdown and release of one instance: reading what they need, deciding, and doing it, change after change.
//!
//! The order is what makes them safe to interrupt. Locking: the own group is made and attached, and says `locking`;
//! originals are parked before anything is taken away; the last change says `locked`. Releasing: the own group says
//! `releasing`; rules are back before their copies go; the own group goes last. Whatever happened between, reading again
//! and deciding again goes on from there.

use std::collections::{BTreeMap, BTreeSet};

use postern_cloud::{
    Action, Change, CloudError, Concern, ConcernKind, Consent, LockdownOrder, LockdownReport,
};
use postern_core::{ProtectedPort, TargetId};

use crate::api::{Ec2, Find, NewRule};
use crate::look::Look;
use crate::parking::{self, Holders, Parked, Quota, Step, Ward};
use crate::patience;
use crate::rule::{Source, Tags};
use crate::tags;

/// One instance in its place.
pub(crate) struct Locking<'a> {
    pub(crate) ec2: &'a Ec2,
    pub(crate) target: &'a TargetId,
    pub(crate) instance: &'a str,
    pub(crate) deployment: &'a str,
    pub(crate) rules_per_group: usize,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    /// Make the instance's own group.
    MakeOwn { vpc: String, tags: Tags },
    /// Take these egress rules, or those it comes with, from the own group.
    ShutEgress(Vec<String>),
    /// Write these tags on the own group.
    Mark(Tags),
    /// Attach the own group to an interface.
    Attach(String),
    /// Change a customer's group.
    Ward(usize, Step),
    /// Detach the own group from an interface.
    Detach(String),
    /// Delete the own group.
    DeleteOwn,
}

/// What was decided.
#[derive(Debug, Default)]
struct Plan {
    own: Option<String>,
    wards: Vec<Ward>,
    acts: Vec<Act>,
    concerns: Vec<Concern>,
}

impl Locking<'_> {
    /// What a lockdown would change.
    pub(crate) async fn plan_lock(
        &self,
        order: &LockdownOrder,
        look: &Look,
    ) -> Result<LockdownReport, CloudError> {
        Ok(self.locking(&order.ports, &order.together, look).await?.report(self))
    }

    /// Locks, unless a concern is not accepted.
    pub(crate) async fn lock(
        &self,
        order: &LockdownOrder,
        look: &Look,
    ) -> Result<LockdownReport, CloudError> {
        let plan = self.locking(&order.ports, &order.together, look).await?;
        let report = plan.report(self);
        if !order.consent.unmet(&report.concerns).is_empty() {
            return Ok(report);
        }
        self.execute(plan).await?;
        Ok(report)
    }

    /// Goes on with a lockdown that was interrupted: what it wrote down was accepted then.
    pub(crate) async fn resume_lock(&self, look: &Look) -> Result<(), CloudError> {
        let order = LockdownOrder {
            target: self.target.clone(),
            ports: look.ports(self.instance),
            consent: Consent::all(),
            together: BTreeSet::new(),
        };
        self.lock(&order, look).await.map(drop)
    }

    /// What a release would change.
    pub(crate) async fn plan_release(&self, look: &Look) -> Result<LockdownReport, CloudError> {
        Ok(self.releasing(look).await?.report(self))
    }

    /// Releases.
    pub(crate) async fn release(&self, look: &Look) -> Result<LockdownReport, CloudError> {
        let plan = self.releasing(look).await?;
        let report = plan.report(self);
        self.execute(plan).await?;
        Ok(report)
    }

    /// Makes the own group of a locked instance anew, or attaches it where it is missing. Nothing else is touched.
    pub(crate) async fn reattach(&self, look: &Look) -> Result<(), CloudError> {
        let look = &self.with_kind(look).await?;
        let mut plan = Plan { own: look.own().map(|own| own.id.clone()), ..Plan::default() };
        plan.acts = self.own_group(look, &look.ports(self.instance));
        if plan.own.is_none() {
            plan.acts.push(Act::Mark(state(tags::LOCKED)));
        }
        self.execute(plan).await
    }

    async fn locking(
        &self,
        ports: &BTreeSet<ProtectedPort>,
        together: &BTreeSet<TargetId>,
        look: &Look,
    ) -> Result<Plan, CloudError> {
        if look.interfaces.is_empty() {
            return Err(CloudError::refused(format!("{} has no network interface in a VPC", self.target)));
        }
        let look = &self.with_kind(look).await?;
        let mut plan = Plan { own: look.own().map(|own| own.id.clone()), ..Plan::default() };
        plan.acts = self.own_group(look, ports);
        let groups: Vec<String> = look.customer_groups().into_iter().cloned().collect();
        plan.wards = self.wards(&groups).await?;
        let quota = self.quota(&plan.wards).await?;
        let mut shared = Vec::new();
        for (index, ward) in plan.wards.iter().enumerate() {
            let mut holders = ward.parked.as_ref().map(|parked| parked.holders.clone()).unwrap_or_default();
            holders.insert(self.instance.to_owned(), ports.clone());
            let steps = parking::plan(ward, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            for (rule, lost) in parking::losses(ward, &holders, self.deployment) {
                let concern = |kind, what| Concern { kind, what };
                plan.concerns.extend(
                    lost.into_iter().map(|lost| concern(ConcernKind::Loss, format!("{rule}: {lost}"))),
                );
                if rule.source.is_anyone() {
                    let what = format!("{rule}: established connections over it may be cut");
                    plan.concerns.push(concern(ConcernKind::Cut, what));
                }
            }
            if steps.iter().any(|step| matches!(step, Step::Remove(_))) {
                shared.push((index, holders));
            }
            plan.acts.extend(steps.into_iter().map(|step| Act::Ward(index, step)));
        }
        let shared = self.sharers(&plan.wards, shared, together).await?;
        plan.concerns.extend(shared);
        let touches_wards = plan.acts.iter().any(|act| matches!(act, Act::Ward(..)));
        if touches_wards && look.state() == tags::LOCKED {
            // Or a sweep would not go on with it.
            plan.acts.insert(0, Act::Mark(state(tags::LOCKING)));
        }
        if !plan.acts.is_empty() || look.state() != tags::LOCKED {
            plan.acts.push(Act::Mark(state(tags::LOCKED)));
        }
        Ok(plan)
    }

    /// What the own group needs.
    fn own_group(&self, look: &Look, ports: &BTreeSet<ProtectedPort>) -> Vec<Act> {
        let holder = tags::of_holder(self.instance, ports);
        let mut acts = Vec::new();
        match look.own() {
            None => {
                let which = if look.primary_only { tags::PRIMARY } else { tags::ALL };
                acts.push(Act::MakeOwn { vpc: look.vpc().to_owned(), tags: self.own_tags(holder, which) });
                acts.push(Act::ShutEgress(Vec::new()));
                acts.extend(look.served().map(|interface| Act::Attach(interface.id.clone())));
            }
            Some(own) => {
                if own.tags.get(&holder.0) != Some(&holder.1) {
                    acts.push(Act::Mark([holder].into_iter().chain(state(tags::LOCKING)).collect()));
                }
                let egress: Vec<String> = look.egress().iter().map(|rule| rule.id.clone()).collect();
                if !egress.is_empty() {
                    acts.push(Act::ShutEgress(egress));
                }
                acts.extend(look.unattached().into_iter().map(|interface| Act::Attach(interface.id.clone())));
            }
        }
        acts
    }

    fn own_tags(&self, holder: (String, String), interfaces: &str) -> Tags {
        let fixed = [
            (tags::MANAGED_BY, self.deployment),
            (tags::ROLE, tags::WINDOWS),
            (tags::INSTANCE, self.instance),
            (tags::STATE, tags::LOCKING),
            (tags::INTERFACES, interfaces),
        ];
        let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
        fixed.into_iter().chain([holder]).collect()
    }

    /// The look, and what only a lockdown needs to know of the instance: a node of a Kubernetes cluster lends its other
    /// interfaces to pods (EKS User Guide, "Security groups for Pods").
    async fn with_kind(&self, look: &Look) -> Result<Look, CloudError> {
        let mut look = look.clone();
        if look.own().is_none() {
            let found = self.ec2.instances(Find::Where("instance-id", &[self.instance.to_owned()])).await?;
            let of_cluster = |key: &String| {
                key.starts_with("kubernetes.io/cluster/")
                    || key == "aws:eks:cluster-name"
                    || key == "eks:cluster-name"
            };
            look.primary_only = found.iter().any(|instance| instance.tags.keys().any(of_cluster));
        }
        Ok(look)
    }

    async fn releasing(&self, look: &Look) -> Result<Plan, CloudError> {
        if let Some(held) = look.held(self.deployment).first() {
            let grants: Vec<_> = held.marks.keys().map(ToString::to_string).collect();
            return Err(CloudError::refused(format!(
                "a window is open on {}; revoke its grant first: {}",
                self.target,
                grants.join(", ")
            )));
        }
        let mut plan = Plan { own: look.own().map(|own| own.id.clone()), ..Plan::default() };
        if plan.own.is_some() && look.state() != tags::RELEASING {
            plan.acts.push(Act::Mark(state(tags::RELEASING)));
        }
        let groups: Vec<String> =
            look.parked().filter_map(|group| group.tags.get(tags::PARKED_FOR)).cloned().collect();
        plan.wards = self.wards(&groups).await?;
        let quota = self.quota(&plan.wards).await?;
        for (index, ward) in plan.wards.iter().enumerate() {
            let mut holders = ward.parked.as_ref().map(|parked| parked.holders.clone()).unwrap_or_default();
            holders.remove(self.instance);
            let steps = parking::plan(ward, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            plan.acts.extend(steps.into_iter().map(|step| Act::Ward(index, step)));
        }
        if let Some(own) = &plan.own {
            let on = look.interfaces.iter().filter(|interface| interface.groups.contains(own));
            plan.acts.extend(on.map(|interface| Act::Detach(interface.id.clone())));
            plan.acts.push(Act::DeleteOwn);
        }
        Ok(plan)
    }

    /// The customer's groups, with what is parked for them.
    async fn wards(&self, groups: &[String]) -> Result<Vec<Ward>, CloudError> {
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.ec2.groups(Find::Where("group-id", groups)).await?;
        let parked = self.ec2.groups(Find::Where("tag:postern:parked-for", groups)).await?;
        let parked: Vec<_> = parked
            .into_iter()
            .filter(|group| group.tags.get(tags::MANAGED_BY).is_some_and(|owner| owner == self.deployment))
            .collect();
        let ids: Vec<String> = found.iter().chain(&parked).map(|group| group.id.clone()).collect();
        let mut rules = self.ec2.rules(Find::Where("group-id", &ids)).await?;
        let mut rules_of = |id: &str| rules.ingress.remove(id).unwrap_or_default();
        let mut wards = Vec::new();
        for group in found {
            let parked = parked.iter().find(|parked| parked.tags.get(tags::PARKED_FOR) == Some(&group.id));
            let parked = parked.map(|parked| Parked {
                id: parked.id.clone(),
                rules: rules_of(&parked.id),
                holders: tags::holders(&parked.tags),
            });
            wards.push(Ward {
                rules: rules_of(&group.id),
                group: group.id,
                exists: true,
                vpc: group.vpc,
                parked,
            });
        }
        // What is parked for a group that is gone goes too, with its last holder.
        for group in &parked {
            let Some(gone) = group.tags.get(tags::PARKED_FOR) else { continue };
            if wards.iter().all(|ward| ward.group != *gone) {
                let holders = tags::holders(&group.tags);
                let parked = Some(Parked { id: group.id.clone(), rules: Vec::new(), holders });
                wards.push(Ward {
                    group: gone.clone(),
                    exists: false,
                    vpc: String::new(),
                    rules: Vec::new(),
                    parked,
                });
            }
        }
        Ok(wards)
    }

    async fn quota(&self, wards: &[Ward]) -> Result<Quota, CloudError> {
        let lists: BTreeSet<String> = wards
            .iter()
            .flat_map(|ward| &ward.rules)
            .filter_map(|rule| match &rule.source {
                Source::PrefixList(list) => Some(list.clone()),
                Source::Prefix(_) | Source::Group(_) | Source::Peer { .. } => None,
            })
            .collect();
        let lists: Vec<String> = lists.into_iter().collect();
        let prefix_lists =
            if lists.is_empty() { BTreeMap::new() } else { self.ec2.prefix_lists(&lists).await? };
        Ok(Quota { rules: self.rules_per_group, prefix_lists })
    }

    /// Who else is behind the groups in which something is taken away, and is not under JIT.
    async fn sharers(
        &self,
        wards: &[Ward],
        touched: Vec<(usize, Holders)>,
        together: &BTreeSet<TargetId>,
    ) -> Result<Vec<Concern>, CloudError> {
        let groups: Vec<String> = touched
            .iter()
            .filter_map(|(index, _)| wards.get(*index))
            .map(|ward| ward.group.clone())
            .collect();
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let interfaces = self.ec2.interfaces(Find::Where("group-id", &groups)).await?;
        let instances: BTreeSet<String> =
            interfaces.iter().filter_map(|interface| interface.instance.clone()).collect();
        let instances: Vec<String> = instances.into_iter().collect();
        let own = self.ec2.groups(Find::Where("tag:postern:instance", &instances)).await?;
        let locked: BTreeSet<&String> =
            own.iter().filter_map(|group| group.tags.get(tags::INSTANCE)).collect();
        let is_ordered =
            |instance: &str| together.iter().any(|target| target.segments().last() == Some(&instance));
        let mut concerns = BTreeSet::new();
        for interface in &interfaces {
            let who = match &interface.instance {
                Some(instance)
                    if instance == self.instance || locked.contains(instance) || is_ordered(instance) =>
                {
                    continue;
                }
                Some(instance) => format!("the instance {instance}"),
                None => format!("the interface {} ({})", interface.id, interface.description),
            };
            for group in interface.groups.iter().filter(|group| groups.contains(group)) {
                let what = format!("{group} is also on {who}, which is not under JIT");
                concerns.insert(Concern { kind: ConcernKind::Shared, what });
            }
        }
        Ok(concerns.into_iter().collect())
    }

    async fn execute(&self, mut plan: Plan) -> Result<(), CloudError> {
        let mut parked: BTreeMap<usize, String> = plan
            .wards
            .iter()
            .enumerate()
            .filter_map(|(index, ward)| Some((index, ward.parked.as_ref()?.id.clone())))
            .collect();
        let mut own = plan.own.take();
        for act in merged(plan.acts) {
            tracing::info!(target = %self.target, ?act, "changing security groups");
            match act {
                Merged::Own(Act::MakeOwn { vpc, tags }) => {
                    let description =
                        format!("Postern: windows of {}. Made and deleted by the broker.", self.instance);
                    let name = self.own_name();
                    own = Some(self.ec2.create_group(&name, &description, &vpc, &tags).await?);
                }
                Merged::Own(act) => self.on_own(own.as_deref().unwrap_or_default(), act).await?,
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
            Act::Mark(tags) => Ok(self.ec2.tag(own, tags).await?),
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
        Ok(self.ec2.revoke_egress(own, &rules).await?)
    }

    async fn attach(&self, own: &str, interface: &str) -> Result<(), CloudError> {
        let attached = self.change_groups(interface, |groups| {
            if !groups.iter().any(|group| group == own) {
                groups.push(own.to_owned());
            }
        });
        match attached.await {
            Err(error @ CloudError::Refused { .. }) => {
                // Nothing of the customer's was touched yet: leave nothing behind.
                self.give_up(own).await;
                Err(error)
            }
            done => done,
        }
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
                self.ec2.set_groups(interface, &groups).await?;
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
                let name = parked_name(&ward.group);
                *parked = self.ec2.create_group(&name, &description, &ward.vpc, &tags).await?;
            }
            [Step::Hold(instance, ports), ..] => {
                self.ec2.tag(parked, [tags::of_holder(instance, ports)]).await?;
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
        Ok(self.ec2.authorize(group, &rules).await.map(drop)?)
    }

    async fn remove(&self, group: &str, steps: &[Step]) -> Result<(), CloudError> {
        let ids: Vec<String> = steps.iter().filter_map(Step::old_rule).map(|rule| rule.id.clone()).collect();
        Ok(self.ec2.revoke(group, &ids).await?)
    }

    fn own_name(&self) -> String {
        format!("postern-{}", self.instance)
    }
}

impl Plan {
    /// What is to be changed, in words.
    fn report(&self, locking: &Locking<'_>) -> LockdownReport {
        let own = || self.own.clone().unwrap_or_else(|| locking.own_name());
        let change = |action, resource, detail: String| Change { action, resource, detail };
        let words = |act: &Act| match act {
            Act::MakeOwn { vpc, .. } => {
                change(Action::Create, own(), format!("a security group for its windows, in {vpc}"))
            }
            Act::ShutEgress(_) => change(Action::Remove, own(), "every egress rule".into()),
            Act::Mark(tags) => {
                let tags: Vec<_> = tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
                change(Action::Mark, own(), tags.join(", "))
            }
            Act::Attach(interface) => change(Action::Attach, own(), format!("to {interface}")),
            Act::Detach(interface) => change(Action::Detach, own(), format!("from {interface}")),
            Act::DeleteOwn => change(Action::Delete, own(), String::new()),
            Act::Ward(index, step) => {
                let group = self.wards.get(*index).map_or("", |ward| &ward.group);
                let parked = || parked_name(group);
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

fn state(state: &str) -> Tags {
    Tags::from([(tags::STATE.to_owned(), state.to_owned())])
}

fn parked_name(group: &str) -> String {
    format!("postern-parked-{group}")
}
