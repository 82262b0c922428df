//! The cloud layer on Azure: the clients, and what is remembered of groups, firewalls and targets between two calls.

use std::collections::BTreeMap;
use std::sync::Arc;

use postern_core::TargetId;
use postern_provider::kit::{CallError, KeyedStates};
use postern_provider::{CloudError, Observation};

use crate::arm::Arm;
use crate::cache::MachineCache;
use crate::firewall::{FirewallQueue, NewNatRule};
use crate::groups::KnownGroups;
use crate::id::ArmId;
use crate::machine::Machine;
use crate::names;
use crate::reader::Reader;
use crate::settings::AzureSettings;
use crate::snapshot::{MachineSnapshot, MachineView};

/// The cloud layer on Azure.
pub struct Azure {
    pub(crate) settings: AzureSettings,
    pub(crate) arm: Arm,
    pub(crate) groups: KnownGroups,
    pub(crate) targets: MachineCache,
    /// The queue of the changes of each firewall.
    pub(crate) firewalls: KeyedStates<ArmId, FirewallQueue>,
    /// Allows one lockdown, release or repair at a time: those of several machines meet in one group.
    pub(crate) lockdowns: tokio::sync::Mutex<()>,
}

impl Azure {
    /// Prepares the clients. No call is made: a subscription that cannot be read shows on its targets.
    ///
    /// # Errors
    /// The endpoint is not a URL, or TLS cannot be set up.
    pub fn connect(settings: AzureSettings) -> Result<Self, String> {
        let arm = Arm::new(&settings.environment, settings.credential.clone(), &settings.rates)?;
        let targets = MachineCache::new(&settings.deployment);
        Ok(Self {
            settings,
            arm,
            groups: KnownGroups::default(),
            targets,
            firewalls: KeyedStates::default(),
            lockdowns: tokio::sync::Mutex::default(),
        })
    }

    /// The id of a target's virtual machine.
    pub(crate) fn vm(&self, target: &TargetId) -> Result<ArmId, CloudError> {
        let TargetId::Azure { subscription, group, vm } = target else {
            return Err(CloudError::refused(format!("{} is not in Azure", target.in_words())));
        };
        if !self.settings.subscriptions.contains(subscription) {
            return Err(CloudError::refused(format!(
                "the subscription {subscription} is not in the configuration; add it to azure.subscriptions"
            )));
        }
        ArmId::of_vm(subscription, group, vm).ok_or_else(|| {
            CloudError::refused(format!("{} has a name that cannot be sent", target.in_words()))
        })
    }

    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { arm: &self.arm, subscriptions: &self.settings.subscriptions }
    }

    /// Reads everything on the way to a target.
    pub(crate) async fn read(&self, target: &TargetId) -> Result<MachineSnapshot, CloudError> {
        let vm = self.vm(target)?;
        self.targets.drop_snapshot(target);
        let before = self.groups.epochs();
        let network = self.reader().machine(&vm).await.map_err(|error| not_found(error, target))?;
        self.groups.record(&network.groups, &before);
        Ok(MachineSnapshot::of(&network, &vm))
    }

    /// Returns the last snapshot of a target, and reads one if there is none.
    pub(crate) async fn snapshot(&self, target: &TargetId) -> Result<Arc<MachineSnapshot>, CloudError> {
        // Checked first: a snapshot of a target whose subscription left the configuration must not be used.
        self.vm(target)?;
        if let Some(snapshot) = self.targets.snapshot(target) {
            return Ok(snapshot);
        }
        let reading = self.targets.start_reading();
        let snapshot = Arc::new(self.read(target).await?);
        self.targets.store(target, &snapshot, reading);
        Ok(snapshot)
    }

    /// Reads the way to a target and every group of its subscription, and reports whether the machine still exists.
    pub(crate) async fn read_with_all_groups(
        &self,
        target: &TargetId,
    ) -> Result<(MachineSnapshot, bool), CloudError> {
        let (mut snapshot, exists) = match self.read(target).await {
            Ok(snapshot) => (snapshot, true),
            Err(CloudError::NotFound { .. }) => {
                let (machine, groups) = (Machine::default(), BTreeMap::new());
                (MachineSnapshot { machine, groups, firewall: None, unread: None }, false)
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

    /// Returns the rules that writes under way add to firewalls. Taken before a read: what the read does not show yet is among them.
    pub(crate) fn adding(&self) -> Vec<NewNatRule> {
        self.firewalls.map(FirewallQueue::adding).into_values().flatten().collect()
    }

    /// Returns the state that Azure holds for a machine. The windows of firewall rules that are being added are open in part: the
    /// opening may have been given up, and its write goes on.
    pub(crate) fn observation(&self, view: &MachineView<'_>, adding: &[NewNatRule]) -> Observation {
        let mut observation = view.observation(self.settings.flush_connection);
        let added = adding.iter().filter_map(|rule| view.windows_of_new(rule)).flatten();
        observation.partial.extend(added.filter(|window| !observation.windows.contains(window)));
        observation
    }

    /// The name of Postern's rule collection in firewalls.
    pub(crate) fn collection(&self) -> String {
        names::collection(&self.settings.deployment)
    }
}

/// The error of a call for the target's machine itself.
fn not_found(error: CallError, target: &TargetId) -> CloudError {
    if error.is_not_found() { CloudError::NotFound { target: target.clone() } } else { error.into() }
}
