//! The provider: the seam's calls, each led to the machine of its target.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use postern_core::plan::CloudWindow;
use postern_core::{ProtectedPort, TargetId};
use postern_provider::{
    AssessmentReport, CallerToken, CloudError, LockdownOrder, LockdownReport, Observation, Provider, Reach,
    Sighting, SweepReport, Unread,
};

use crate::arm::Arm;
use crate::caller;
use crate::error::CallError;
use crate::firewall::FirewallQueue;
use crate::groups::Groups;
use crate::id::ArmId;
use crate::inventory;
use crate::machine::Machine;
use crate::names;
use crate::network::{Firewall, Group, Network};
use crate::settings::Settings;
use crate::snapshot::{LockedRules, MachineView};

/// The cloud layer on Azure.
pub struct Azure {
    pub(crate) settings: Settings,
    pub(crate) arm: Arm,
    pub(crate) groups: Groups,
    firewalls: Mutex<HashMap<ArmId, Arc<FirewallQueue>>>,
    machines: Mutex<HashMap<TargetId, CachedTarget>>,
    /// One lockdown, release or repair at a time: those of several machines meet in one group.
    lockdowns: tokio::sync::Mutex<()>,
}

/// What is known of a target between two calls.
#[derive(Debug, Clone, Default)]
struct CachedTarget {
    /// As it was last read; none after an error.
    snapshot: Option<Arc<MachineSnapshot>>,
    /// What shut ports then.
    locked_rules: LockedRules,
}

impl CachedTarget {
    /// Takes in what shuts ports now. What is being released is not to come back.
    fn learn(&mut self, view: &MachineView<'_>) {
        if view.is_releasing() {
            self.locked_rules = LockedRules::default();
        } else {
            self.locked_rules.learn(view);
        }
    }
}

/// A machine, and what is on its way.
#[derive(Debug, Clone)]
pub(crate) struct MachineSnapshot {
    pub(crate) machine: Machine,
    pub(crate) groups: BTreeMap<ArmId, Group>,
    pub(crate) firewall: Option<Firewall>,
}

impl MachineSnapshot {
    /// A machine with every group that was read.
    pub(crate) fn of(network: &Network, vm: &ArmId) -> Self {
        Self::with(network, vm, |_| true)
    }

    /// A machine with the groups on its way, and with those in which something of ours is for it.
    pub(crate) fn among(network: &Network, vm: &ArmId, traced: &BTreeSet<ArmId>) -> Self {
        Self::with(network, vm, |id| traced.contains(id))
    }

    fn with(network: &Network, vm: &ArmId, concerns: impl Fn(&ArmId) -> bool) -> Self {
        let machine = Machine::of(network, vm);
        let firewall = machine.front.as_ref().and_then(|front| {
            network.firewalls.iter().find(|firewall| firewall.id == front.firewall).cloned()
        });
        let groups = network.groups.iter().filter(|(id, _)| machine.groups.contains(id) || concerns(id));
        let groups = groups.map(|(id, group)| (id.clone(), group.clone())).collect();
        Self { machine, groups, firewall }
    }

    pub(crate) fn view<'a>(
        &'a self,
        target: &'a TargetId,
        deployment: &'a str,
        locked_rules: &'a LockedRules,
    ) -> MachineView<'a> {
        let (machine, groups, firewall) = (&self.machine, &self.groups, self.firewall.as_ref());
        MachineView { target, deployment, machine, groups, firewall, locked_rules }
    }
}

impl Azure {
    /// Prepares the clients. No call is made: what is wrong with a subscription shows on its targets.
    ///
    /// # Errors
    /// The endpoint is not a URL, or TLS cannot be set up.
    pub fn connect(settings: Settings) -> Result<Self, String> {
        let arm = Arm::new(&settings.environment, settings.credential.clone(), &settings.rates)?;
        Ok(Self {
            settings,
            arm,
            groups: Groups::default(),
            firewalls: Mutex::default(),
            machines: Mutex::default(),
            lockdowns: tokio::sync::Mutex::default(),
        })
    }

    /// The id of a target's virtual machine.
    pub(crate) fn vm(&self, target: &TargetId) -> Result<ArmId, CloudError> {
        let TargetId::Azure { subscription, group, vm } = target else {
            return Err(CloudError::refused(format!("{target} is not in Azure")));
        };
        if !self.settings.subscriptions.contains(subscription) {
            return Err(CloudError::refused(format!(
                "the subscription {subscription} is not in the configuration; add it to azure.subscriptions"
            )));
        }
        ArmId::of_vm(subscription, group, vm)
            .ok_or_else(|| CloudError::refused(format!("{target} has a name that cannot be sent")))
    }

    /// Reads everything on the way to a target.
    pub(crate) async fn read(&self, target: &TargetId) -> Result<MachineSnapshot, CloudError> {
        let vm = self.vm(target)?;
        self.forget(target);
        let before = self.groups.epochs();
        let network = self.reader().machine(&vm).await.map_err(|error| not_found(error, target))?;
        self.groups.learn(&network.groups, &before);
        Ok(MachineSnapshot::of(&network, &vm))
    }

    /// What is on the way to a target as it was last read, read if it is not known.
    async fn snapshot(&self, target: &TargetId) -> Result<Arc<MachineSnapshot>, CloudError> {
        // Asked first: what is remembered of a target that was taken out of the configuration is nobody's.
        self.vm(target)?;
        if let Some(snapshot) = self.machines().get(target).and_then(|known| known.snapshot.clone()) {
            return Ok(snapshot);
        }
        let snapshot = Arc::new(self.read(target).await?);
        self.keep(target, &snapshot);
        Ok(snapshot)
    }

    fn keep(&self, target: &TargetId, snapshot: &Arc<MachineSnapshot>) {
        let nothing = LockedRules::default();
        let view = snapshot.view(target, &self.settings.deployment, &nothing);
        let mut machines = self.machines();
        let known = machines.entry(target.clone()).or_default();
        known.snapshot = Some(Arc::clone(snapshot));
        known.learn(&view);
    }

    fn forget(&self, target: &TargetId) {
        if let Some(known) = self.machines().get_mut(target) {
            known.snapshot = None;
        }
    }

    /// Forgets all of a target, what shut its ports included.
    pub(crate) fn forget_all(&self, target: &TargetId) {
        self.machines().remove(target);
    }

    /// What shut ports when the target was last looked at.
    pub(crate) fn locked_rules(&self, target: &TargetId) -> LockedRules {
        self.machines().get(target).map(|known| known.locked_rules.clone()).unwrap_or_default()
    }

    /// Every target that was under lockdown when it was last looked at.
    pub(crate) fn locked_targets(&self) -> BTreeSet<TargetId> {
        let machines = self.machines();
        machines
            .iter()
            .filter(|(_, known)| !known.locked_rules.is_empty())
            .map(|(target, _)| target.clone())
            .collect()
    }

    /// A sweep has seen the target: what was known of its way holds only if that agrees.
    pub(crate) fn compare(&self, target: &TargetId, seen: &MachineSnapshot) {
        let mut machines = self.machines();
        let known = machines.entry(target.clone()).or_default();
        if known.snapshot.as_ref().is_some_and(|snapshot| snapshot.machine != seen.machine) {
            known.snapshot = None;
        }
        let nothing = LockedRules::default();
        known.learn(&seen.view(target, &self.settings.deployment, &nothing));
    }

    fn machines(&self) -> std::sync::MutexGuard<'_, HashMap<TargetId, CachedTarget>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn firewall_queue(&self, id: &ArmId) -> Arc<FirewallQueue> {
        let mut firewalls = self.firewalls.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(firewalls.entry(id.clone()).or_default())
    }

    /// The name of our rule collection in firewalls.
    pub(crate) fn collection(&self) -> String {
        names::collection(&self.settings.deployment)
    }

    /// Everything of ours for a target in its subscription, whether or not the machine still exists.
    pub(crate) async fn read_with_all_groups(
        &self,
        target: &TargetId,
    ) -> Result<(MachineSnapshot, bool), CloudError> {
        let (mut snapshot, exists) = match self.read(target).await {
            Ok(snapshot) => (snapshot, true),
            Err(CloudError::NotFound { .. }) => {
                let (machine, groups) = (Machine::default(), BTreeMap::new());
                (MachineSnapshot { machine, groups, firewall: None }, false)
            }
            Err(error) => return Err(error),
        };
        let vm = self.vm(target)?;
        let all = self.reader().all_groups(vm.subscription()).await?;
        for (id, group) in all {
            snapshot.groups.entry(id).or_insert(group);
        }
        Ok((snapshot, exists))
    }
}

/// The error of a call for the target's machine itself.
fn not_found(error: CallError, target: &TargetId) -> CloudError {
    if error.is_not_found() { CloudError::NotFound { target: target.clone() } } else { error.into() }
}

#[async_trait]
impl Provider for Azure {
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError> {
        let snapshot = Arc::new(self.read(target).await?);
        self.keep(target, &snapshot);
        let locked_rules = self.locked_rules(target);
        let view = snapshot.view(target, &self.settings.deployment, &locked_rules);
        Ok(view.observation(self.settings.flush_connection))
    }

    async fn open(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<Reach, CloudError> {
        let (snapshot, nothing) = (self.snapshot(target).await?, LockedRules::default());
        let view = snapshot.view(target, &self.settings.deployment, &nothing);
        let opened = self.open_windows(&view, windows).await;
        if opened.is_err() {
            self.forget(target);
        }
        opened?;
        if snapshot.machine.front.is_some() {
            // The firewall's ports are what the write made of them.
            self.forget(target);
            let snapshot = self.snapshot(target).await?;
            let view = snapshot.view(target, &self.settings.deployment, &nothing);
            return Ok(view.reach());
        }
        Ok(view.reach())
    }

    async fn close(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<(), CloudError> {
        let (snapshot, nothing) = (self.snapshot(target).await?, LockedRules::default());
        let view = snapshot.view(target, &self.settings.deployment, &nothing);
        let closed = self.close_windows(&view, windows).await;
        if closed.is_err() || snapshot.machine.front.is_some() {
            self.forget(target);
        }
        closed
    }

    async fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        let _guard = self.lockdowns.lock().await;
        let done = self.repair_target(target).await;
        self.forget(target);
        done
    }

    fn taken_over(&self, target: &TargetId) {
        self.forget_all(target);
    }

    async fn authorize(&self, target: &TargetId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
        if !self.settings.authorize_callers {
            return Ok(());
        }
        caller::authorize(&self.arm, &self.vm(target)?, caller).await
    }

    async fn sweep(&self) -> SweepReport {
        let mut sweep = SweepReport::default();
        let mut elsewhere = Vec::new();
        for subscription in &self.settings.subscriptions {
            match inventory::sweep(self, subscription).await {
                Ok(inventory::SubscriptionSweep { sightings, of_others }) => {
                    sweep.sightings.extend(sightings);
                    elsewhere.extend(of_others);
                }
                Err(error) => sweep.unread.push(unread(subscription, error)),
            }
        }
        // What a hub's firewall holds for a machine that its own subscription shows is seen with that. Where that could not
        // be read, nothing is known of the machine.
        if sweep.unread.is_empty() {
            for target in elsewhere {
                if !sweep.sightings.iter().any(|sighting| sighting.target == target) {
                    sweep.sightings.push(Sighting { target, held: None });
                }
            }
        }
        sweep
    }

    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport {
        let mut survey = AssessmentReport::default();
        for subscription in &self.settings.subscriptions {
            match inventory::assess(self, subscription, management).await {
                Ok(assessments) => survey.assessments.extend(assessments),
                Err(error) => survey.unread.push(unread(subscription, error)),
            }
        }
        survey
    }

    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let (snapshot, nothing) = (self.read(&order.target).await?, LockedRules::default());
        let view = snapshot.view(&order.target, &self.settings.deployment, &nothing);
        Ok(self.plan_lock(&view, order)?.report())
    }

    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let _guard = self.lockdowns.lock().await;
        let done = self.lock(order).await;
        self.forget(&order.target);
        done
    }

    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let ((snapshot, _), nothing) = (self.read_with_all_groups(target).await?, LockedRules::default());
        let view = snapshot.view(target, &self.settings.deployment, &nothing);
        Ok(self.plan_release_writes(&view)?.report())
    }

    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let _guard = self.lockdowns.lock().await;
        // From here on nothing is put back that is taken away.
        self.forget_all(target);
        let done = self.release_target(target).await;
        self.forget_all(target);
        done
    }
}

fn unread(subscription: &str, error: CallError) -> Unread {
    Unread { place: format!("subscription {subscription}"), error: error.into() }
}
