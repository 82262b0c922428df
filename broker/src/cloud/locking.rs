//! Lockdown and release of a target, in turn with the driver's own rounds on it, and the survey of every cloud.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postern_cloud::{CloudError, LockdownOrder, LockdownReport, Provider, Survey};
use postern_core::{ProtectedPort, TargetId};

use super::Clouds;
use super::driver::within;

/// How long a lockdown or a release may take: it makes a few calls for every rule and every group of the target.
const PATIENCE: Duration = Duration::from_secs(300);

impl Clouds {
    /// Judges every VM of every cloud that this broker drives.
    pub async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> Survey {
        let mut survey = Survey::default();
        for provider in self.providers.values() {
            let part = provider.assess(management).await;
            survey.assessments.extend(part.assessments);
            survey.unread.extend(part.unread);
        }
        survey
    }

    /// Puts a target under lockdown, or only says what that would change.
    ///
    /// # Errors
    /// See [`Provider::lockdown`].
    pub async fn lockdown(&self, order: &LockdownOrder, dry_run: bool) -> Result<LockdownReport, CloudError> {
        let provider = self.provider_of(&order.target)?;
        if dry_run {
            return within(PATIENCE, provider.plan_lockdown(order)).await;
        }
        let _turn = self.turn(&order.target).await;
        within(PATIENCE, provider.lockdown(order)).await
    }

    /// Releases a target, or only says what that would change.
    ///
    /// # Errors
    /// See [`Provider::release`].
    pub async fn release(&self, target: &TargetId, dry_run: bool) -> Result<LockdownReport, CloudError> {
        let provider = self.provider_of(target)?;
        if dry_run {
            return within(PATIENCE, provider.plan_release(target)).await;
        }
        let _turn = self.turn(target).await;
        within(PATIENCE, provider.release(target)).await
    }

    fn provider_of(&self, target: &TargetId) -> Result<Arc<dyn Provider>, CloudError> {
        let provider = self.provider(target).cloned();
        provider.ok_or_else(|| CloudError::refused(format!("this broker drives no cloud for {target}")))
    }

    /// Waits until nobody works on the target, and keeps everybody else away from it.
    async fn turn(&self, target: &TargetId) -> Turn<'_> {
        loop {
            let idle = self.idle.notified();
            if self.take(target) {
                return Turn { clouds: self, target: target.clone() };
            }
            idle.await;
        }
    }
}

/// A target on which nobody else works.
struct Turn<'a> {
    clouds: &'a Clouds,
    target: TargetId,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.clouds.give_back(&self.target);
    }
}
