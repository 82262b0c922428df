//! Lockdown and release of a target, apart from the driver's own rounds on it, and the assessment of every cloud.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

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

    /// Puts a target under lockdown, or in a dry run only reports what that would change.
    ///
    /// # Errors
    /// See [`Provider::lockdown`].
    pub async fn lockdown(&self, order: &LockdownOrder, dry_run: bool) -> Result<LockdownReport, CloudError> {
        let provider = self.provider_of(&order.target)?;
        if dry_run {
            return within(LOCKDOWN_TIMEOUT, provider.plan_lockdown(order)).await;
        }
        self.exclusively(&order.target, within(LOCKDOWN_TIMEOUT, provider.lockdown(order))).await
    }

    /// Releases a target, or in a dry run only reports what that would change.
    ///
    /// # Errors
    /// See [`Provider::release`].
    pub async fn release(&self, target: &TargetId, dry_run: bool) -> Result<LockdownReport, CloudError> {
        let provider = self.provider_of(target)?;
        if dry_run {
            return within(LOCKDOWN_TIMEOUT, provider.plan_release(target)).await;
        }
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
        provider.ok_or_else(|| CloudError::refused(format!("this broker drives no cloud for {target}")))
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
