//! The targets as they were last read, and the rules that shut their ports then.
//!
//! A snapshot is dropped after any error, and where a sweep reads another way to the machine. The rules that shut ports are kept
//! longer: where another principal deletes all of Postern's rules in a group, only this memory says that the group was locked.
//!
//! A reading that began before a lockdown, release or repair of the target ended does not count: it may show the rules as they were
//! before. Without that, a sweep that read slowly would bring the memory of a released target back, and the next one would write
//! its rules again.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postern_core::TargetId;
use postern_provider::kit::Known;

use crate::snapshot::{LockedRules, MachineSnapshot, MachineView};

/// The number of targets above which those that hold nothing are forgotten.
const MAX_TARGETS: usize = 32_768;
/// The number of changes for which a target that holds nothing is kept: more than there are during one reading.
const READINGS_AT_ONCE: u64 = 4096;

/// The targets that this process has read.
pub(crate) struct MachineCache {
    deployment: String,
    targets: Mutex<HashMap<TargetId, CachedMachine>>,
    /// The number of changes of targets so far.
    changes: AtomicU64,
}

/// The moment at which a reading began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadingStart(u64);

/// The memory of one target between two calls.
#[derive(Debug, Clone, Default)]
struct CachedMachine {
    /// The last reading; none after an error.
    snapshot: Known<Arc<MachineSnapshot>>,
    /// The rules that shut ports then.
    locked_rules: LockedRules,
    /// The number of the last lockdown, release or repair of the target.
    changed: u64,
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
        Self { deployment: deployment.to_owned(), targets: Mutex::default(), changes: AtomicU64::new(0) }
    }

    /// Marks the beginning of a reading.
    pub(crate) fn start_reading(&self) -> ReadingStart {
        ReadingStart(self.changes.load(Ordering::SeqCst))
    }

    /// Reports whether a target was changed after a reading began.
    pub(crate) fn is_older(&self, reading: ReadingStart, target: &TargetId) -> bool {
        self.lock().get(target).is_some_and(|cached| cached.changed > reading.0)
    }

    /// Records that a lockdown, release or repair of a target begins or ends.
    pub(crate) fn changed(&self, target: &TargetId) {
        let mut targets = self.lock();
        let number = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        if targets.len() >= MAX_TARGETS {
            let is_recent = |cached: &CachedMachine| cached.changed + READINGS_AT_ONCE > number;
            targets.retain(|_, cached| !cached.locked_rules.is_empty() || is_recent(cached));
        }
        let cached = targets.entry(target.clone()).or_default();
        cached.changed = number;
        cached.snapshot.forget();
    }

    /// The last reading of a target, if it still counts.
    pub(crate) fn snapshot(&self, target: &TargetId) -> Option<Arc<MachineSnapshot>> {
        self.lock().get(target).and_then(|cached| cached.snapshot.get().cloned())
    }

    /// Keeps a reading of a target, unless the target was changed since it began.
    pub(crate) fn store(&self, target: &TargetId, snapshot: &Arc<MachineSnapshot>, reading: ReadingStart) {
        let nothing = LockedRules::default();
        let view = snapshot.view(target, &self.deployment, &nothing);
        let mut targets = self.lock();
        let cached = targets.entry(target.clone()).or_default();
        if cached.changed > reading.0 {
            return;
        }
        cached.snapshot.learn(Arc::clone(snapshot));
        cached.record(&view);
    }

    /// Drops the reading of a target, and keeps the rules that shut its ports.
    pub(crate) fn drop_snapshot(&self, target: &TargetId) {
        if let Some(cached) = self.lock().get_mut(target) {
            cached.snapshot.forget();
        }
    }

    /// Forgets a target, the rules that shut its ports included. What was read until now does not count any more.
    pub(crate) fn remove(&self, target: &TargetId) {
        self.changed(target);
        if let Some(cached) = self.lock().get_mut(target) {
            cached.locked_rules = LockedRules::default();
        }
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

    /// Compares a target with what a sweep has read of it: a reading of another way to the machine is dropped. Returns whether
    /// the sweep's reading counts: it does not if the target was changed since it began.
    pub(crate) fn compare(&self, target: &TargetId, swept: &MachineSnapshot, reading: ReadingStart) -> bool {
        let mut targets = self.lock();
        let cached = targets.entry(target.clone()).or_default();
        if cached.changed > reading.0 {
            return false;
        }
        cached.snapshot.forget_unless(|snapshot| snapshot.machine == swept.machine);
        let nothing = LockedRules::default();
        cached.record(&swept.view(target, &self.deployment, &nothing));
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, CachedMachine>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
