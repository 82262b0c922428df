//! Lockdown, release and repair of one machine: what was planned, said in words and carried out.

use std::collections::{BTreeMap, BTreeSet};

use postern_cloud::{CloudError, Concern, ConcernKind, LockdownOrder, LockdownReport};

use crate::firewall::Edit;
use crate::id::ArmId;
use crate::look::Look;
use crate::network::Group;
use crate::plan::{self, Act, Impossible};
use crate::provider::Azure;
use crate::settings::Flush;

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
    pub(crate) async fn lock(
        &self,
        look: &Look<'_>,
        order: &LockdownOrder,
    ) -> Result<LockdownReport, CloudError> {
        let plan = self.plan_lock(look, order)?;
        if order.consent.unmet(&plan.concerns).is_empty() {
            self.carry_out(&plan.acts).await?;
        }
        Ok(plan.report())
    }

    /// Plans a release.
    pub(crate) fn plan_release_of(&self, look: &Look<'_>) -> Result<Plan, CloudError> {
        let acts = plan::release(look, &self.settings.priorities)?;
        Ok(Plan { acts, concerns: Vec::new() })
    }

    /// Carries a release out. `exists` says whether the machine does: of one that is gone nothing is open.
    pub(crate) async fn release_now(
        &self,
        look: &Look<'_>,
        exists: bool,
    ) -> Result<LockdownReport, CloudError> {
        let observed = look.observation(self.settings.flush_connection);
        if exists && !(observed.windows.is_empty() && observed.partial.is_empty()) {
            return Err(CloudError::refused(format!("a window is open on {}; revoke it first", look.target)));
        }
        let plan = self.plan_release_of(look)?;
        self.carry_out(&plan.acts).await?;
        self.take_from_firewall(look, look.nat_rules().map(|(rule, _)| rule.name.clone()).collect()).await?;
        Ok(plan.report())
    }

    /// Puts right what somebody changed, and what was interrupted.
    pub(crate) async fn put_right(&self, look: &Look<'_>) -> Result<(), CloudError> {
        if look.is_releasing() {
            let plan = self.plan_release_of(look)?;
            return self.carry_out(&plan.acts).await;
        }
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
        self.carry_out(&acts).await?;
        let after = apply(look.groups, &acts);
        let acts = plan::resume(&Look { groups: &after, ..*look }, &self.settings.priorities)?;
        self.carry_out(&acts).await?;
        self.take_from_firewall(look, look.stray_nat_rules()).await
    }

    async fn take_from_firewall(&self, look: &Look<'_>, names: Vec<String>) -> Result<(), CloudError> {
        match &look.machine.front {
            Some(front) => {
                self.edit_firewall(front, Edit { remove: names.into_iter().collect(), ..Edit::default() })
                    .await
            }
            None => Ok(()),
        }
    }

    pub(crate) async fn carry_out(&self, acts: &[Act]) -> Result<(), CloudError> {
        for act in acts {
            let id = act.group();
            let desk = self.groups.desk(id);
            let mut turn = desk.turn(&self.arm, id).await;
            turn.act(act).await?;
        }
        Ok(())
    }
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
