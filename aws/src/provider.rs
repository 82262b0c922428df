//! The implementation of [`Provider`]: routes each call to the account and Region of its target.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, PoisonError};

use async_trait::async_trait;
use futures_util::future::join_all;
use postern_core::plan::CloudWindow;
use postern_core::{ProtectedPort, TargetId};
use postern_provider::{
    AssessmentReport, CloudError, LockdownOrder, LockdownReport, Observation, Provider, Reach, SweepReport,
    Unread,
};
use tokio::sync::Mutex;

use crate::accounts::{self, AccountRegion};
use crate::backoff::backoff;
use crate::lockdown::LockdownOps;
use crate::open_close::{InstanceOps, TargetCache};
use crate::settings::Settings;
use crate::snapshot::{InstanceContext, InstanceSnapshot};
use crate::{inventory, tags};

/// The cloud layer on AWS.
pub struct Aws {
    settings: Settings,
    places: BTreeMap<(String, String), Arc<AccountRegion>>,
    caches: std::sync::Mutex<HashMap<TargetId, Arc<Mutex<TargetCache>>>>,
}

impl Aws {
    /// Prepares the clients. Makes no call: a fault of an account shows on its targets.
    pub async fn connect(settings: Settings) -> Self {
        let places = accounts::connect(&settings).await;
        Self { settings, places, caches: std::sync::Mutex::default() }
    }

    /// Returns the account and Region of a target, and the id of its instance.
    fn place<'a>(&self, target: &'a TargetId) -> Result<(&AccountRegion, &'a str), CloudError> {
        let TargetId::Aws { account, region, instance } = target else {
            return Err(CloudError::refused(format!("{target} is not in AWS")));
        };
        let place = self.places.get(&(account.clone(), region.clone()));
        let place = place.ok_or_else(|| {
            CloudError::refused(format!(
                "the account {account} in {region} is not in the configuration; add it to aws.accounts"
            ))
        })?;
        Ok((place, instance))
    }

    /// Returns the account and Region of a target, and the operations on its instance.
    async fn ops<'a>(
        &'a self,
        target: &'a TargetId,
    ) -> Result<(&'a AccountRegion, InstanceOps<'a>), CloudError> {
        let (place, instance) = self.place(target)?;
        let context = InstanceContext { target, instance, deployment: &self.settings.deployment };
        Ok((place, InstanceOps { ec2: place.ec2().await?, context }))
    }

    /// Returns the cache of the target, which one call at a time holds.
    fn cache(&self, target: &TargetId) -> Arc<Mutex<TargetCache>> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(caches.entry(target.clone()).or_default())
    }

    /// Drops the cache of a target if it differs from the snapshot that a sweep took.
    fn check_cache(&self, target: &TargetId, snapshot: &InstanceSnapshot) {
        let caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        // A call that holds the cache is newer than the snapshot.
        if let Some(Ok(mut cache)) = caches.get(target).map(|cache| cache.try_lock()) {
            cache.drop_if_stale(snapshot, &self.settings.deployment);
        }
    }

    fn lockdown_ops<'a>(&self, ops: &InstanceOps<'a>) -> LockdownOps<'a> {
        let InstanceOps { ec2, context: InstanceContext { target, instance, deployment } } = *ops;
        LockdownOps { ec2, target, instance, deployment, rules_per_group: self.settings.rules_per_group }
    }

    /// Repairs the lockdown that a snapshot shows: resumes one that was interrupted, and undoes changes by
    /// other principals.
    async fn repair_lockdown(
        &self,
        ops: &InstanceOps<'_>,
        snapshot: &InstanceSnapshot,
    ) -> Result<(), CloudError> {
        let lockdown = self.lockdown_ops(ops);
        match (snapshot.own(), snapshot.state()) {
            (Some(own), _) if !snapshot.exists => return lockdown.delete(&own.id).await,
            (None, _) if snapshot.parked().next().is_none() || !snapshot.exists => return Ok(()),
            (Some(_), tags::RELEASING) => return lockdown.release(snapshot).await.map(drop),
            (Some(_), tags::LOCKED) => {
                for (rule, named) in snapshot.misnamed(&self.settings.deployment) {
                    ops.ec2.tag(&rule, named).await?;
                }
                lockdown.narrow_pieces(snapshot).await?;
            }
            (None, _) => {}
            // No tag says which ports to shut, so there is nothing to resume.
            (Some(_), _) if !snapshot.knows_ports(ops.context) => return Ok(()),
            (Some(_), _) => return lockdown.resume_lock(snapshot).await,
        }
        lockdown.reattach(snapshot).await
    }
}

#[async_trait]
impl Provider for Aws {
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError> {
        let (_, ops) = self.ops(target).await?;
        ops.observe(&mut *self.cache(target).lock().await).await
    }

    async fn open(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<Reach, CloudError> {
        let (_, ops) = self.ops(target).await?;
        ops.open(&mut *self.cache(target).lock().await, windows).await?;
        // EC2 translates a connection's destination, and never its port or its source.
        Ok(Reach::default())
    }

    async fn close(&self, target: &TargetId, windows: &BTreeSet<CloudWindow>) -> Result<(), CloudError> {
        let (_, ops) = self.ops(target).await?;
        ops.close(&mut *self.cache(target).lock().await, windows).await
    }

    fn needs_look(&self, target: &TargetId) -> bool {
        let cache = self.cache(target);
        cache.try_lock().map_or(true, |cache| cache.needs_observation)
    }

    async fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        let (place, ops) = self.ops(target).await?;
        let cache = self.cache(target);
        let mut cache = cache.lock().await;
        let _guard = place.lockdowns.lock().await;
        cache.forget();
        let mut snapshot = ops.snapshot().await?;
        let deployment = &self.settings.deployment;
        let strays = snapshot.stray_rules(deployment).iter().map(|rule| rule.id.clone()).collect::<Vec<_>>();
        // Stray rules go first, whatever else there is to do: they may expose a port. A stray rule that stays
        // does not keep the rest from being repaired.
        let mut removed = Ok(());
        if let Some(own) = snapshot.own().filter(|_| snapshot.exists && !strays.is_empty()) {
            removed = ops.remove_strays(&own.id, &strays).await;
            snapshot.forget(&strays);
        }
        let repaired = self.repair_lockdown(&ops, &snapshot).await;
        removed.and(repaired)
    }

    async fn sweep(&self) -> SweepReport {
        let parts = join_all(self.places.values().map(|place| async {
            match inventory::sweep(place, &self.settings.deployment, |target, snapshot| {
                self.check_cache(target, snapshot)
            })
            .await
            {
                Ok(sightings) => SweepReport { sightings, unread: Vec::new() },
                Err(error) => SweepReport { sightings: Vec::new(), unread: vec![unread(place, error)] },
            }
        }));
        parts.await.into_iter().fold(SweepReport::default(), |mut sweep, part| {
            sweep.sightings.extend(part.sightings);
            sweep.unread.extend(part.unread);
            sweep
        })
    }

    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport {
        let parts = join_all(self.places.values().map(|place| async {
            match inventory::assess(place, &self.settings.deployment, management).await {
                Ok(assessments) => AssessmentReport { assessments, unread: Vec::new() },
                Err(error) => {
                    AssessmentReport { assessments: Vec::new(), unread: vec![unread(place, error)] }
                }
            }
        }));
        parts.await.into_iter().fold(AssessmentReport::default(), |mut report, part| {
            report.assessments.extend(part.assessments);
            report.unread.extend(part.unread);
            report
        })
    }

    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let (_, ops) = self.ops(&order.target).await?;
        self.lockdown_ops(&ops).plan_lock(order, &ops.snapshot().await?).await
    }

    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let (place, ops) = self.ops(&order.target).await?;
        let cache = self.cache(&order.target);
        let mut cache = cache.lock().await;
        let _guard = place.lockdowns.lock().await;
        cache.forget();
        let lockdown = self.lockdown_ops(&ops);
        let report = lockdown.lock(order, &ops.snapshot().await?).await?;
        if report.changes.is_empty() || !order.consent.unmet(&report.concerns).is_empty() {
            return Ok(report);
        }
        // A request for access a moment later must find the target locked down.
        for wait in backoff() {
            if lockdown.plan_lock(order, &ops.snapshot().await?).await?.changes.is_empty() {
                return Ok(report);
            }
            tokio::time::sleep(wait).await;
        }
        Err(not_shown(&order.target, "locked down"))
    }

    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let (_, ops) = self.ops(target).await?;
        self.lockdown_ops(&ops).plan_release(&ops.snapshot().await?).await
    }

    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let (place, ops) = self.ops(target).await?;
        let cache = self.cache(target);
        let mut cache = cache.lock().await;
        let _guard = place.lockdowns.lock().await;
        cache.forget();
        let lockdown = self.lockdown_ops(&ops);
        let report = lockdown.release(&ops.snapshot().await?).await?;
        if report.changes.is_empty() {
            return Ok(report);
        }
        for wait in backoff() {
            match lockdown.plan_release(&ops.snapshot().await?).await {
                Ok(left) if !left.changes.is_empty() => tokio::time::sleep(wait).await,
                Ok(_) | Err(CloudError::NotFound { .. }) => return Ok(report),
                Err(error) => return Err(error),
            }
        }
        Err(not_shown(target, "released"))
    }
}

/// Returns the error for a change that a read does not show: EC2 is eventually consistent, and another
/// principal may have undone it.
fn not_shown(target: &TargetId, deed: &str) -> CloudError {
    CloudError::unavailable(format!(
        "every change was made, and EC2 does not show {target} as {deed} yet; the next sweep looks again"
    ))
}

fn unread(place: &AccountRegion, error: CloudError) -> Unread {
    Unread { place: place.name(), error }
}
