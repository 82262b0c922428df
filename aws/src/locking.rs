//! Lockdown and release of one instance: reading what they need, deciding, and doing it, change after change.
//!
//! The order is what makes them safe to interrupt. Locking: the own group is made and attached, and says `locking`;
//! originals are parked before anything is taken away; the last change says `locked`. Releasing: the own group says
//! `releasing`; rules are back before their copies go; the own group goes last. Whatever happened between, reading again
//! and deciding again goes on from there.

mod execute;
mod report;
mod survey;

use std::collections::BTreeSet;

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{CloudError, Concern, ConcernKind, Consent, LockdownOrder, LockdownReport};

use crate::api::Ec2;
use crate::look::Look;
use crate::parking::{self, Step, Ward};
use crate::resource::Group;
use crate::rule::{Rule, Tags};
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
    /// Take a rule that is no window from the own group.
    Expel(Rule),
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
        if plan.acts.iter().any(|act| matches!(act, Act::MakeOwn { .. } | Act::Mark(_))) {
            plan.acts.push(Act::Mark(state(tags::LOCKED)));
        }
        self.execute(plan).await
    }

    /// Puts right the pieces of customers' rules that somebody widened over a protected port. Rules of others are left
    /// alone.
    pub(crate) async fn mend(&self, look: &Look) -> Result<(), CloudError> {
        let ports = look.ports(self.instance);
        let groups = look.widened(&ports, self.deployment);
        if groups.is_empty() {
            return Ok(());
        }
        let mut plan = Plan { wards: self.wards(&groups).await?, ..Plan::default() };
        let quota = self.quota(&plan.wards).await?;
        for (index, ward) in plan.wards.iter_mut().enumerate() {
            ward.without_exposing(&ports, self.deployment);
            let mut holders = ward.parked.as_ref().map(|parked| parked.holders.clone()).unwrap_or_default();
            holders.insert(self.instance.to_owned(), ports.clone());
            let steps = parking::plan(ward, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            plan.acts.extend(steps.into_iter().map(|step| Act::Ward(index, step)));
        }
        self.execute(plan).await
    }

    async fn locking(
        &self,
        ports: &BTreeSet<ProtectedPort>,
        together: &BTreeSet<TargetId>,
        look: &Look,
    ) -> Result<Plan, CloudError> {
        if !look.exists {
            return Err(CloudError::NotFound { target: self.target.clone() });
        }
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
        let shared = self.sharers(&plan.wards, shared, ports, together).await?;
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
                let is_primary =
                    look.primary_only || own.tags.get(tags::INTERFACES).is_some_and(|is| is == tags::PRIMARY);
                let which = if is_primary { tags::PRIMARY } else { tags::ALL };
                let mut missing = self.own_tags(holder, which);
                missing.retain(|key, value| key != tags::STATE && own.tags.get(key) != Some(value));
                if !missing.is_empty() && !ports.is_empty() {
                    acts.push(Act::Mark(missing.into_iter().chain(state(tags::LOCKING)).collect()));
                }
                let egress: Vec<String> = look.egress().iter().map(|rule| rule.id.clone()).collect();
                if !egress.is_empty() {
                    acts.push(Act::ShutEgress(egress));
                }
                acts.extend(self.expulsions(look));
                acts.extend(look.unattached().into_iter().map(|interface| Act::Attach(interface.id.clone())));
            }
        }
        acts
    }

    /// Takes what is no window out of the own group.
    fn expulsions(&self, look: &Look) -> Vec<Act> {
        look.strange(self.deployment).into_iter().cloned().map(Act::Expel).collect()
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

    async fn releasing(&self, look: &Look) -> Result<Plan, CloudError> {
        // One that is gone is released as long as something is held for it.
        if !look.exists && look.groups.is_empty() {
            return Err(CloudError::NotFound { target: self.target.clone() });
        }
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
        plan.acts.extend(self.expulsions(look));
        let groups: BTreeSet<&str> = look
            .parked()
            .filter_map(Group::parked_for)
            .chain(look.customer_groups().into_iter().map(String::as_str))
            .collect();
        let groups: Vec<String> = groups.into_iter().map(ToOwned::to_owned).collect();
        plan.wards = self.wards(&groups).await?;
        let quota = self.quota(&plan.wards).await?;
        for (index, ward) in plan.wards.iter().enumerate() {
            let Some(parked) = &ward.parked else { continue };
            let mut holders = parked.holders.clone();
            // What lost the tags that say who needs it is put back by whoever was under lockdown with it.
            let is_lost = holders.is_empty() && plan.own.is_some();
            if holders.remove(self.instance).is_none() && !is_lost {
                continue;
            }
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
}

fn state(state: &str) -> Tags {
    Tags::from([(tags::STATE.to_owned(), state.to_owned())])
}
