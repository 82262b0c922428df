//! A cloud in memory, with the faults of a real one, for tests of everything above the provider.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use postern_core::plan::LayerWindow;
use postern_core::{ProtectedPort, TargetId};

use crate::{
    Action, Assessment, AssessmentReport, CallerToken, CloudChange, CloudError, Concern, ConcernKind, Drift,
    Health, Hidden, LockdownOrder, LockdownReport, Observation, Provider, Reach, Sighting, Stray,
    SweepReport, Unread,
};

/// A cloud in memory. Every target exists, under lockdown, until it is released or terminated.
#[derive(Debug, Default)]
pub struct FakeCloud {
    inner: Mutex<FakeState>,
}

#[derive(Debug, Default)]
struct FakeState {
    windows: BTreeMap<TargetId, BTreeSet<LayerWindow>>,
    /// The windows of which a part is open.
    partial: BTreeMap<TargetId, BTreeSet<LayerWindow>>,
    reach: BTreeMap<TargetId, Reach>,
    /// The customer's rules on a target: no call lists or touches them.
    foreign: BTreeMap<TargetId, BTreeSet<String>>,
    /// Targets that are not under lockdown.
    released: BTreeSet<TargetId>,
    drift: BTreeMap<TargetId, BTreeSet<Drift>>,
    strays: BTreeMap<TargetId, BTreeSet<Stray>>,
    shut: BTreeMap<TargetId, BTreeSet<ProtectedPort>>,
    concerns: Vec<Concern>,
    terminated: BTreeSet<TargetId>,
    faults: VecDeque<Fault>,
    outage: Option<CloudError>,
    calls: u64,
    silent: bool,
    hangs_openings: bool,
    hangs_repairs: bool,
    /// The error with which every repair fails.
    no_repair: Option<CloudError>,
    /// Targets that no sweep finds.
    hidden: BTreeSet<TargetId>,
    /// Targets that a sweep finds and cannot judge.
    unjudged: BTreeSet<TargetId>,
    /// The only token whose bearer may ask for access; every caller may, for none.
    allowed: Option<CallerToken>,
}

/// A fault of the next call.
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
        Self::Before(CloudError::unavailable("the connection was refused"))
    }

    /// The cloud has answered too many calls.
    pub fn throttled() -> Self {
        Self::Before(CloudError::unavailable("the rate of requests is exceeded"))
    }

    /// The cloud refuses.
    pub fn refused(reason: &str) -> Self {
        Self::Before(CloudError::refused(reason))
    }
}

impl FakeCloud {
    /// Makes the next calls fail, one fault each.
    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// Makes every call do nothing and fail with this, until the outage is over (`None`).
    pub fn outage(&self, error: Option<CloudError>) {
        self.lock().outage = error;
    }

    /// Lets only the bearer of this token ask for access.
    pub fn allow_only(&self, token: CallerToken) {
        self.lock().allowed = Some(token);
    }

    /// Leaves every call without an answer.
    pub fn fall_silent(&self) {
        self.lock().silent = true;
    }

    /// Has observations say that the lockdown of a target shuts these ports.
    pub fn shut(&self, target: &TargetId, ports: BTreeSet<ProtectedPort>) {
        self.lock().shut.insert(target.clone(), ports);
    }

    /// Leaves every opening without an answer, or ends that.
    pub fn hang_openings(&self, hang: bool) {
        self.lock().hangs_openings = hang;
    }

    /// Leaves every repair without an answer, or ends that.
    pub fn hang_repairs(&self, hang: bool) {
        self.lock().hangs_repairs = hang;
    }

    /// Terminates a VM: its windows go with it.
    pub fn terminate(&self, target: &TargetId) {
        let mut inner = self.lock();
        inner.windows.remove(target);
        inner.partial.remove(target);
        inner.terminated.insert(target.clone());
    }

    /// Opens a window behind the broker's back.
    pub fn tamper(&self, window: LayerWindow) {
        self.lock().windows.entry(window.target.clone()).or_default().insert(window);
    }

    /// Removes a part of a window, behind the broker's back.
    pub fn break_off(&self, window: &LayerWindow) {
        let mut inner = self.lock();
        inner.windows.entry(window.target.clone()).or_default().remove(window);
        inner.partial.entry(window.target.clone()).or_default().insert(window.clone());
    }

    /// Sets how the target is reached.
    pub fn reach(&self, target: &TargetId, reach: Reach) {
        self.lock().reach.insert(target.clone(), reach);
    }

    /// Closes every window of a target, behind the broker's back.
    pub fn wipe(&self, target: &TargetId) {
        self.lock().windows.remove(target);
    }

    /// Adds drift to the target.
    pub fn drift(&self, target: &TargetId, what: &str, repairable: bool) {
        let drift = Drift { what: what.to_owned(), repairable };
        self.lock().drift.entry(target.clone()).or_default().insert(drift);
    }

    /// Removes all drift from the target.
    pub fn settle(&self, target: &TargetId) {
        self.lock().drift.remove(target);
    }

    /// Adds a stray rule among the target's own rules.
    pub fn stray(&self, target: &TargetId, rule: &str, what: &str) {
        let stray = Stray { rule: rule.to_owned(), what: what.to_owned() };
        self.lock().strays.entry(target.clone()).or_default().insert(stray);
    }

    /// Makes every repair fail with this; none makes repairs succeed again.
    pub fn refuse_repairs(&self, error: impl Into<Option<CloudError>>) {
        self.lock().no_repair = error.into();
    }

    /// Hides the target from sweeps, as if another principal had removed the tags of Postern's resources
    /// there.
    pub fn hide(&self, target: &TargetId) {
        self.lock().hidden.insert(target.clone());
    }

    /// Has sweeps find the target, and say that they cannot judge its windows.
    pub fn obscure(&self, target: &TargetId) {
        self.lock().unjudged.insert(target.clone());
    }

    /// Makes every lockdown raise these concerns.
    pub fn concern(&self, concerns: Vec<Concern>) {
        self.lock().concerns = concerns;
    }

    /// Ends a target's lockdown, without a call.
    pub fn unlock(&self, target: &TargetId) {
        self.lock().released.insert(target.clone());
    }

    /// Adds a customer's rule on a target.
    pub fn put_foreign(&self, target: &TargetId, rule: &str) {
        self.lock().foreign.entry(target.clone()).or_default().insert(rule.to_owned());
    }

    /// Returns the customer's rules on a target.
    pub fn foreign(&self, target: &TargetId) -> BTreeSet<String> {
        self.lock().foreign.get(target).cloned().unwrap_or_default()
    }

    /// Returns the windows that are open whole on a target, without a call.
    pub fn windows(&self, target: &TargetId) -> BTreeSet<LayerWindow> {
        self.lock().windows.get(target).cloned().unwrap_or_default()
    }

    /// Returns the number of calls so far.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    async fn call<T>(
        &self,
        target: &TargetId,
        act: impl FnOnce(&mut FakeState) -> Result<T, CloudError> + Send,
    ) -> Result<T, CloudError> {
        self.unless_silent().await;
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
        let result = act(&mut inner);
        match fault {
            Some(Fault::After) => Err(CloudError::unavailable("the answer was lost")),
            Some(Fault::Before(_)) | None => result,
        }
    }

    async fn unless_silent(&self) {
        let silent = self.lock().silent;
        if silent {
            std::future::pending::<()>().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, FakeState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeState {
    fn observation(&self, target: &TargetId) -> Observation {
        Observation {
            windows: self.windows.get(target).cloned().unwrap_or_default(),
            partial: self.partial.get(target).cloned().unwrap_or_default(),
            reach: self.reach.get(target).cloned().unwrap_or_default(),
            drift: self.drift.get(target).into_iter().flatten().cloned().collect(),
            strays: self.strays.get(target).cloned().unwrap_or_default(),
            shut: self.shut.get(target).cloned(),
        }
    }

    fn targets(&self) -> BTreeSet<TargetId> {
        let open = self.windows.keys().chain(self.partial.keys());
        open.chain(self.drift.keys()).chain(self.strays.keys()).cloned().collect()
    }

    /// Returns the changes and the concerns of a lockdown of this target.
    fn locking(&self, target: &TargetId) -> LockdownReport {
        if !self.released.contains(target) {
            return LockdownReport::default();
        }
        let changes = vec![change(Action::Create, target)];
        LockdownReport { changes, concerns: self.concerns.clone() }
    }

    fn releasing(&self, target: &TargetId) -> LockdownReport {
        if self.released.contains(target) {
            return LockdownReport::default();
        }
        LockdownReport { changes: vec![change(Action::Delete, target)], concerns: Vec::new() }
    }
}

fn change(action: Action, target: &TargetId) -> CloudChange {
    CloudChange { action, resource: target.to_string(), detail: "the lockdown".into() }
}

#[async_trait]
impl Provider for FakeCloud {
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError> {
        self.call(target, |inner| Ok(inner.observation(target))).await
    }

    async fn open(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<Reach, CloudError> {
        let hangs = self.lock().hangs_openings;
        if hangs {
            std::future::pending::<()>().await;
        }
        self.call(target, |inner| {
            if inner.released.contains(target) {
                return Err(CloudError::not_locked(target));
            }
            let begun = inner.partial.entry(target.clone()).or_default();
            begun.retain(|window| !windows.contains(window));
            inner.windows.entry(target.clone()).or_default().extend(windows.iter().cloned());
            Ok(inner.reach.get(target).cloned().unwrap_or_default())
        })
        .await
    }

    async fn close(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<(), CloudError> {
        self.call(target, |inner| {
            for held in [&mut inner.windows, &mut inner.partial] {
                held.entry(target.clone()).or_default().retain(|window| !windows.contains(window));
            }
            Ok(())
        })
        .await
    }

    async fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        let hangs = self.lock().hangs_repairs;
        if hangs {
            std::future::pending::<()>().await;
        }
        self.call(target, |inner| {
            if let Some(error) = &inner.no_repair {
                return Err(error.clone());
            }
            inner.drift.entry(target.clone()).or_default().retain(|drift| !drift.repairable);
            inner.strays.remove(target);
            Ok(())
        })
        .await
    }

    async fn authorize(&self, target: &TargetId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
        self.call(target, |inner| match &inner.allowed {
            Some(allowed) if caller != Some(allowed) => Err(CloudError::refused("the caller may not")),
            Some(_) | None => Ok(()),
        })
        .await
    }

    async fn sweep(&self) -> SweepReport {
        self.unless_silent().await;
        let mut inner = self.lock();
        inner.calls += 1;
        if let Some(error) = inner.outage.clone() {
            return SweepReport {
                unread: vec![Unread { place: "everywhere".into(), error, hides: Hidden::Everything }],
                ..SweepReport::default()
            };
        }
        let sighting = |target: TargetId| Sighting { held: Some(inner.observation(&target)), target };
        let is_shown = |target: &TargetId| !inner.hidden.contains(target) && !inner.unjudged.contains(target);
        let found = inner.targets().into_iter().filter(is_shown);
        let unread = |target: &TargetId| Unread {
            place: format!("the rules of {target}"),
            error: CloudError::unavailable("a rule cannot be read"),
            hides: Hidden::Target(target.clone()),
        };
        SweepReport {
            unread: inner.unjudged.iter().map(unread).collect(),
            sightings: found.map(sighting).collect(),
            ..SweepReport::default()
        }
    }

    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport {
        self.unless_silent().await;
        let inner = self.lock();
        let ports: Vec<_> = management.iter().map(ToString::to_string).collect();
        let judge = |target: &TargetId| {
            let locked = !inner.released.contains(target);
            let health = if locked {
                Health::Healthy { reason: "it is under lockdown".into() }
            } else {
                Health::Unhealthy { reasons: vec![format!("everyone may reach {}", ports.join(", "))] }
            };
            let windows = inner.windows.get(target).cloned().unwrap_or_default();
            Assessment { target: target.clone(), name: String::new(), locked, windows, health }
        };
        let targets: BTreeSet<TargetId> =
            inner.targets().into_iter().chain(inner.released.iter().cloned()).collect();
        AssessmentReport { assessments: targets.iter().map(judge).collect(), unread: Vec::new() }
    }

    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        self.call(&order.target, |inner| Ok(inner.locking(&order.target))).await
    }

    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        self.call(&order.target, |inner| {
            let report = inner.locking(&order.target);
            if order.consent.unmet(&report.concerns).is_empty() {
                inner.released.remove(&order.target);
                inner.windows.entry(order.target.clone()).or_default();
            }
            Ok(report)
        })
        .await
    }

    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        self.call(target, |inner| Ok(inner.releasing(target))).await
    }

    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        self.call(target, |inner| {
            if inner.windows.get(target).is_some_and(|windows| !windows.is_empty()) {
                return Err(CloudError::refused(format!("a window is open on {target}; revoke it first")));
            }
            let report = inner.releasing(target);
            inner.windows.remove(target);
            inner.released.insert(target.clone());
            Ok(report)
        })
        .await
    }
}

impl FakeCloud {
    /// Returns a concern of a kind, for [`Self::concern`].
    pub fn a_concern(kind: ConcernKind) -> Concern {
        Concern { kind, what: format!("a test of {}", kind.word()) }
    }
}
