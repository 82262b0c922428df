//! Lockdown, release and repair of one machine: what was planned, said in words and carried out.
//!
//! Several machines share a group, and another broker may be at work on another of them. So whatever was changed is looked
//! at again, until there is nothing left to do: of two who change one rule at once, at least one sees what the other did.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postern_core::TargetId;
use postern_provider::{
    Change, CloudError, Concern, ConcernKind, LockdownOrder, LockdownReport, Observation,
};

use crate::error::WriteError;
use crate::firewall::Edit;
use crate::id::ArmId;
use crate::look::{Look, Memory};
use crate::network::Group;
use crate::plan::{self, Act, Impossible};
use crate::provider::Azure;
use crate::settings::Flush;
use crate::transport::busy_waits;

/// So often it is looked whether there is something left to do.
const TRIES: usize = 20;

/// What is to be done, and what it asks.
pub(crate) struct Plan {
    pub(crate) acts: Vec<Act>,
    concerns: Vec<Concern>,
}

impl From<Impossible> for CloudError {
    fn from(Impossible(reason): Impossible) -> Self {
        Self::refused(reason)
    }
}

impl Plan {
    pub(crate) fn report(&self) -> LockdownReport {
        let changes = self.acts.iter().map(Act::change).collect();
        LockdownReport { changes, concerns: self.concerns.clone() }
    }
}

impl Azure {
    /// Plans a lockdown.
    pub(crate) fn plan_lock(&self, look: &Look<'_>, order: &LockdownOrder) -> Result<Plan, CloudError> {
        let target = look.target;
        if let Some(front) = &look.machine.front
            && let Some(policy) = &front.policy
        {
            return Err(CloudError::refused(format!(
                "the firewall {} in front of {target} is managed by the policy {policy}: Postern changes only classic rules, and a window could not pass it",
                front.firewall
            )));
        }
        if look.machine.groups.is_empty() {
            return Err(CloudError::refused(format!(
                "{target} has no network security group, neither on an interface nor on a subnet; attach one first"
            )));
        }
        if let Some(door) = look.machine.doors.iter().find(|door| door.groups.is_empty()) {
            return Err(CloudError::refused(format!(
                "the address {} of {target} is behind no network security group; attach one to its interface or subnet first",
                door.ip
            )));
        }
        if look.is_releasing() {
            return Err(CloudError::refused(format!(
                "a release of {target} is not done; run `postern release {target}` first"
            )));
        }
        let mut concerns = Vec::new();
        for group in look.on_the_way().filter(|group| group.flushes) {
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
        let acts = plan::lock(look, &order.ports, &self.settings.priorities, first)?;
        let after = apply(look.groups, &acts);
        let after = Look { groups: &after, ..*look };
        concerns.extend(
            after
                .still_open(&order.ports)
                .into_iter()
                .map(|open| Concern { kind: ConcernKind::Precedence, what: format!("not locked: {open}") }),
        );
        Ok(Plan { acts, concerns })
    }

    /// Carries a lockdown out, if every concern that holds it up is accepted.
    pub(crate) async fn lock(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let nothing = Memory::default();
        let (mut changes, mut moved, mut waits) = (Vec::new(), BTreeSet::new(), busy_waits());
        for _ in 0..TRIES {
            let scene = self.read(&order.target).await?;
            let look = scene.look(&order.target, &self.settings.deployment, &nothing);
            let mut plan = self.plan_lock(&look, order)?;
            if !order.consent.unmet(&plan.concerns).is_empty() {
                return Ok(plan.report());
            }
            let lost = plan::lost_notes(&look, &moved, &self.settings.priorities)?;
            if !lost.is_empty() {
                plan.acts = lost;
            }
            if plan.acts.is_empty() {
                return Ok(LockdownReport { changes, concerns: plan.concerns });
            }
            moved.extend(plan::moved_away(&plan.acts, &self.settings.deployment));
            if !self.carry_out(&plan.acts, &mut changes).await? {
                wait(&mut waits).await;
            }
        }
        Err(others_are_at_it(&order.target))
    }

    /// Plans a release.
    pub(crate) fn plan_release_of(&self, look: &Look<'_>) -> Result<Plan, CloudError> {
        let acts = plan::release(look, &self.settings.priorities)?.acts();
        Ok(Plan { acts, concerns: Vec::new() })
    }

    /// Carries a release out, or goes on with one.
    pub(crate) async fn release_now(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let nothing = Memory::default();
        let (mut changes, mut taken, mut waits) = (Vec::new(), BTreeSet::new(), busy_waits());
        for _ in 0..TRIES {
            let (scene, exists) = self.everywhere(target).await?;
            let look = scene.look(target, &self.settings.deployment, &nothing);
            let Observation { windows, partial, .. } = look.observation(self.settings.flush_connection);
            // Of a machine that is gone nothing is open.
            if exists && !(windows.is_empty() && partial.is_empty()) {
                return Err(CloudError::refused(format!("a window is open on {target}; revoke it first")));
            }
            let lost = plan::lost_notes(&look, &taken, &self.settings.priorities)?;
            let release = plan::release(&look, &self.settings.priorities)?;
            let (acts, is_last) = if lost.is_empty() { release.next() } else { (lost, false) };
            taken.extend(plan::notes_taken(&acts));
            if !self.carry_out(&acts, &mut changes).await? {
                wait(&mut waits).await;
            } else if is_last {
                self.take_from_firewalls(&look, exists).await?;
                return Ok(LockdownReport { changes, concerns: Vec::new() });
            }
        }
        Err(others_are_at_it(target))
    }

    /// Puts right what somebody changed, and what was interrupted.
    pub(crate) async fn put_right(&self, target: &TargetId) -> Result<(), CloudError> {
        let mut waits = busy_waits();
        for _ in 0..TRIES {
            let (scene, exists) = self.everywhere(target).await?;
            let remembered = self.remembered(target);
            let look = scene.look(target, &self.settings.deployment, &remembered);
            if !exists || look.is_releasing() {
                self.release_now(target).await?;
                self.unlearn(target);
                return Ok(());
            }
            if self.put_right_now(&look).await? {
                return Ok(());
            }
            wait(&mut waits).await;
        }
        Err(others_are_at_it(target))
    }

    /// Whether all of it could be done.
    async fn put_right_now(&self, look: &Look<'_>) -> Result<bool, CloudError> {
        let denies: BTreeSet<String> = look
            .on_the_way()
            .flat_map(|group| look.denies(group))
            .map(|(rule, ..)| rule.name.clone())
            .collect();
        let strays = look.strays();
        // A rule that shuts a port is written anew where it is, and not deleted before.
        let is_deny_on_the_way =
            |(group, name): &(ArmId, String)| look.machine.groups.contains(group) && denies.contains(name);
        let acts: Vec<Act> = strays
            .into_iter()
            .filter(|stray| !is_deny_on_the_way(stray))
            .map(|(group, name)| Act::Delete(group, name))
            .collect();
        let mut changes = Vec::new();
        if !self.carry_out(&acts, &mut changes).await? {
            return Ok(false);
        }
        let after = apply(look.groups, &acts);
        let acts = plan::resume(&Look { groups: &after, ..*look }, &self.settings.priorities)?;
        if !self.carry_out(&acts, &mut changes).await? {
            return Ok(false);
        }
        self.take_from_firewall(look, look.stray_nat_rules()).await?;
        Ok(true)
    }

    /// Takes away everything that firewalls hold for a target. Of a machine that is gone nobody knows which was in front.
    async fn take_from_firewalls(&self, look: &Look<'_>, exists: bool) -> Result<(), CloudError> {
        if exists {
            let ours = look.nat_rules().map(|(rule, _)| rule.name.clone()).collect();
            return self.take_from_firewall(look, ours).await;
        }
        for firewall in self.reader().all_firewalls().await? {
            let look = Look { firewall: Some(&firewall), ..*look };
            let remove = look.nat_rules().map(|(rule, _)| rule.name.clone()).collect();
            self.edit_firewall(&firewall.id, Edit { remove, ..Edit::default() }).await?;
        }
        Ok(())
    }

    async fn take_from_firewall(&self, look: &Look<'_>, names: Vec<String>) -> Result<(), CloudError> {
        match &look.machine.front {
            Some(front) => {
                self.edit_firewall(
                    &front.firewall,
                    Edit { remove: names.into_iter().collect(), ..Edit::default() },
                )
                .await
            }
            None => Ok(()),
        }
    }

    /// Makes changes, one after the other, as far as nobody else is faster; and says whether all of them were made.
    async fn carry_out(&self, acts: &[Act], done: &mut Vec<Change>) -> Result<bool, CloudError> {
        for act in acts {
            let id = act.group();
            let desk = self.groups.desk(id);
            let mut turn = desk.turn(&self.arm, id).await;
            match turn.act(act).await {
                Ok(()) => done.push(act.change()),
                Err(WriteError::Call(error)) if error.is_overtaken() => {
                    tracing::info!(%error, "somebody else was faster: looking again");
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

/// Lets those who are faster get on.
async fn wait(waits: &mut impl Iterator<Item = Duration>) {
    tokio::time::sleep(waits.next().unwrap_or(Duration::from_secs(5))).await;
}

fn others_are_at_it(target: &TargetId) -> CloudError {
    CloudError::unavailable(format!(
        "the network security groups of {target} are changed by others all the time"
    ))
}

/// The groups after changes, in thought.
pub(crate) fn apply(groups: &BTreeMap<ArmId, Group>, acts: &[Act]) -> BTreeMap<ArmId, Group> {
    let mut groups = groups.clone();
    for act in acts {
        let Some(group) = groups.get_mut(act.group()) else { continue };
        match act {
            Act::Put(_, rule) => {
                group.rules.retain(|other| !other.name.eq_ignore_ascii_case(&rule.name));
                group.rules.push(rule.read_back());
            }
            Act::Delete(_, name) => group.rules.retain(|rule| !rule.name.eq_ignore_ascii_case(name)),
            Act::Move { rule, to, .. } => {
                for moved in group.rules.iter_mut().filter(|other| other.name == *rule) {
                    moved.priority = *to;
                }
            }
        }
        group.rules.sort_by_key(|rule| (rule.is_default, rule.priority));
    }
    groups
}
