//! Lockdown and release of one instance: reading what they need, deciding, and doing it, change after change.
//!
//! The order is what makes them safe to interrupt. Locking: the own group is made and attached, and says `locking`;
//! originals are parked before anything is taken away; the last change says `locked`. Releasing: the own group says
//! `releasing`; rules are back before their copies go; the own group goes last. Whatever happened between, reading again
//! and deciding again goes on from there.

mod execute;
mod impact;
mod report;

use std::collections::BTreeSet;

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{CloudError, Concern, ConcernKind, Consent, LockdownOrder, LockdownReport};

use crate::api::Ec2;
use crate::parking::{self, CustomerGroup, GroupStep};
use crate::resource::Group;
use crate::rule::{Rule, Tags};
use crate::snapshot::InstanceSnapshot;
use crate::tags;

/// One instance in its place.
pub(crate) struct LockdownOps<'a> {
    pub(crate) ec2: &'a Ec2,
    pub(crate) target: &'a TargetId,
    pub(crate) instance: &'a str,
    pub(crate) deployment: &'a str,
    pub(crate) rules_per_group: usize,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
enum InstanceStep {
    /// Make the instance's own group.
    MakeOwn { vpc: String, tags: Tags },
    /// Take these egress rules, or those it comes with, from the own group.
    ShutEgress(Vec<String>),
    /// Take a rule that is no window from the own group.
    RemoveStray(Rule),
    /// Write these tags on the own group.
    Mark(Tags),
    /// Attach the own group to an interface.
    Attach(String),
    /// Change a customer's group.
    CustomerGroup(usize, GroupStep),
    /// Detach the own group from an interface.
    Detach(String),
    /// Delete the own group.
    DeleteOwn,
}

/// What was decided.
#[derive(Debug, Default)]
struct LockdownPlan {
    own: Option<String>,
    customer_groups: Vec<CustomerGroup>,
    steps: Vec<InstanceStep>,
    concerns: Vec<Concern>,
}

impl LockdownOps<'_> {
    /// What a lockdown would change.
    pub(crate) async fn plan_lock(
        &self,
        order: &LockdownOrder,
        snapshot: &InstanceSnapshot,
    ) -> Result<LockdownReport, CloudError> {
        Ok(self.lockdown_plan(&order.ports, &order.together, snapshot).await?.report(self))
    }

    /// Locks, unless a concern is not accepted.
    pub(crate) async fn lock(
        &self,
        order: &LockdownOrder,
        snapshot: &InstanceSnapshot,
    ) -> Result<LockdownReport, CloudError> {
        let plan = self.lockdown_plan(&order.ports, &order.together, snapshot).await?;
        let report = plan.report(self);
        if !order.consent.unmet(&report.concerns).is_empty() {
            return Ok(report);
        }
        self.execute(plan).await?;
        Ok(report)
    }

    /// Goes on with a lockdown that was interrupted: what it wrote down was accepted then.
    pub(crate) async fn resume_lock(&self, snapshot: &InstanceSnapshot) -> Result<(), CloudError> {
        let order = LockdownOrder {
            target: self.target.clone(),
            ports: snapshot.ports(self.instance),
            consent: Consent::all(),
            together: BTreeSet::new(),
        };
        self.lock(&order, snapshot).await.map(drop)
    }

    /// What a release would change.
    pub(crate) async fn plan_release(
        &self,
        snapshot: &InstanceSnapshot,
    ) -> Result<LockdownReport, CloudError> {
        Ok(self.release_plan(snapshot).await?.report(self))
    }

    /// Releases.
    pub(crate) async fn release(&self, snapshot: &InstanceSnapshot) -> Result<LockdownReport, CloudError> {
        let plan = self.release_plan(snapshot).await?;
        let report = plan.report(self);
        self.execute(plan).await?;
        Ok(report)
    }

    /// Makes the own group of a locked instance anew, or attaches it where it is missing. Nothing else is touched.
    pub(crate) async fn reattach(&self, snapshot: &InstanceSnapshot) -> Result<(), CloudError> {
        let snapshot = &self.with_interface_scope(snapshot).await?;
        let mut plan =
            LockdownPlan { own: snapshot.own().map(|own| own.id.clone()), ..LockdownPlan::default() };
        plan.steps = self.own_group_steps(snapshot, &snapshot.ports(self.instance));
        if plan.steps.iter().any(|step| matches!(step, InstanceStep::MakeOwn { .. } | InstanceStep::Mark(_)))
        {
            plan.steps.push(InstanceStep::Mark(state_tag(tags::LOCKED)));
        }
        self.execute(plan).await
    }

    /// Puts right the pieces of customers' rules that somebody widened over a protected port. Rules of others are left
    /// alone.
    pub(crate) async fn narrow_pieces(&self, snapshot: &InstanceSnapshot) -> Result<(), CloudError> {
        let ports = snapshot.ports(self.instance);
        let groups = snapshot.widened(&ports, self.deployment);
        if groups.is_empty() {
            return Ok(());
        }
        let mut plan = LockdownPlan {
            customer_groups: self.read_customer_groups(&groups).await?,
            ..LockdownPlan::default()
        };
        let quota = self.quota(&plan.customer_groups).await?;
        for (index, customer_group) in plan.customer_groups.iter_mut().enumerate() {
            customer_group.without_exposing(&ports, self.deployment);
            let mut holders =
                customer_group.parked.as_ref().map(|parked| parked.holders.clone()).unwrap_or_default();
            holders.insert(self.instance.to_owned(), ports.clone());
            let steps = parking::plan(customer_group, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            plan.steps.extend(steps.into_iter().map(|step| InstanceStep::CustomerGroup(index, step)));
        }
        self.execute(plan).await
    }

    async fn lockdown_plan(
        &self,
        ports: &BTreeSet<ProtectedPort>,
        together: &BTreeSet<TargetId>,
        snapshot: &InstanceSnapshot,
    ) -> Result<LockdownPlan, CloudError> {
        if !snapshot.exists {
            return Err(CloudError::NotFound { target: self.target.clone() });
        }
        if snapshot.interfaces.is_empty() {
            return Err(CloudError::refused(format!("{} has no network interface in a VPC", self.target)));
        }
        let snapshot = &self.with_interface_scope(snapshot).await?;
        let mut plan =
            LockdownPlan { own: snapshot.own().map(|own| own.id.clone()), ..LockdownPlan::default() };
        plan.steps = self.own_group_steps(snapshot, ports);
        let groups: Vec<String> = snapshot.customer_groups().into_iter().cloned().collect();
        plan.customer_groups = self.read_customer_groups(&groups).await?;
        let quota = self.quota(&plan.customer_groups).await?;
        let mut shared = Vec::new();
        for (index, customer_group) in plan.customer_groups.iter().enumerate() {
            let mut holders =
                customer_group.parked.as_ref().map(|parked| parked.holders.clone()).unwrap_or_default();
            holders.insert(self.instance.to_owned(), ports.clone());
            let steps = parking::plan(customer_group, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            for (rule, lost) in parking::losses(customer_group, &holders, self.deployment) {
                let concern = |kind, what| Concern { kind, what };
                plan.concerns.extend(
                    lost.into_iter().map(|lost| concern(ConcernKind::Loss, format!("{rule}: {lost}"))),
                );
                if rule.source.is_anyone() {
                    let what = format!("{rule}: established connections over it may be cut");
                    plan.concerns.push(concern(ConcernKind::Cut, what));
                }
            }
            if steps.iter().any(|step| matches!(step, GroupStep::Remove(_))) {
                shared.push((index, holders));
            }
            plan.steps.extend(steps.into_iter().map(|step| InstanceStep::CustomerGroup(index, step)));
        }
        let shared = self.shared_with(&plan.customer_groups, shared, ports, together).await?;
        plan.concerns.extend(shared);
        let touches_customer_groups =
            plan.steps.iter().any(|step| matches!(step, InstanceStep::CustomerGroup(..)));
        if touches_customer_groups && snapshot.state() == tags::LOCKED {
            // Or a sweep would not go on with it.
            plan.steps.insert(0, InstanceStep::Mark(state_tag(tags::LOCKING)));
        }
        if !plan.steps.is_empty() || snapshot.state() != tags::LOCKED {
            plan.steps.push(InstanceStep::Mark(state_tag(tags::LOCKED)));
        }
        Ok(plan)
    }

    /// What the own group needs.
    fn own_group_steps(
        &self,
        snapshot: &InstanceSnapshot,
        ports: &BTreeSet<ProtectedPort>,
    ) -> Vec<InstanceStep> {
        let holder = tags::of_holder(self.instance, ports);
        let mut steps = Vec::new();
        match snapshot.own() {
            None => {
                let which = if snapshot.primary_only { tags::PRIMARY } else { tags::ALL };
                steps.push(InstanceStep::MakeOwn {
                    vpc: snapshot.vpc().to_owned(),
                    tags: self.own_tags(holder, which),
                });
                steps.push(InstanceStep::ShutEgress(Vec::new()));
                steps.extend(snapshot.served().map(|interface| InstanceStep::Attach(interface.id.clone())));
            }
            Some(own) => {
                let is_primary = snapshot.primary_only
                    || own.tags.get(tags::INTERFACES).is_some_and(|is| is == tags::PRIMARY);
                let which = if is_primary { tags::PRIMARY } else { tags::ALL };
                let mut missing = self.own_tags(holder, which);
                missing.retain(|key, value| key != tags::STATE && own.tags.get(key) != Some(value));
                if !missing.is_empty() && !ports.is_empty() {
                    steps.push(InstanceStep::Mark(
                        missing.into_iter().chain(state_tag(tags::LOCKING)).collect(),
                    ));
                }
                let egress: Vec<String> = snapshot.egress().iter().map(|rule| rule.id.clone()).collect();
                if !egress.is_empty() {
                    steps.push(InstanceStep::ShutEgress(egress));
                }
                steps.extend(self.stray_removals(snapshot));
                steps.extend(
                    snapshot
                        .unattached()
                        .into_iter()
                        .map(|interface| InstanceStep::Attach(interface.id.clone())),
                );
            }
        }
        steps
    }

    /// Takes what is no window out of the own group.
    fn stray_removals(&self, snapshot: &InstanceSnapshot) -> Vec<InstanceStep> {
        snapshot.stray_rules(self.deployment).into_iter().cloned().map(InstanceStep::RemoveStray).collect()
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

    async fn release_plan(&self, snapshot: &InstanceSnapshot) -> Result<LockdownPlan, CloudError> {
        // One that is gone is released as long as something is held for it.
        if !snapshot.exists && snapshot.groups.is_empty() {
            return Err(CloudError::NotFound { target: self.target.clone() });
        }
        if let Some(held) = snapshot.window_rules(self.deployment).first() {
            let grants: Vec<_> = held.marks.keys().map(ToString::to_string).collect();
            return Err(CloudError::refused(format!(
                "a window is open on {}; revoke its grant first: {}",
                self.target,
                grants.join(", ")
            )));
        }
        let mut plan =
            LockdownPlan { own: snapshot.own().map(|own| own.id.clone()), ..LockdownPlan::default() };
        if plan.own.is_some() && snapshot.state() != tags::RELEASING {
            plan.steps.push(InstanceStep::Mark(state_tag(tags::RELEASING)));
        }
        plan.steps.extend(self.stray_removals(snapshot));
        let groups: BTreeSet<&str> = snapshot
            .parked()
            .filter_map(Group::parked_for)
            .chain(snapshot.customer_groups().into_iter().map(String::as_str))
            .collect();
        let groups: Vec<String> = groups.into_iter().map(ToOwned::to_owned).collect();
        plan.customer_groups = self.read_customer_groups(&groups).await?;
        let quota = self.quota(&plan.customer_groups).await?;
        for (index, customer_group) in plan.customer_groups.iter().enumerate() {
            let Some(parked) = &customer_group.parked else { continue };
            let mut holders = parked.holders.clone();
            // What lost the tags that say who needs it is put back by whoever was under lockdown with it.
            let is_lost = holders.is_empty() && plan.own.is_some();
            if holders.remove(self.instance).is_none() && !is_lost {
                continue;
            }
            let steps = parking::plan(customer_group, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            plan.steps.extend(steps.into_iter().map(|step| InstanceStep::CustomerGroup(index, step)));
        }
        if let Some(own) = &plan.own {
            let on = snapshot.interfaces.iter().filter(|interface| interface.groups.contains(own));
            plan.steps.extend(on.map(|interface| InstanceStep::Detach(interface.id.clone())));
            plan.steps.push(InstanceStep::DeleteOwn);
        }
        Ok(plan)
    }
}

fn state_tag(state: &str) -> Tags {
    Tags::from([(tags::STATE.to_owned(), state.to_owned())])
}
