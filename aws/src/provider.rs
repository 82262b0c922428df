//! The implementation of [`Provider`]: routes each call to the account and Region of its target.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use postern_core::plan::LayerWindow;
use postern_core::{ProtectedPort, TargetId};
use postern_provider::kit::{Attempt, KeyedStates, attempt_until, read_places};
use postern_provider::{
    AssessmentReport, CloudError, Hidden, LockdownOrder, LockdownReport, Observation, Provider, Reach,
    SweepReport, Unread,
};
use tokio::sync::Mutex;

use crate::accounts::{self, AccountRegion};
use crate::backoff::backoff;
use crate::ec2::Ec2;
use crate::lockdown::{GivenBack, GroupOps, LockdownOps};
use crate::open_close::{InstanceCache, InstanceOps};
use crate::settings::AwsSettings;
use crate::snapshot::{InstanceContext, InstanceSnapshot};
use crate::trial::{PermissionTrial, TrialOutcome};
use crate::{inventory, tags};

/// The most accounts and Regions that are read at once. Each has rates of its own.
const PLACES_AT_ONCE: usize = 32;

/// The cloud layer on AWS.
pub struct Aws {
    settings: AwsSettings,
    places: BTreeMap<(String, String), Arc<AccountRegion>>,
    /// The cache of each target, which one call at a time holds.
    caches: KeyedStates<TargetId, Mutex<InstanceCache>>,
}

impl Aws {
    /// Prepares the clients. Makes no call: a fault of an account shows on its targets.
    pub async fn connect(settings: AwsSettings) -> Self {
        let places = accounts::connect(&settings).await;
        Self { settings, places, caches: KeyedStates::default() }
    }

    /// A provider for one account and Region, over a double of EC2.
    #[cfg(test)]
    pub(crate) fn over(ec2: Box<dyn Ec2>, settings: AwsSettings) -> Self {
        let (account, region) = ("123456789012", "eu-central-1");
        let place = Arc::new(AccountRegion::over(ec2, account, region));
        let places = [((account.to_owned(), region.to_owned()), place)].into();
        Self { settings, places, caches: KeyedStates::default() }
    }

    /// Returns every account and Region.
    fn places(&self) -> impl Iterator<Item = &AccountRegion> {
        self.places.values().map(|place| &**place)
    }

    /// Tries each action that the broker needs, in each account and Region, as a dry run. Nothing is changed.
    pub async fn try_permissions(&self) -> Vec<PermissionTrial> {
        let mut trials = Vec::new();
        for place in self.places() {
            let found = match place.ec2().await {
                Ok(ec2) => ec2.try_permissions(&self.settings.deployment).await,
                Err(CloudError::NotFound { .. }) => Vec::new(),
                Err(error) => vec![("", TrialOutcome::Unreachable(error.to_string()))],
            };
            let name = |(action, outcome)| PermissionTrial { place: place.name(), action, outcome };
            trials.extend(found.into_iter().map(name));
        }
        trials
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

    /// Drops the cache of a target if it differs from the snapshot that a sweep took.
    fn check_cache(&self, target: &TargetId, snapshot: &InstanceSnapshot) {
        let Some(cache) = self.caches.get(target) else { return };
        // A call that holds the cache is newer than the snapshot.
        if let Ok(mut cache) = cache.try_lock() {
            cache.drop_if_stale(snapshot, &self.settings.deployment);
        }
    }

    fn lockdown_ops<'a>(&'a self, place: &'a AccountRegion, ops: &InstanceOps<'a>) -> LockdownOps<'a> {
        let InstanceOps { ec2, context: InstanceContext { target, instance, deployment } } = *ops;
        let groups = self.group_ops(place, ec2);
        let groups_per_interface = self.settings.groups_per_interface;
        LockdownOps { groups, target, instance, deployment, groups_per_interface }
    }

    /// Puts back the rules of groups that no instance needs parked any more.
    async fn give_back(&self, place: &AccountRegion, groups: &[String]) -> GivenBack {
        if groups.is_empty() {
            return GivenBack::default();
        }
        let _guard = place.lockdowns.lock().await;
        match place.ec2().await {
            Ok(ec2) => self.group_ops(place, ec2).give_back(groups).await,
            Err(error) => GivenBack { failed: Some(error), ..GivenBack::default() },
        }
    }

    fn group_ops<'a>(&'a self, place: &'a AccountRegion, ec2: &'a dyn Ec2) -> GroupOps<'a> {
        let AwsSettings { deployment, rules_per_group, tags, .. } = &self.settings;
        GroupOps { ec2, deployment, rules_per_group: *rules_per_group, tags, recent: &place.recent }
    }

    /// Repairs the lockdown that a snapshot shows: resumes one that was interrupted, and undoes changes by
    /// other principals.
    async fn repair_lockdown(
        &self,
        place: &AccountRegion,
        ops: &InstanceOps<'_>,
        snapshot: &InstanceSnapshot,
    ) -> Result<(), CloudError> {
        let lockdown = self.lockdown_ops(place, ops);
        match (snapshot.own(), snapshot.state()) {
            (Some(own), _) if !snapshot.exists => return lockdown.groups.delete(&own.id).await,
            (None, _) if snapshot.parked().next().is_none() || !snapshot.exists => return Ok(()),
            (Some(_), tags::RELEASING | tags::PREPARING) => {
                return lockdown.release(snapshot).await.map(drop);
            }
            (Some(_), tags::LOCKED) => {
                for (rule, named) in snapshot.misnamed(&self.settings.deployment) {
                    ops.ec2.tag(&rule, &named.into_iter().collect()).await?;
                }
                lockdown.shut_again(snapshot).await?;
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
        ops.observe(&mut *self.caches.of(target).lock().await).await
    }

    async fn open(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<Reach, CloudError> {
        let (_, ops) = self.ops(target).await?;
        ops.open(&mut *self.caches.of(target).lock().await, windows).await?;
        // EC2 translates a connection's destination, and never its port or its source.
        Ok(Reach::default())
    }

    async fn close(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<(), CloudError> {
        let (_, ops) = self.ops(target).await?;
        ops.close(&mut *self.caches.of(target).lock().await, windows).await
    }

    fn needs_look(&self, target: &TargetId) -> bool {
        self.caches
            .get(target)
            .is_none_or(|cache| cache.try_lock().map_or(true, |cache| cache.needs_observation))
    }

    async fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        let (place, ops) = self.ops(target).await?;
        let cache = self.caches.of(target);
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
        let repaired = self.repair_lockdown(place, &ops, &snapshot).await;
        removed.and(repaired)
    }

    async fn sweep(&self) -> SweepReport {
        let reads = self.places.values().map(|place| {
            let seen = |target: &TargetId, snapshot: &InstanceSnapshot| self.check_cache(target, snapshot);
            let swept = async move {
                let swept = inventory::sweep(place, &self.settings.deployment, seen).await?;
                let given_back = self.give_back(place, &swept.orphaned).await;
                Ok::<_, CloudError>((swept.sightings, place.name(), given_back))
            };
            (place.place(), swept)
        });
        let (read, unread) = read_places(PLACES_AT_ONCE, reads).await;
        let mut report = SweepReport { unread, ..SweepReport::default() };
        for (sightings, place, given_back) in read {
            report.sightings.extend(sightings);
            report.given_back.extend(given_back.done);
            report.unread.extend(given_back.failed.map(|error| Unread {
                place: format!("{place}: parked rules"),
                error,
                hides: Hidden::Nothing,
            }));
        }
        report
    }

    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport {
        let reads = self
            .places
            .values()
            .map(|place| (place.place(), inventory::assess(place, &self.settings.deployment, management)));
        let (read, unread) = read_places(PLACES_AT_ONCE, reads).await;
        AssessmentReport { assessments: read.into_iter().flatten().collect(), unread }
    }

    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let (place, ops) = self.ops(&order.target).await?;
        self.lockdown_ops(place, &ops).plan_lock(order, &ops.snapshot().await?).await
    }

    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let (place, ops) = self.ops(&order.target).await?;
        let cache = self.caches.of(&order.target);
        let mut cache = cache.lock().await;
        let _guard = place.lockdowns.lock().await;
        cache.forget();
        let lockdown = self.lockdown_ops(place, &ops);
        let report = lockdown.lock(order, &ops.snapshot().await?).await?;
        if report.changes.is_empty() || !order.consent.unmet(&report.concerns).is_empty() {
            return Ok(report);
        }
        // A request for access a moment later must find the target locked down.
        let shown = attempt_until(backoff(), || async {
            let left = lockdown.plan_lock(order, &ops.snapshot().await?).await?;
            Ok::<_, CloudError>(if left.changes.is_empty() {
                Attempt::Shown(())
            } else {
                Attempt::NotYet(())
            })
        });
        shown_as(shown.await?, &order.target, "locked down")?;
        Ok(report)
    }

    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let (place, ops) = self.ops(target).await?;
        self.lockdown_ops(place, &ops).plan_release(&ops.snapshot().await?).await
    }

    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let (place, ops) = self.ops(target).await?;
        let cache = self.caches.of(target);
        let mut cache = cache.lock().await;
        let _guard = place.lockdowns.lock().await;
        cache.forget();
        let lockdown = self.lockdown_ops(place, &ops);
        let report = lockdown.release(&ops.snapshot().await?).await?;
        if report.changes.is_empty() {
            return Ok(report);
        }
        let shown = attempt_until(backoff(), || async {
            match lockdown.plan_release(&ops.snapshot().await?).await {
                Ok(left) if !left.changes.is_empty() => Ok(Attempt::NotYet(())),
                Ok(_) | Err(CloudError::NotFound { .. }) => Ok(Attempt::Shown(())),
                Err(error) => Err(error),
            }
        });
        shown_as(shown.await?, target, "released")?;
        Ok(report)
    }
}

/// Fails if a read does not show a change: EC2 is eventually consistent, and another principal may have undone it.
fn shown_as(shown: Attempt<()>, target: &TargetId, deed: &str) -> Result<(), CloudError> {
    match shown {
        Attempt::Shown(()) => Ok(()),
        Attempt::NotYet(()) => Err(CloudError::unavailable(format!(
            "every change was made, and EC2 does not show {target} as {deed} yet; the next sweep looks again"
        ))),
    }
}
