//! Lockdown and release of a target, apart from the driver's own rounds on it, and the assessment of every cloud.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use postern_core::{ProtectedPort, TargetId};
use postern_provider::{AssessmentReport, CloudError, LockdownOrder, LockdownReport, Provider};
use postern_store::StoreError;
use postern_store::coordination::Claim;

use super::CloudLayer;
use super::driver::within;
use crate::cluster::leases::HeldLease;

/// The lock of the work that one broker does at a time.
const JOB: &str = "lockdown";
/// The pause before the broker asks again for a lock or a lease that another broker has.
const RETRY: Duration = Duration::from_millis(250);
/// The time limit of a lockdown or a release, which makes a few calls for every rule and every group of the target.
const LOCKDOWN_TIMEOUT: Duration = Duration::from_secs(300);

impl CloudLayer {
    /// Assesses every VM of every cloud that this broker drives.
    pub async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport {
        let mut report = AssessmentReport::default();
        for provider in self.providers.values() {
            let part = provider.assess(management).await;
            report.assessments.extend(part.assessments);
            report.unread.extend(part.unread);
        }
        report
    }

    /// Reports what lockdowns would change that are carried out one after the other. Returns a report for each order.
    pub async fn plan_lockdowns(&self, orders: &[LockdownOrder]) -> Vec<Result<LockdownReport, CloudError>> {
        let plan = |provider: Arc<dyn Provider>, orders: Vec<LockdownOrder>| {
            async move { provider.plan_lockdowns(&orders).await }.boxed()
        };
        self.plan_each(orders, |order| &order.target, plan).await
    }

    /// Reports what releases would change that are carried out one after the other. Returns a report for each target.
    pub async fn plan_releases(&self, targets: &[TargetId]) -> Vec<Result<LockdownReport, CloudError>> {
        let plan = |provider: Arc<dyn Provider>, targets: Vec<TargetId>| {
            async move { provider.plan_releases(&targets).await }.boxed()
        };
        self.plan_each(targets, |target| target, plan).await
    }

    /// Has each cloud plan its own part of the work, in order.
    async fn plan_each<W: Clone>(
        &self,
        work: &[W],
        target: impl Fn(&W) -> &TargetId,
        plan: impl Fn(Arc<dyn Provider>, Vec<W>) -> BoxFuture<'static, Vec<Result<LockdownReport, CloudError>>>,
    ) -> Vec<Result<LockdownReport, CloudError>> {
        let refused = |one: &W| Err(no_cloud(target(one)));
        let mut reports: Vec<_> = work.iter().map(refused).collect();
        for (kind, provider) in &self.providers {
            let is_here = |at: &usize| work.get(*at).is_some_and(|one| target(one).cloud() == Some(*kind));
            let here: Vec<usize> = (0..work.len()).filter(is_here).collect();
            let part: Vec<W> = here.iter().filter_map(|at| work.get(*at).cloned()).collect();
            if part.is_empty() {
                continue;
            }
            let limit = LOCKDOWN_TIMEOUT * u32::try_from(part.len()).unwrap_or(u32::MAX);
            let planned = within(limit, plan(Arc::clone(provider), part).map(Ok)).await;
            let planned = planned.unwrap_or_else(|error| here.iter().map(|_| Err(error.clone())).collect());
            for (at, report) in here.into_iter().zip(planned) {
                if let Some(place) = reports.get_mut(at) {
                    *place = report;
                }
            }
        }
        reports
    }

    /// Puts a target under lockdown.
    ///
    /// # Errors
    /// See [`Provider::lockdown`].
    pub async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let provider = self.provider_of(&order.target)?;
        self.exclusively(&order.target, within(LOCKDOWN_TIMEOUT, provider.lockdown(order))).await
    }

    /// Releases a target.
    ///
    /// # Errors
    /// See [`Provider::release`].
    pub async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let provider = self.provider_of(target)?;
        self.exclusively(target, within(LOCKDOWN_TIMEOUT, provider.release(target))).await
    }

    /// Runs work on a target while no round and no other broker works on it, and no other broker runs a lockdown or a release:
    /// targets share rules.
    async fn exclusively<T>(
        &self,
        target: &TargetId,
        work: impl Future<Output = Result<T, CloudError>>,
    ) -> Result<T, CloudError> {
        within(LOCKDOWN_TIMEOUT, self.wait_for_lock()).await?;
        let was_held = self.leases.holds(target);
        let held = match within(LOCKDOWN_TIMEOUT, self.wait_for_lease(target)).await {
            Ok(held) => held,
            Err(error) => {
                self.leases.unlock(JOB).await.ok();
                return Err(error);
            }
        };
        let outcome = {
            let mut access = self.exclusive_access(target).await;
            let outcome = work.await;
            access.is_refused =
                matches!(outcome, Err(CloudError::Refused { .. } | CloudError::NotFound { .. }));
            outcome
        };
        // If the store fails now, lock and lease end with this broker's membership: nothing stays held.
        let was_anothers = !was_held && held.inherits;
        let (given_back, ended) =
            tokio::join!(self.leases.end_exclusive(&held, was_anothers), self.leases.unlock(JOB));
        if let Err(error) = given_back.and(ended) {
            tracing::warn!(%target, error = &error as &dyn std::error::Error, "a lockdown's lock or lease could not be given back; it ends with this broker's membership");
        }
        self.wakeups.wake(target);
        outcome
    }

    async fn wait_for_lock(&self) -> Result<(), CloudError> {
        while !self.leases.try_lock(JOB).await.map_err(|error| undecided(&error))? {
            tokio::time::sleep(RETRY).await;
        }
        Ok(())
    }

    async fn wait_for_lease(&self, target: &TargetId) -> Result<HeldLease, CloudError> {
        loop {
            let held = self.leases.hold(target, Claim::Exclusive).await.map_err(|error| undecided(&error))?;
            if let Some(held) = held {
                return Ok(held);
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn provider_of(&self, target: &TargetId) -> Result<Arc<dyn Provider>, CloudError> {
        let provider = self.provider(target).cloned();
        provider.ok_or_else(|| no_cloud(target))
    }

    /// Waits until no round works on the target, and keeps every round away from it.
    async fn exclusive_access(&self, target: &TargetId) -> ExclusiveAccess<'_> {
        loop {
            let idle = self.idle.notified();
            if let Some(is_new) = self.begin_exclusive(target) {
                return ExclusiveAccess { layer: self, target: target.clone(), is_new, is_refused: false };
            }
            idle.await;
        }
    }
}

fn no_cloud(target: &TargetId) -> CloudError {
    CloudError::refused(format!("this broker drives no cloud for {}", target.in_words()))
}

/// The error for a store that cannot say which broker may work on the target.
fn undecided(error: &StoreError) -> CloudError {
    CloudError::unavailable(format!("the store cannot say which broker may work on the target: {error}"))
}

/// A target on which no round works until this is dropped.
struct ExclusiveAccess<'a> {
    layer: &'a CloudLayer,
    target: TargetId,
    /// Nothing was known of the target before.
    is_new: bool,
    is_refused: bool,
}

impl Drop for ExclusiveAccess<'_> {
    fn drop(&mut self) {
        // A target that does not exist, or cannot be reached by this broker's configuration, is not driven from here on.
        self.layer.end_exclusive(&self.target, self.is_new && self.is_refused);
    }
}
