//! A cloud in memory, with the faults of a real one, for tests of everything above the provider.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use postern_core::TargetId;
use postern_core::plan::CloudWindow;

use super::{CloudError, Provider};

/// A cloud in memory. Every target exists until it is terminated.
#[derive(Debug, Default)]
pub struct FakeCloud {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    windows: BTreeMap<TargetId, BTreeSet<CloudWindow>>,
    /// Rules of others on a target: no call lists or touches them.
    foreign: BTreeMap<TargetId, BTreeSet<String>>,
    terminated: BTreeSet<TargetId>,
    faults: VecDeque<Fault>,
    outage: Option<CloudError>,
    calls: u64,
}

/// What goes wrong with the next call.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The call does nothing and fails with this.
    Before(CloudError),
    /// The call takes effect, and its answer is lost.
    After,
}

impl Fault {
    /// The cloud cannot be reached.
    pub fn unavailable() -> Self {
        Self::Before(CloudError::Unavailable { reason: "the connection was refused".into() })
    }

    /// The cloud has answered too many calls.
    pub fn throttled() -> Self {
        Self::Before(CloudError::Unavailable { reason: "the rate of requests is exceeded".into() })
    }

    /// The cloud will not.
    pub fn refused(reason: &str) -> Self {
        Self::Before(CloudError::Refused { reason: reason.into() })
    }
}

impl FakeCloud {
    /// Lets the next calls go wrong, one fault each.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// Lets every call do nothing and fail with this, until the outage is over (`None`).
    pub fn outage(&self, error: Option<CloudError>) {
        self.lock().outage = error;
    }

    /// Terminates a VM: its windows go with it.
    pub fn terminate(&self, target: &TargetId) {
        let mut inner = self.lock();
        inner.windows.remove(target);
        inner.terminated.insert(target.clone());
    }

    /// Opens a window behind the broker's back.
    pub fn tamper(&self, window: CloudWindow) {
        self.lock().windows.entry(window.target.clone()).or_default().insert(window);
    }

    /// Makes a rule on a target that is not ours.
    pub fn put_foreign(&self, target: &TargetId, rule: &str) {
        self.lock().foreign.entry(target.clone()).or_default().insert(rule.to_owned());
    }

    /// The rules on a target that are not ours.
    pub fn foreign(&self, target: &TargetId) -> BTreeSet<String> {
        self.lock().foreign.get(target).cloned().unwrap_or_default()
    }

    /// What is open on a target, without a call.
    pub fn windows(&self, target: &TargetId) -> BTreeSet<CloudWindow> {
        self.lock().windows.get(target).cloned().unwrap_or_default()
    }

    /// How many calls were made.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    fn call<T>(
        &self,
        target: &TargetId,
        act: impl FnOnce(&mut BTreeSet<CloudWindow>) -> T,
    ) -> Result<T, CloudError> {
        let mut inner = self.lock();
        inner.calls += 1;
        let fault = inner.faults.pop_front();
        if let Some(Fault::Before(error)) = fault {
            return Err(error);
        }
        if let Some(error) = &inner.outage {
            return Err(error.clone());
        }
        if inner.terminated.contains(target) {
            return Err(CloudError::NotFound { target: target.clone() });
        }
        let result = act(inner.windows.entry(target.clone()).or_default());
        match fault {
            Some(Fault::After) => Err(CloudError::Unavailable { reason: "the answer was lost".into() }),
            Some(Fault::Before(_)) | None => Ok(result),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Provider for FakeCloud {
    async fn observe(&self, target: &TargetId) -> Result<BTreeSet<CloudWindow>, CloudError> {
        self.call(target, |windows| windows.clone())
    }

    async fn open(&self, window: &CloudWindow) -> Result<(), CloudError> {
        self.call(&window.target, |windows| {
            windows.insert(window.clone());
        })
    }

    async fn close(&self, window: &CloudWindow) -> Result<(), CloudError> {
        self.call(&window.target, |windows| {
            windows.remove(window);
        })
    }
}
