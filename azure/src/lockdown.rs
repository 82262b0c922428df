//! Lockdown, release and repair of one machine.
//!
//! A lockdown shuts the protected ports of a machine in every network security group that its connections pass. The group of the
//! subnet and the group of the interface both see a connection, and both must allow it: Postern writes its rules that deny into
//! each, for IPv4 and IPv6 apart, and only to the addresses of that machine. Its neighbours behind the same group keep their
//! traffic.
//!
//! [`plan`] decides the writes from a snapshot; this module carries them out. The rule kept here: **an operation is over only
//! when a read after its last write finds nothing left to do.** A group is shared. Another broker may lock or release a
//! neighbour at the same moment, and an administrator may edit the group. Of two principals that change one rule at once, at
//! least one reads the other's write in its next round, and acts on it.
//!
//! A round is: read the machine and its groups, plan, write. On failures:
//!
//! - a conflict (another rule has the priority, another etag, another operation): the round ends, and the next one reads first.
//!   After [`MAX_ROUNDS`] rounds the operation is unavailable, and the caller may repeat it;
//! - a plan that is impossible (no free priority, a firewall with a policy, a machine without a group): the operation is refused,
//!   with the remedy, before any write of that round;
//! - a concern that needs the administrator's consent (`--accept cut`) and has none: the report names it, and nothing is written;
//! - any other error, or the death of the broker: the writes so far stay. Each step leaves a state from which a lockdown, a
//!   release or a repair goes on, because names and notes in the groups hold all that is needed (I8).
//!
//! A repair puts back what another principal edited or deleted, and finishes what was interrupted. A mark in a group says that a
//! release is under way: a repair then releases, and never locks again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postern_core::TargetId;
use postern_provider::kit::ErrorClass;
use postern_provider::{
    CloudChange, CloudError, Concern, ConcernKind, LockdownOrder, LockdownReport, Observation,
};

use crate::error::WriteError;
use crate::firewall::FirewallEdit;
use crate::id::ArmId;
use crate::layer::Azure;
use crate::network::Nsg;
use crate::plan::{self, PlanError, RuleWrite, apply};
use crate::settings::Flush;
use crate::snapshot::{LockedRules, MachineView};
use crate::transport::busy_waits;

/// The most rounds of one operation.
const MAX_ROUNDS: usize = 20;

/// The writes of an operation, and its concerns for the administrator.
pub(crate) struct WritePlan {
    pub(crate) writes: Vec<RuleWrite>,
    concerns: Vec<Concern>,
}

impl From<PlanError> for CloudError {
    fn from(PlanError(reason): PlanError) -> Self {
        Self::refused(reason)
    }
}

impl WritePlan {
    pub(crate) fn report(&self) -> LockdownReport {
        let changes = self.writes.iter().map(RuleWrite::change).collect();
        LockdownReport { changes, concerns: self.concerns.clone() }
    }
}

/// The groups as they will be after the operations that a dry run has planned so far.
#[derive(Default)]
pub(crate) struct PlannedGroups(BTreeMap<ArmId, Nsg>);

impl PlannedGroups {
    /// Replaces the groups that a planned operation changes by what it leaves of them.
    fn show_in(&self, groups: &mut BTreeMap<ArmId, Nsg>) {
        for (id, group) in groups {
            if let Some(planned) = self.0.get(id) {
                group.clone_from(planned);
            }
        }
    }

    fn add(&mut self, groups: &BTreeMap<ArmId, Nsg>, writes: &[RuleWrite]) {
        let changed: BTreeSet<&ArmId> = writes.iter().map(RuleWrite::group).collect();
        self.0.extend(apply(groups, writes).into_iter().filter(|(id, _)| changed.contains(id)));
    }
}

impl Azure {
    /// Plans a lockdown after those before it.
    pub(crate) async fn plan_lock_after(
        &self,
        order: &LockdownOrder,
        planned: &mut PlannedGroups,
    ) -> Result<LockdownReport, CloudError> {
        let (mut snapshot, nothing) = (self.read(&order.target).await?, LockedRules::default());
        planned.show_in(&mut snapshot.groups);
        let plan =
            self.plan_lock(&snapshot.view(&order.target, &self.settings.deployment, &nothing), order)?;
        if order.consent.unmet(&plan.concerns).is_empty() {
            planned.add(&snapshot.groups, &plan.writes);
        }
        Ok(plan.report())
    }

    /// Plans a release after those before it.
    pub(crate) async fn plan_release_after(
        &self,
        target: &TargetId,
        planned: &mut PlannedGroups,
    ) -> Result<LockdownReport, CloudError> {
        let ((mut snapshot, _), nothing) = (self.read_with_all_groups(target).await?, LockedRules::default());
        planned.show_in(&mut snapshot.groups);
        let plan = self.plan_release_writes(&snapshot.view(target, &self.settings.deployment, &nothing))?;
        planned.add(&snapshot.groups, &plan.writes);
        Ok(plan.report())
    }

    /// Plans a lockdown.
    pub(crate) fn plan_lock(
        &self,
        view: &MachineView<'_>,
        order: &LockdownOrder,
    ) -> Result<WritePlan, CloudError> {
        let (target, vm) = (view.target, view.target.in_words());
        if let Some(front) = &view.machine.front
            && let Some(policy) = &front.policy
        {
            return Err(CloudError::refused(format!(
                "the firewall {} in front of {vm} is managed by the policy {policy}: Postern changes only classic rules, and a window could not pass it",
                front.firewall.in_words()
            )));
        }
        if let Some(reason) = view.machine.unread.first() {
            return Err(CloudError::refused(format!("{reason}, so {vm} cannot be locked down")));
        }
        if view.machine.groups.is_empty() {
            return Err(CloudError::refused(format!(
                "{vm} has no network security group, neither on an interface nor on a subnet; attach one first"
            )));
        }
        if let Some(door) = view.machine.doors.iter().find(|door| door.groups.is_empty()) {
            return Err(CloudError::refused(format!(
                "the address {} of {vm} is behind no network security group; attach one to its interface or subnet first",
                door.ip
            )));
        }
        if view.is_releasing() {
            return Err(CloudError::refused(format!(
                "a release of {vm} is not done; run `postern release {target}` first"
            )));
        }
        let mut concerns = Vec::new();
        for group in view.on_the_way().filter(|group| group.flushes) {
            let name = group.id.name();
            match self.settings.flush_connection {
                Flush::Refuse => {
                    return Err(CloudError::refused(format!(
                        "{name} has flushConnection on: every change of its rules would cut connections; turn it off, or set azure.flush_connection = \"warn\""
                    )));
                }
                Flush::Warn => concerns.push(Concern {
                    kind: ConcernKind::Cut,
                    what: format!("{name} has flushConnection on: this, and the end of each window, cuts connections that are established"),
                }),
            }
        }
        let first = order.consent.0.contains(&ConcernKind::Precedence);
        let writes = plan::lock(view, &order.ports, &self.settings.priorities, first)?;
        let after = apply(view.groups, &writes);
        let after = MachineView { groups: &after, ..*view };
        concerns.extend(
            after
                .still_open(&order.ports)
                .into_iter()
                .map(|open| Concern { kind: ConcernKind::Precedence, what: format!("not locked: {open}") }),
        );
        Ok(WritePlan { writes, concerns })
    }

    /// Carries a lockdown out, if every concern that needs the administrator's consent has it.
    pub(crate) async fn lock(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let nothing = LockedRules::default();
        let (mut changes, mut moved, mut waits) = (Vec::new(), BTreeSet::new(), busy_waits());
        for _ in 0..MAX_ROUNDS {
            let snapshot = self.read(&order.target).await?;
            let view = snapshot.view(&order.target, &self.settings.deployment, &nothing);
            let mut plan = self.plan_lock(&view, order)?;
            if !order.consent.unmet(&plan.concerns).is_empty() {
                return Ok(plan.report());
            }
            let lost = plan::lost_notes(&view, &moved, &self.settings.priorities)?;
            if !lost.is_empty() {
                plan.writes = lost;
            }
            if plan.writes.is_empty() {
                return Ok(LockdownReport { changes, concerns: plan.concerns });
            }
            moved.extend(plan::moved_away(&plan.writes, &self.settings.deployment));
            if !self.carry_out(&plan.writes, &mut changes).await? {
                wait(&mut waits).await;
            }
        }
        Err(groups_keep_changing(&order.target))
    }

    /// Plans a release.
    pub(crate) fn plan_release_writes(&self, view: &MachineView<'_>) -> Result<WritePlan, CloudError> {
        let writes = plan::release(view, &self.settings.priorities)?.writes();
        Ok(WritePlan { writes, concerns: Vec::new() })
    }

    /// Carries a release out, or continues one.
    pub(crate) async fn release_target(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let nothing = LockedRules::default();
        let (mut changes, mut taken, mut waits) = (Vec::new(), BTreeSet::new(), busy_waits());
        for _ in 0..MAX_ROUNDS {
            let adding = self.adding();
            let (snapshot, exists) = self.read_with_all_groups(target).await?;
            snapshot.check_read(target, &self.settings.deployment)?;
            let view = snapshot.view(target, &self.settings.deployment, &nothing);
            let Observation { windows, partial, .. } = self.observation(&view, &adding);
            // A machine that is gone has no open window.
            if exists && !(windows.is_empty() && partial.is_empty()) {
                return Err(CloudError::refused(format!(
                    "a window is open on {}; revoke it first",
                    target.in_words()
                )));
            }
            let lost = plan::lost_notes(&view, &taken, &self.settings.priorities)?;
            let release = plan::release(&view, &self.settings.priorities)?;
            let (writes, is_last) = if lost.is_empty() { release.next() } else { (lost, false) };
            taken.extend(plan::notes_taken(&writes));
            if !self.carry_out(&writes, &mut changes).await? {
                wait(&mut waits).await;
            } else if is_last {
                self.delete_all_nat_rules(&view, exists).await?;
                return Ok(LockdownReport { changes, concerns: Vec::new() });
            }
        }
        Err(groups_keep_changing(target))
    }

    /// Puts back what another principal changed, and finishes what was interrupted.
    pub(crate) async fn repair_target(&self, target: &TargetId) -> Result<(), CloudError> {
        let mut waits = busy_waits();
        for _ in 0..MAX_ROUNDS {
            let (snapshot, exists) = self.read_with_all_groups(target).await?;
            snapshot.check_read(target, &self.settings.deployment)?;
            let locked_rules = self.targets.locked_rules(target);
            let view = snapshot.view(target, &self.settings.deployment, &locked_rules);
            if !exists || view.is_releasing() {
                self.release_target(target).await?;
                self.targets.remove(target);
                return Ok(());
            }
            if self.repair_once(&view).await? {
                return Ok(());
            }
            wait(&mut waits).await;
        }
        Err(groups_keep_changing(target))
    }

    /// Repairs the machine once, and reports whether every write was made.
    async fn repair_once(&self, view: &MachineView<'_>) -> Result<bool, CloudError> {
        let denies: BTreeSet<String> = view
            .on_the_way()
            .flat_map(|group| view.denies(group))
            .map(|(rule, ..)| rule.name.clone())
            .collect();
        let strays = view.strays();
        // A rule that shuts a port is written again in its place, and not deleted before.
        let is_deny_on_the_way =
            |(group, name): &(ArmId, String)| view.machine.groups.contains(group) && denies.contains(name);
        let writes: Vec<RuleWrite> = strays
            .into_iter()
            .filter(|stray| !is_deny_on_the_way(stray))
            .map(|(group, name)| RuleWrite::Delete(group, name))
            .collect();
        let mut changes = Vec::new();
        if !self.carry_out(&writes, &mut changes).await? {
            return Ok(false);
        }
        let after = apply(view.groups, &writes);
        let writes = plan::resume(&MachineView { groups: &after, ..*view }, &self.settings.priorities)?;
        if !self.carry_out(&writes, &mut changes).await? {
            return Ok(false);
        }
        self.delete_nat_rules(view, view.stray_nat_rules()).await?;
        Ok(true)
    }

    /// Deletes every rule that firewalls hold for a target. For a machine that is gone every firewall is searched: its routes,
    /// which named the one in front, are gone too.
    async fn delete_all_nat_rules(&self, view: &MachineView<'_>, exists: bool) -> Result<(), CloudError> {
        if exists {
            let rules = view.managed_nat_rules().map(|(rule, _)| rule.name.clone()).collect();
            return self.delete_nat_rules(view, rules).await;
        }
        let (firewalls, unread) = self.reader().all_firewalls().await;
        for firewall in firewalls {
            let view = MachineView { firewall: Some(&firewall), ..*view };
            let remove = view.managed_nat_rules().map(|(rule, _)| rule.name.clone()).collect();
            self.edit_firewall(&firewall.id, FirewallEdit { remove, ..FirewallEdit::default() }).await?;
        }
        // Firewalls that the broker may not read, it has not written: they do not hold a release up.
        match unread.into_iter().find(|part| part.error.class() != Some(ErrorClass::Denied)) {
            Some(part) => Err(part.error.into()),
            None => Ok(()),
        }
    }

    async fn delete_nat_rules(&self, view: &MachineView<'_>, names: Vec<String>) -> Result<(), CloudError> {
        match &view.machine.front {
            Some(front) => {
                self.edit_firewall(
                    &front.firewall,
                    FirewallEdit { remove: names.into_iter().collect(), ..FirewallEdit::default() },
                )
                .await
            }
            None => Ok(()),
        }
    }

    /// Makes the writes, one after the other, until one conflicts with another principal's; reports whether all were made.
    async fn carry_out(&self, writes: &[RuleWrite], done: &mut Vec<CloudChange>) -> Result<bool, CloudError> {
        for write in writes {
            let id = write.group();
            let state = self.groups.state(id);
            let mut guard = state.lock(&self.arm, id).await;
            match guard.write(write).await {
                Ok(()) => done.push(write.change()),
                Err(WriteError::Call(error)) if error.is_conflict() => {
                    tracing::info!(%error, "another principal changed the group first; reading it again");
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// Waits, so that the other principals finish.
async fn wait(waits: &mut impl Iterator<Item = Duration>) {
    tokio::time::sleep(waits.next().unwrap_or(Duration::from_secs(5))).await;
}

fn groups_keep_changing(target: &TargetId) -> CloudError {
    CloudError::unavailable(format!(
        "other principals keep changing the network security groups of {}; try again later",
        target.in_words()
    ))
}
