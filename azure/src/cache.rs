//! The targets as they were last read, and the rules that shut their ports then.
//!
//! A snapshot is dropped after any error, and where a sweep reads another way to the machine. The rules that shut ports are kept
//! longer: where another principal deletes all of Postern's rules in a group, only this memory says that the group was locked.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postern_core::TargetId;
use postern_provider::kit::Known;

use crate::snapshot::{LockedRules, MachineSnapshot, MachineView};

/// The targets that this process has read.
pub(crate) struct MachineCache {
    deployment: String,
    targets: Mutex<HashMap<TargetId, CachedMachine>>,
}

/// The memory of one target between two calls.
#[derive(Debug, Clone, Default)]
struct CachedMachine {
    /// The last reading; none after an error.
    snapshot: Known<Arc<MachineSnapshot>>,
    /// The rules that shut ports then.
    locked_rules: LockedRules,
}

impl CachedMachine {
    /// Records the rules that shut ports now. While a release is under way, none of them may come back.
    fn record(&mut self, view: &MachineView<'_>) {
        if view.is_releasing() {
            self.locked_rules = LockedRules::default();
        } else {
            self.locked_rules.record(view);
        }
    }
}

impl MachineCache {
    pub(crate) fn new(deployment: &str) -> Self {
        Self { deployment: deployment.to_owned(), targets: Mutex::default() }
    }

    /// The last reading of a target, if it still counts.
    pub(crate) fn snapshot(&self, target: &TargetId) -> Option<Arc<MachineSnapshot>> {
        self.lock().get(target).and_then(|cached| cached.snapshot.get().cloned())
    }

    /// Keeps a reading of a target.
    pub(crate) fn store(&self, target: &TargetId, snapshot: &Arc<MachineSnapshot>) {
        let nothing = LockedRules::default();
        let view = snapshot.view(target, &self.deployment, &nothing);
        let mut targets = self.lock();
        let cached = targets.entry(target.clone()).or_default();
        cached.snapshot.learn(Arc::clone(snapshot));
        cached.record(&view);
    }

    /// Drops the reading of a target, and keeps the rules that shut its ports.
    pub(crate) fn drop_snapshot(&self, target: &TargetId) {
        if let Some(cached) = self.lock().get_mut(target) {
            cached.snapshot.forget();
        }
    }

    /// Forgets a target, the rules that shut its ports included.
    pub(crate) fn remove(&self, target: &TargetId) {
        self.lock().remove(target);
    }

    /// The rules that shut ports at the last reading of a target.
    pub(crate) fn locked_rules(&self, target: &TargetId) -> LockedRules {
        self.lock().get(target).map(|cached| cached.locked_rules.clone()).unwrap_or_default()
    }

    /// The targets that were under lockdown at their last reading.
    pub(crate) fn locked_targets(&self) -> BTreeSet<TargetId> {
        let targets = self.lock();
        targets
            .iter()
            .filter(|(_, cached)| !cached.locked_rules.is_empty())
            .map(|(target, _)| target.clone())
            .collect()
    }

    /// Compares a target with what a sweep has read of it: a reading of another way to the machine is dropped.
    pub(crate) fn compare(&self, target: &TargetId, swept: &MachineSnapshot) {
        let mut targets = self.lock();
        let cached = targets.entry(target.clone()).or_default();
        cached.snapshot.forget_unless(|snapshot| snapshot.machine == swept.machine);
        let nothing = LockedRules::default();
        cached.record(&swept.view(target, &self.deployment, &nothing));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, CachedMachine>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
