//! The provider: the seam's calls, each led to the machine of its target.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use postern_core::plan::CloudWindow;
use postern_core::{ProtectedPort, TargetId};
use postern_provider::{
    CallerToken, CloudError, LockdownOrder, LockdownReport, Observation, Provider, Reach, Sighting, Survey,
    Sweep, Unread,
};

use crate::arm::Arm;
use crate::caller;
use crate::error::CallError;
use crate::firewall::FirewallDesk;
use crate::fleet;
use crate::groups::Groups;
use crate::id::ArmId;
use crate::look::{Look, Memory};
use crate::machine::Machine;
use crate::names;
use crate::network::{Firewall, Group, Network};
use crate::settings::Settings;

/// The cloud layer on Azure.
pub struct Azure {
    pub(crate) settings: Settings,
    pub(crate) arm: Arm,
    pub(crate) groups: Groups,
    firewalls: Mutex<HashMap<ArmId, Arc<FirewallDesk>>>,
    machines: Mutex<HashMap<TargetId, Known>>,
    /// One lockdown, release or repair at a time: those of several machines meet in one group.
    lockdowns: tokio::sync::Mutex<()>,
}

/// What is known of a target between two calls.
#[derive(Debug, Clone, Default)]
struct Known {
    /// As it was last read; none after an error.
    scene: Option<Arc<Scene>>,
    /// What shut ports then.
    locked: Memory,
}

impl Known {
    /// Takes in what shuts ports now. What is being released is not to come back.
    fn learn(&mut self, look: &Look<'_>) {
        if look.is_releasing() {
            self.locked = Memory::default();
        } else {
            self.locked.learn(look);
        }
    }
}

/// A machine, and what is on its way.
#[derive(Debug, Clone)]
pub(crate) struct Scene {
    pub(crate) machine: Machine,
    pub(crate) groups: BTreeMap<ArmId, Group>,
    pub(crate) firewall: Option<Firewall>,
}

impl Scene {
    /// A machine with every group that was read.
    pub(crate) fn of(network: &Network, vm: &ArmId) -> Self {
        Self::with(network, vm, |_| true)
    }

    /// A machine with the groups on its way, and with those in which something of ours is for it.
    pub(crate) fn among(network: &Network, vm: &ArmId, ours: &BTreeSet<ArmId>) -> Self {
        Self::with(network, vm, |id| ours.contains(id))
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

    pub(crate) fn look<'a>(
        &'a self,
        target: &'a TargetId,
        deployment: &'a str,
        remembered: &'a Memory,
    ) -> Look<'a> {
        let (machine, groups, firewall) = (&self.machine, &self.groups, self.firewall.as_ref());
        Look { target, deployment, machine, groups, firewall, remembered }
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
    pub(crate) async fn read(&self, target: &TargetId) -> Result<Scene, CloudError> {
        let vm = self.vm(target)?;
        self.forget(target);
        let before = self.groups.moments();
        let network = self.reader().machine(&vm).await.map_err(|error| not_found(error, target))?;
        self.groups.learn(&network.groups, &before);
        Ok(Scene::of(&network, &vm))
    }

    /// What is on the way to a target as it was last read, read if it is not known.
    async fn scene(&self, target: &TargetId) -> Result<Arc<Scene>, CloudError> {
        // Asked first: what is remembered of a target that was taken out of the configuration is nobody's.
        self.vm(target)?;
        if let Some(scene) = self.machines().get(target).and_then(|known| known.scene.clone()) {
            return Ok(scene);
        }
        let scene = Arc::new(self.read(target).await?);
        self.keep(target, &scene);
        Ok(scene)
    }

    fn keep(&self, target: &TargetId, scene: &Arc<Scene>) {
        let nothing = Memory::default();
        let look = scene.look(target, &self.settings.deployment, &nothing);
        let mut machines = self.machines();
        let known = machines.entry(target.clone()).or_default();
        known.scene = Some(Arc::clone(scene));
        known.learn(&look);
    }

    fn forget(&self, target: &TargetId) {
        if let Some(known) = self.machines().get_mut(target) {
            known.scene = None;
        }
    }

    /// Forgets all of a target, what shut its ports included.
    pub(crate) fn unlearn(&self, target: &TargetId) {
        self.machines().remove(target);
    }

    /// What shut ports when the target was last looked at.
    pub(crate) fn remembered(&self, target: &TargetId) -> Memory {
        self.machines().get(target).map(|known| known.locked.clone()).unwrap_or_default()
    }

    /// Every target that was under lockdown when it was last looked at.
    pub(crate) fn remembered_targets(&self) -> BTreeSet<TargetId> {
        let machines = self.machines();
        machines
            .iter()
            .filter(|(_, known)| !known.locked.is_empty())
            .map(|(target, _)| target.clone())
            .collect()
    }

    /// A sweep has seen the target: what was known of its way holds only if that agrees.
    pub(crate) fn doubt(&self, target: &TargetId, seen: &Scene) {
        let mut machines = self.machines();
        let known = machines.entry(target.clone()).or_default();
        if known.scene.as_ref().is_some_and(|scene| scene.machine != seen.machine) {
            known.scene = None;
        }
        let nothing = Memory::default();
        known.learn(&seen.look(target, &self.settings.deployment, &nothing));
    }

    fn machines(&self) -> std::sync::MutexGuard<'_, HashMap<TargetId, Known>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn firewall_desk(&self, id: &ArmId) -> Arc<FirewallDesk> {
        let mut firewalls = self.firewalls.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(firewalls.entry(id.clone()).or_default())
    }

    /// The name of our rule collection in firewalls.
    pub(crate) fn collection(&self) -> String {
        names::collection(&self.settings.deployment)
    }

    /// Everything of ours for a target in its subscription, whether or not the machine still exists.
    pub(crate) async fn everywhere(&self, target: &TargetId) -> Result<(Scene, bool), CloudError> {
        let (mut scene, exists) = match self.read(target).await {
            Ok(scene) => (scene, true),
            Err(CloudError::NotFound { .. }) => {
                let (machine, groups) = (Machine::default(), BTreeMap::new());
                (Scene { machine, groups, firewall: None }, false)
            }
            Err(error) => return Err(error),
        };
        let vm = self.vm(target)?;
        let all = self.reader().all_groups(vm.subscription()).await?;
        for (id, group) in all {
            scene.groups.entry(id).or_insert(group);
        }
        Ok((scene, exists))
    }
}

/// The error of a call for the target's machine itself.
fn not_found(error: CallError, target: &TargetId) -> CloudError {
    if error.is_not_found() { CloudError::NotFound { target: target.clone() } } else { error.into() }
}

#[async_trait]
impl Provider for Azure {
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError> {
        let scene = Arc::new(self.read(target).await?);
        self.keep(target, &scene);
        let remembered = self.remembered(target);
        let look = scene.look(target, &self.settings.deployment, &remembered);
        Ok(look.observation(self.settings.flush_connection))
    }

    async fn open(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<Reach, CloudError> {
        let (scene, nothing) = (self.scene(target).await?, Memory::default());
        let look = scene.look(target, &self.settings.deployment, &nothing);
        let opened = self.open_windows(&look, windows).await;
        if opened.is_err() {
            self.forget(target);
        }
        opened?;
        if scene.machine.front.is_some() {
            // The firewall's ports are what the write made of them.
            self.forget(target);
            let scene = self.scene(target).await?;
            let look = scene.look(target, &self.settings.deployment, &nothing);
            return Ok(look.reach());
        }
        Ok(look.reach())
    }

    async fn close(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<(), CloudError> {
        let (scene, nothing) = (self.scene(target).await?, Memory::default());
        let look = scene.look(target, &self.settings.deployment, &nothing);
        let closed = self.close_windows(&look, windows).await;
        if closed.is_err() || scene.machine.front.is_some() {
            self.forget(target);
        }
        closed
    }

    async fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        let _turn = self.lockdowns.lock().await;
        let done = self.put_right(target).await;
        self.forget(target);
        done
    }

    fn taken_over(&self, target: &TargetId) {
        self.unlearn(target);
    }

    async fn authorize(&self, target: &TargetId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
        if !self.settings.authorize_callers {
            return Ok(());
        }
        caller::authorize(&self.arm, &self.vm(target)?, caller).await
    }

    async fn sweep(&self) -> Sweep {
        let mut sweep = Sweep::default();
        let mut elsewhere = Vec::new();
        for subscription in &self.settings.subscriptions {
            match fleet::sweep(self, subscription).await {
                Ok(fleet::Seen { sightings, of_others }) => {
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

    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> Survey {
        let mut survey = Survey::default();
        for subscription in &self.settings.subscriptions {
            match fleet::assess(self, subscription, management).await {
                Ok(assessments) => survey.assessments.extend(assessments),
                Err(error) => survey.unread.push(unread(subscription, error)),
            }
        }
        survey
    }

    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let (scene, nothing) = (self.read(&order.target).await?, Memory::default());
        let look = scene.look(&order.target, &self.settings.deployment, &nothing);
        Ok(self.plan_lock(&look, order)?.report())
    }

    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let _turn = self.lockdowns.lock().await;
        let done = self.lock(order).await;
        self.forget(&order.target);
        done
    }

    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let ((scene, _), nothing) = (self.everywhere(target).await?, Memory::default());
        let look = scene.look(target, &self.settings.deployment, &nothing);
        Ok(self.plan_release_of(&look)?.report())
    }

    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let _turn = self.lockdowns.lock().await;
        // From here on nothing is put back that is taken away.
        self.unlearn(target);
        let done = self.release_now(target).await;
        self.unlearn(target);
        done
    }
}

fn unread(subscription: &str, error: CallError) -> Unread {
    Unread { place: format!("subscription {subscription}"), error: error.into() }
}
