//! Lockdown and release of a target, in turn with the driver's own rounds on it, and the survey of every cloud.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postern_core::{ProtectedPort, TargetId};
use postern_provider::{CloudError, LockdownOrder, LockdownReport, Provider, Survey};

use super::Clouds;
use super::driver::within;
use crate::replica::Held;
use crate::store::StoreError;
use crate::store::members::Claim;

/// What one broker does at a time.
const JOB: &str = "lockdown";
/// How often another broker's turn is asked about.
const RETRY: Duration = Duration::from_millis(250);
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
        self.in_turn(&order.target, within(PATIENCE, provider.lockdown(order))).await
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
        self.in_turn(target, within(PATIENCE, provider.release(target))).await
    }

    /// Does something with a target while nobody else works on it, and no other broker on a lockdown or a release: targets
    /// share rules.
    async fn in_turn<T>(
        &self,
        target: &TargetId,
        work: impl Future<Output = Result<T, CloudError>>,
    ) -> Result<T, CloudError> {
        let members = &self.replica.members;
        within(PATIENCE, self.wait_for_job()).await?;
        let was_ours = self.replica.leases.holds(target);
        let held = match within(PATIENCE, self.wait_for_lease(target)).await {
            Ok(held) => held,
            Err(error) => {
                members.end_job(JOB).await.ok();
                return Err(error);
            }
        };
        let outcome = {
            let _turn = self.turn(target).await;
            work.await
        };
        // A store that fails now finds this broker's membership ended later: nothing stays held.
        let was_anothers = !was_ours && held.inherits;
        let (given_back, ended) =
            tokio::join!(self.replica.leases.end_turn(&held, was_anothers), members.end_job(JOB));
        if let Err(error) = given_back.and(ended) {
            tracing::warn!(%target, error = &error as &dyn std::error::Error, "a turn could not be given back");
        }
        self.wakeups.wake(target);
        outcome
    }

    async fn wait_for_job(&self) -> Result<(), CloudError> {
        while !self.replica.members.begin_job(JOB).await.map_err(|error| not_ours(&error))? {
            tokio::time::sleep(RETRY).await;
        }
        Ok(())
    }

    async fn wait_for_lease(&self, target: &TargetId) -> Result<Held, CloudError> {
        loop {
            let held =
                self.replica.leases.hold(target, Claim::Turn).await.map_err(|error| not_ours(&error))?;
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

/// The store has to say whose turn it is.
fn not_ours(error: &StoreError) -> CloudError {
    CloudError::unavailable(format!("it cannot be told whose turn it is: {error}"))
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
