//! Lockdown and release of one instance.
//!
//! The problem: a lockdown changes several resources that EC2 cannot change together: the instance's own
//! group, its interfaces, each of the customer's groups, and a parked group for each of those. The broker may
//! crash, lose its credentials or its lease between any two calls, other principals change the same
//! resources, and a port that was not protected must not be shut on the way.
//!
//! The shape: read, decide, carry out. [`InstanceSnapshot`] and `impact` read EC2;
//! [`LockdownOps::lockdown_plan`] and [`LockdownOps::release_plan`] decide a list of steps, in which
//! [`parking`] contributes those of each customer's group; `report` describes the steps for the
//! administrator; `execute` makes one call after the other. A dry run is the same without the last part, so
//! it shows exactly what would be done.
//!
//! The rule that makes them safe to interrupt is the order:
//!
//! - Locking: the own group is created with the state `preparing`, its egress is removed, and it is attached;
//!   a sweep undoes a lockdown that went no further. Then `locking` is written, with the concerns that the
//!   administrator accepted, and for each customer's group originals are parked before anything is removed.
//!   The last step writes `locked`.
//! - Releasing: the own group is marked `releasing`. Rules are back before their copies go. The own group is
//!   detached and deleted last.
//!
//! A plan follows from what EC2 shows, and not from what an earlier run has done. The memory of recent writes
//! (`recent`) only has the broker repeat a read that is older than they are. After any interruption, reading
//! again and deciding again goes on from there; the state tag tells the next sweep, of this broker or another,
//! which of the two to resume (I8). The state also keeps what the administrator accepted, and a lockdown that
//! is resumed takes nothing more for accepted.
//!
//! On failure: a concern that is not accepted, or a group without room, stops the plan before its first call.
//! If EC2 refuses to attach an own group that this run created, the broker deletes it again, because no rule
//! of the customer's was touched yet. Any later error leaves the state tag as it is. If another principal
//! removed the tags that record the ports, no tag says what to resume, and the sweep reports that the target
//! must be locked down again. A release is refused while a window is open, and works for an instance that no
//! longer exists as long as a group of Postern's still serves it.
//!
//! Lockdowns and releases of one account and Region run one at a time, because they may share the customer's
//! groups.

mod execute;
mod groups;
mod impact;
mod recent;
mod report;

pub(crate) use groups::{GivenBack, GroupOps};
pub(crate) use recent::RecentWrites;

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{CloudError, Concern, ConcernKind, LockdownOrder, LockdownReport};

use crate::ec2::Find;
use crate::parking::{self, CustomerGroup, GroupStep};
use crate::resource::{Ec2Group, Ec2Interface};
use crate::rule::{GroupRule, Tags};
use crate::snapshot::InstanceSnapshot;
use crate::tags;

/// The operations of lockdown and release on one instance.
pub(crate) struct LockdownOps<'a> {
    pub(crate) groups: GroupOps<'a>,
    pub(crate) target: &'a TargetId,
    pub(crate) instance: &'a str,
    pub(crate) deployment: &'a str,
    pub(crate) groups_per_interface: usize,
}

/// A step of a lockdown or a release.
#[derive(Debug, Clone, PartialEq, Eq)]
enum InstanceStep {
    /// Create the instance's own group.
    MakeOwn { vpc: String, tags: Tags },
    /// Remove these egress rules, or those of a new group, from the own group.
    ShutEgress(Vec<String>),
    /// Remove a rule that is not a window from the own group.
    RemoveStray(GroupRule),
    /// Write these tags on the own group.
    Mark(Tags),
    /// Remove the tags with these keys from the own group.
    Unmark(Vec<String>),
    /// Attach the own group to an interface.
    Attach(String),
    /// Change a customer's group.
    CustomerGroup(usize, GroupStep),
    /// Detach a group of Postern's from an interface.
    Detach { interface: String, group: String },
    /// Delete the own group.
    DeleteOwn,
}

/// The steps of a lockdown or a release, and what an administrator must accept.
#[derive(Debug, Default)]
struct InstancePlan {
    own: Option<String>,
    customer_groups: Vec<CustomerGroup>,
    steps: Vec<InstanceStep>,
    concerns: Vec<Concern>,
}

impl InstancePlan {
    /// Returns the customer's groups of which something is parked for the instance once the plan is carried out.
    fn recorded(&self, snapshot: &InstanceSnapshot) -> BTreeSet<String> {
        let mut recorded: BTreeSet<String> = snapshot.recorded().into_iter().map(ToOwned::to_owned).collect();
        let makes_parked = |index: usize| {
            self.steps.iter().any(
                |step| matches!(step, InstanceStep::CustomerGroup(of, GroupStep::MakeParked(..)) if *of == index),
            )
        };
        for (index, group) in self.customer_groups.iter().enumerate() {
            if !group.parked.is_empty() || makes_parked(index) {
                recorded.insert(group.id.clone());
            }
        }
        recorded
    }

    /// Returns the parked groups that the plan deletes.
    fn deleted(&self) -> BTreeSet<String> {
        let id = |step: &InstanceStep| {
            let InstanceStep::CustomerGroup(index, GroupStep::DeleteParked(number)) = step else {
                return None;
            };
            let parked = &self.customer_groups.get(*index)?.parked;
            parked.iter().find(|parked| parked.number == *number).map(|parked| parked.id.clone())
        };
        self.steps.iter().filter_map(id).collect()
    }

    /// Takes the tags of customer's groups of which nothing is parked any more off the own group.
    fn unmark_lost(&mut self, snapshot: &InstanceSnapshot, recorded: &BTreeSet<String>) {
        let lost = snapshot.lost().into_iter().filter(|group| !recorded.contains(group));
        let keys: Vec<String> = lost.map(|group| format!("{}{group}", tags::SHUTS)).collect();
        if !keys.is_empty() {
            self.steps.push(InstanceStep::Unmark(keys));
        }
    }
}

impl LockdownOps<'_> {
    /// Reports what a lockdown would change.
    pub(crate) async fn plan_lock(
        &self,
        order: &LockdownOrder,
        snapshot: &InstanceSnapshot,
    ) -> Result<LockdownReport, CloudError> {
        Ok(self.lockdown_plan(order, snapshot).await?.report(self))
    }

    /// Locks the instance down, unless a concern is not accepted.
    pub(crate) async fn lock(
        &self,
        order: &LockdownOrder,
        snapshot: &InstanceSnapshot,
    ) -> Result<LockdownReport, CloudError> {
        let plan = self.lockdown_plan(order, snapshot).await?;
        let report = plan.report(self);
        if !order.consent.unmet(&report.concerns).is_empty() {
            return Ok(report);
        }
        self.execute(plan).await?;
        Ok(report)
    }

    /// Resumes a lockdown that was interrupted, with the concerns that the administrator accepted when it
    /// began and no others.
    pub(crate) async fn resume_lock(&self, snapshot: &InstanceSnapshot) -> Result<(), CloudError> {
        let order = LockdownOrder {
            target: self.target.clone(),
            ports: snapshot.ports(self.instance),
            consent: snapshot.own().map(|own| tags::consent(&own.tags)).unwrap_or_default(),
            together: BTreeMap::new(),
        };
        let report = self.lock(&order, snapshot).await?;
        let unmet = order.consent.unmet(&report.concerns);
        let Some(first) = unmet.first() else { return Ok(()) };
        let target = self.target;
        Err(CloudError::refused(format!(
            "the interrupted lockdown of {target} waits for a concern that was not accepted ({}: {}): run `postern lockdown {target}` and accept it, or `postern release {target}`",
            first.kind.word(),
            first.what
        )))
    }

    /// Reports what a release would change.
    pub(crate) async fn plan_release(
        &self,
        snapshot: &InstanceSnapshot,
    ) -> Result<LockdownReport, CloudError> {
        Ok(self.release_plan(snapshot).await?.report(self))
    }

    /// Releases the instance.
    pub(crate) async fn release(&self, snapshot: &InstanceSnapshot) -> Result<LockdownReport, CloudError> {
        let plan = self.release_plan(snapshot).await?;
        let report = plan.report(self);
        self.execute(plan).await?;
        Ok(report)
    }

    /// Creates the own group of a locked instance again, or attaches it where it is missing. Touches nothing
    /// else.
    pub(crate) async fn reattach(&self, snapshot: &InstanceSnapshot) -> Result<(), CloudError> {
        let snapshot = &self.with_interface_scope(snapshot).await?;
        let mut plan =
            InstancePlan { own: snapshot.own().map(|own| own.id.clone()), ..InstancePlan::default() };
        plan.steps = self.own_group_steps(snapshot, &snapshot.ports(self.instance));
        plan.steps.extend(detachments(snapshot));
        if plan.steps.iter().any(|step| matches!(step, InstanceStep::MakeOwn { .. } | InstanceStep::Mark(_)))
        {
            plan.steps.push(InstanceStep::Mark(state_tag(tags::LOCKED)));
        }
        self.execute(plan).await
    }

    /// Shuts the customer's groups again: narrows the pieces that another principal widened over a protected port,
    /// and locks down each group again of which nothing is parked any more. Leaves the customer's other rules alone.
    pub(crate) async fn shut_again(&self, snapshot: &InstanceSnapshot) -> Result<(), CloudError> {
        let ports = snapshot.ports(self.instance);
        let (lost, on) = (snapshot.lost(), snapshot.customer_groups());
        let mut groups: BTreeSet<String> = snapshot.widened(&ports, self.deployment).into_iter().collect();
        groups.extend(lost.iter().filter(|group| on.contains(group)).cloned());
        if groups.is_empty() && lost.is_empty() {
            return Ok(());
        }
        let groups: Vec<String> = groups.into_iter().collect();
        let mut plan = InstancePlan {
            own: snapshot.own().map(|own| own.id.clone()),
            customer_groups: self.groups.read(&groups).await?,
            ..InstancePlan::default()
        };
        let quota = self.groups.quota(&mut plan.customer_groups).await?;
        let neighbours = self.groups.neighbours(&groups).await?;
        for (index, customer_group) in plan.customer_groups.iter_mut().enumerate() {
            if !lost.contains(&customer_group.id) {
                customer_group.without_exposing(&ports, self.deployment);
            }
            let mut holders = self.groups.holders_besides(self.instance, customer_group, &neighbours);
            holders.insert(self.instance.to_owned(), ports.clone());
            let steps = parking::plan(customer_group, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            plan.steps.extend(steps.into_iter().map(|step| InstanceStep::CustomerGroup(index, step)));
        }
        let recorded = plan.recorded(snapshot);
        plan.unmark_lost(snapshot, &recorded);
        self.execute(plan).await
    }

    async fn lockdown_plan(
        &self,
        order: &LockdownOrder,
        snapshot: &InstanceSnapshot,
    ) -> Result<InstancePlan, CloudError> {
        let ports = &order.ports;
        if !snapshot.exists {
            return Err(CloudError::NotFound { target: self.target.clone() });
        }
        if snapshot.interfaces.is_empty() {
            return Err(CloudError::refused(format!("{} has no network interface in a VPC", self.target)));
        }
        let snapshot = &self.with_interface_scope(snapshot).await?;
        let mut plan =
            InstancePlan { own: snapshot.own().map(|own| own.id.clone()), ..InstancePlan::default() };
        plan.steps = self.own_group_steps(snapshot, ports);
        plan.steps.extend(detachments(snapshot));
        self.check_room_on_interfaces(snapshot)?;
        let groups: Vec<String> = snapshot.customer_groups().into_iter().cloned().collect();
        plan.customer_groups = self.groups.read(&groups).await?;
        let quota = self.groups.quota(&mut plan.customer_groups).await?;
        let neighbours = self.groups.neighbours(&groups).await?;
        let mut touched = BTreeSet::new();
        let mut steps_of_groups = Vec::new();
        for (index, customer_group) in plan.customer_groups.iter().enumerate() {
            let mut holders = self.groups.holders_besides(self.instance, customer_group, &neighbours);
            holders.insert(self.instance.to_owned(), ports.clone());
            let steps = parking::plan(customer_group, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            // The other targets of the order come next, and must find room as well.
            let mut all = holders.clone();
            for other in neighbours.instances_on(&customer_group.id) {
                let ordered = groups::ordered(order, other).filter(|_| other != self.instance);
                all.entry(other.clone()).or_default().extend(ordered.into_iter().flatten());
            }
            all.retain(|_, ports| !ports.is_empty());
            parking::plan(customer_group, &all, self.deployment, &quota)
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
                touched.insert(customer_group.id.clone());
            }
            steps_of_groups.extend(steps.into_iter().map(|step| InstanceStep::CustomerGroup(index, step)));
        }
        plan.concerns.extend(self.shared_with(&touched, &neighbours, order));
        if !steps_of_groups.is_empty() {
            // From here on a sweep finishes the lockdown, with these consents and no others.
            plan.steps.push(InstanceStep::Mark(state_tag(&tags::locking(&order.consent))));
        }
        plan.steps.append(&mut steps_of_groups);
        let recorded = plan.recorded(snapshot);
        plan.unmark_lost(snapshot, &recorded);
        if !plan.steps.is_empty() || snapshot.state() != tags::LOCKED {
            let shuts = tags::of_shuts(recorded.iter().map(String::as_str));
            plan.steps.push(InstanceStep::Mark(shuts.into_iter().chain(state_tag(tags::LOCKED)).collect()));
        }
        Ok(plan)
    }

    /// Returns the steps that complete the own group.
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
                    tags: self
                        .own_tags(holder, which, Self::first_state(snapshot))
                        .into_iter()
                        .chain(tags::of_shuts(snapshot.recorded()))
                        .chain(self.groups.tags.clone())
                        .collect(),
                });
                steps.push(InstanceStep::ShutEgress(Vec::new()));
                steps.extend(snapshot.served().map(|interface| InstanceStep::Attach(interface.id.clone())));
            }
            Some(own) => {
                let is_primary = snapshot.primary_only
                    || own.tags.get(tags::INTERFACES).is_some_and(|is| is == tags::PRIMARY);
                let which = if is_primary { tags::PRIMARY } else { tags::ALL };
                let mut missing = self.own_tags(holder, which, tags::LOCKING);
                missing.extend(tags::of_shuts(snapshot.recorded()));
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

    /// Returns the steps that remove the rules that are not windows from the own group.
    fn stray_removals(&self, snapshot: &InstanceSnapshot) -> Vec<InstanceStep> {
        snapshot.stray_rules(self.deployment).into_iter().cloned().map(InstanceStep::RemoveStray).collect()
    }

    /// Returns the state of a new own group. While nothing is parked for the instance, no rule of the
    /// customer's has been touched, and a sweep undoes a lockdown that goes no further.
    fn first_state(snapshot: &InstanceSnapshot) -> &'static str {
        if snapshot.parked().next().is_none() { tags::PREPARING } else { tags::LOCKING }
    }

    /// Refuses a lockdown if an interface has no room for the own group, or lets no one attach it.
    fn check_room_on_interfaces(&self, snapshot: &InstanceSnapshot) -> Result<(), CloudError> {
        let own = snapshot.own().map(|own| &own.id);
        let lacks = |interface: &&Ec2Interface| own.is_none_or(|own| !interface.groups.contains(own));
        if let Some(managed) = snapshot.served().filter(lacks).find(|interface| interface.is_managed) {
            return Err(CloudError::refused(format!(
                "{}, the primary interface of {}, is managed by a service, and EC2 lets no one else change its security groups; protect the machine in the host layer instead",
                managed.id, self.target
            )));
        }
        let is_full = |interface: &&Ec2Interface| interface.groups.len() >= self.groups_per_interface;
        let Some(full) = snapshot.served().filter(lacks).find(is_full) else { return Ok(()) };
        Err(CloudError::refused(format!(
            "{} has {} security groups, and {} are allowed: detach a group that is not needed, or have the quota of security groups per network interface raised (16 at most) and set groups_per_interface",
            full.id,
            full.groups.len(),
            self.groups_per_interface
        )))
    }

    fn own_tags(&self, holder: (String, String), interfaces: &str, state: &str) -> Tags {
        let fixed = [
            (tags::MANAGED_BY, self.deployment),
            (tags::ROLE, tags::WINDOWS),
            (tags::INSTANCE, self.instance),
            (tags::STATE, state),
            (tags::INTERFACES, interfaces),
        ];
        let fixed = fixed.map(|(key, value)| (key.to_owned(), value.to_owned()));
        fixed.into_iter().chain([holder]).collect()
    }

    async fn release_plan(&self, snapshot: &InstanceSnapshot) -> Result<InstancePlan, CloudError> {
        // An instance that is gone can be released as long as a group of Postern's serves it.
        if !snapshot.exists && snapshot.groups.is_empty() {
            return Err(CloudError::NotFound { target: self.target.clone() });
        }
        // Of an instance that is gone no window is open, whatever its own group holds.
        if let Some(held) = snapshot.window_rules(self.deployment).first().filter(|_| snapshot.exists) {
            let grants: Vec<_> = held.marks.keys().map(ToString::to_string).collect();
            return Err(CloudError::refused(format!(
                "a window is open on {}; revoke its grant first: {}",
                self.target,
                grants.join(", ")
            )));
        }
        let mut plan =
            InstancePlan { own: snapshot.own().map(|own| own.id.clone()), ..InstancePlan::default() };
        if plan.own.is_some() && snapshot.state() != tags::RELEASING {
            plan.steps.push(InstanceStep::Mark(state_tag(tags::RELEASING)));
        }
        plan.steps.extend(self.stray_removals(snapshot));
        let groups: BTreeSet<&str> = snapshot
            .parked()
            .filter_map(Ec2Group::parked_for)
            .chain(snapshot.customer_groups().into_iter().map(String::as_str))
            .collect();
        let groups: Vec<String> = groups.into_iter().map(ToOwned::to_owned).collect();
        plan.customer_groups = self.groups.read(&groups).await?;
        let quota = self.groups.quota(&mut plan.customer_groups).await?;
        let neighbours = self.groups.neighbours(&groups).await?;
        for (index, customer_group) in plan.customer_groups.iter().enumerate() {
            if customer_group.parked.is_empty() {
                continue;
            }
            let listed = customer_group.holders();
            let holders = self.groups.holders_besides(self.instance, customer_group, &neighbours);
            // If the parked groups have lost their holders' tags, any instance that is under lockdown with
            // them restores the rules.
            let is_lost = listed.is_empty() && plan.own.is_some();
            if !listed.contains_key(self.instance) && !is_lost {
                continue;
            }
            let steps = parking::plan(customer_group, &holders, self.deployment, &quota)
                .map_err(|error| CloudError::refused(error.to_string()))?;
            plan.steps.extend(steps.into_iter().map(|step| InstanceStep::CustomerGroup(index, step)));
        }
        let (own, parked): (Vec<_>, Vec<_>) = self
            .check_that_groups_can_go(&plan)
            .await?
            .into_iter()
            .partition(|(_, group)| Some(group) == plan.own.as_ref());
        let detach = |(interface, group)| InstanceStep::Detach { interface, group };
        // The own group is marked first, and the parked groups are deleted after their rules are back.
        let at = usize::from(matches!(plan.steps.first(), Some(InstanceStep::Mark(_))));
        plan.steps.splice(at..at, parked.into_iter().map(detach));
        if plan.own.is_some() {
            plan.steps.extend(own.into_iter().map(detach));
            plan.steps.push(InstanceStep::DeleteOwn);
        }
        Ok(plan)
    }

    /// Returns the interfaces with a group that the plan deletes, each with such a group: another principal may have put
    /// them on any. Refuses a release if EC2 would not delete one of them: because an interface would be left without a
    /// group, or because a rule of another group names one.
    async fn check_that_groups_can_go(
        &self,
        plan: &InstancePlan,
    ) -> Result<Vec<(String, String)>, CloudError> {
        let going: Vec<String> = plan.deleted().into_iter().chain(plan.own.clone()).collect();
        if going.is_empty() {
            return Ok(Vec::new());
        }
        let target = self.target;
        let mut on = BTreeMap::new();
        for group in &going {
            let found =
                self.groups.ec2.interfaces(Find::Where("group-id", std::slice::from_ref(group))).await?;
            on.extend(found.into_iter().map(|interface| (interface.id.clone(), interface)));
        }
        let mut detached = Vec::new();
        for interface in on.into_values() {
            let id = &interface.id;
            if interface.groups.iter().all(|group| going.contains(group)) {
                return Err(CloudError::refused(format!(
                    "{id} has no security group that the release of {target} does not delete ({}): give it another one first",
                    going.join(", ")
                )));
            }
            let of_it = interface.groups.iter().filter(|group| going.contains(group));
            detached.extend(of_it.map(|group| (id.clone(), group.clone())));
        }
        let mut naming = self.groups.ec2.groups(Find::Where("ip-permission.group-id", &going)).await?;
        naming.extend(self.groups.ec2.groups(Find::Where("egress.ip-permission.group-id", &going)).await?);
        // Strays of the own group go first. A parked rule that names one of them would be put back, and name it still.
        naming.retain(|group| Some(&group.id) != plan.own.as_ref());
        if naming.is_empty() {
            return Ok(detached);
        }
        let names: BTreeSet<String> = naming.into_iter().map(|group| group.id).collect();
        let names: Vec<String> = names.into_iter().collect();
        Err(CloudError::refused(format!(
            "rules of {} name a group of the lockdown of {target} ({}), and EC2 does not delete it before they go: remove those rules first",
            names.join(", "),
            going.join(", ")
        )))
    }
}

/// Returns the steps that take groups of Postern's off interfaces where they do not belong.
fn detachments(snapshot: &InstanceSnapshot) -> Vec<InstanceStep> {
    let dispensable = snapshot.misplaced().into_iter().filter(|(_, _, is_dispensable)| *is_dispensable);
    let detach = |(interface, group, _): (&Ec2Interface, &String, bool)| InstanceStep::Detach {
        interface: interface.id.clone(),
        group: group.clone(),
    };
    dispensable.map(detach).collect()
}

fn state_tag(state: &str) -> Tags {
    Tags::from([(tags::STATE.to_owned(), state.to_owned())])
}
