//! The calls of the provider seam, each led to the machine of its target.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use postern_core::plan::LayerWindow;
use postern_core::{ProtectedPort, TargetId};
use postern_provider::kit::read_places;
use postern_provider::{
    AssessmentReport, CallerToken, CloudError, Hidden, LockdownOrder, LockdownReport, Observation, Provider,
    Reach, Sighting, SweepReport, Unread,
};

use crate::caller;
use crate::inventory;
use crate::layer::Azure;
use crate::lockdown::PlannedGroups;
use crate::network::UnreadPart;
use crate::snapshot::LockedRules;

/// The most subscriptions that are read at once. All share one bucket of reads with the calls that end windows, which must not wait
/// behind a sweep.
const SUBSCRIPTIONS_AT_ONCE: usize = 2;

#[async_trait]
impl Provider for Azure {
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError> {
        let (reading, adding) = (self.targets.start_reading(), self.adding());
        let snapshot = Arc::new(self.read(target).await?);
        snapshot.check_read(target, &self.settings.deployment)?;
        self.targets.store(target, &snapshot, reading);
        let locked_rules = self.targets.locked_rules(target);
        let view = snapshot.view(target, &self.settings.deployment, &locked_rules);
        Ok(self.observation(&view, &adding))
    }

    async fn open(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<Reach, CloudError> {
        let (snapshot, nothing) = (self.snapshot(target).await?, LockedRules::default());
        if let Some(error @ CloudError::Unavailable { .. }) = &snapshot.unread {
            self.targets.drop_snapshot(target);
            return Err(error.clone());
        }
        let view = snapshot.view(target, &self.settings.deployment, &nothing);
        let opened = self.open_windows(&view, windows).await;
        if opened.is_err() {
            self.targets.drop_snapshot(target);
        }
        opened?;
        if snapshot.machine.front.is_some() {
            // The write has chosen the firewall's ports: read them.
            self.targets.drop_snapshot(target);
            let snapshot = self.snapshot(target).await?;
            let view = snapshot.view(target, &self.settings.deployment, &nothing);
            return Ok(view.reach());
        }
        Ok(view.reach())
    }

    async fn close(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<(), CloudError> {
        let (snapshot, nothing) = (self.snapshot(target).await?, LockedRules::default());
        let view = snapshot.view(target, &self.settings.deployment, &nothing);
        let closed = self.close_windows(&view, windows).await;
        if closed.is_err() || snapshot.machine.front.is_some() {
            self.targets.drop_snapshot(target);
        }
        closed
    }

    async fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        let _guard = self.lockdowns.lock().await;
        self.targets.changed(target);
        let done = self.repair_target(target).await;
        self.targets.changed(target);
        done
    }

    fn taken_over(&self, target: &TargetId) {
        self.targets.remove(target);
    }

    async fn authorize(&self, target: &TargetId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
        if !self.settings.authorize_callers {
            return Ok(());
        }
        caller::authorize(&self.arm, &self.vm(target)?, caller).await
    }

    async fn sweep(&self) -> SweepReport {
        let subscriptions = self.settings.subscriptions.iter();
        let reads =
            subscriptions.map(|subscription| (place(subscription), inventory::sweep(self, subscription)));
        let (read, unread) = read_places(SUBSCRIPTIONS_AT_ONCE, reads).await;
        let mut sweep = SweepReport { unread: self.unread_subscriptions(unread), ..SweepReport::default() };
        let mut elsewhere = Vec::new();
        let mut changed = BTreeSet::new();
        for part in read {
            sweep.sightings.extend(part.sightings);
            elsewhere.extend(part.of_others);
            changed.extend(part.changed);
            add_parts(&mut sweep.unread, part.unread);
            sweep.unread.extend(part.unjudged.into_iter().map(unjudged));
        }
        // A machine that its own subscription shows is reported there. Where that subscription or the machine could not be read,
        // nothing is known of the machine.
        for target in elsewhere {
            let is_known = changed.contains(&target)
                || sweep.sightings.iter().any(|sighting| sighting.target == target)
                || sweep.unread.iter().any(|place| place.may_hide(&target));
            if !is_known {
                sweep.sightings.push(Sighting { target, held: None });
            }
        }
        sweep
    }

    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport {
        let subscriptions = self.settings.subscriptions.iter();
        let reads = subscriptions
            .map(|subscription| (place(subscription), inventory::assess(self, subscription, management)));
        let (read, unread) = read_places(SUBSCRIPTIONS_AT_ONCE, reads).await;
        let mut report =
            AssessmentReport { assessments: Vec::new(), unread: self.unread_subscriptions(unread) };
        for (assessments, unread) in read {
            report.assessments.extend(assessments);
            add_parts(&mut report.unread, unread);
        }
        report
    }

    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        self.plan_lock_after(order, &mut PlannedGroups::default()).await
    }

    async fn plan_lockdowns(&self, orders: &[LockdownOrder]) -> Vec<Result<LockdownReport, CloudError>> {
        let (mut planned, mut reports) = (PlannedGroups::default(), Vec::new());
        for order in orders {
            reports.push(self.plan_lock_after(order, &mut planned).await);
        }
        reports
    }

    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        let _guard = self.lockdowns.lock().await;
        self.targets.changed(&order.target);
        let done = self.lock(order).await;
        self.targets.changed(&order.target);
        done
    }

    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        self.plan_release_after(target, &mut PlannedGroups::default()).await
    }

    async fn plan_releases(&self, targets: &[TargetId]) -> Vec<Result<LockdownReport, CloudError>> {
        let (mut planned, mut reports) = (PlannedGroups::default(), Vec::new());
        for target in targets {
            reports.push(self.plan_release_after(target, &mut planned).await);
        }
        reports
    }

    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        let _guard = self.lockdowns.lock().await;
        // From here on a repair must not put back what the release deletes.
        self.targets.remove(target);
        let done = self.release_target(target).await;
        self.targets.remove(target);
        done
    }
}

impl Azure {
    /// Says of subscriptions that could not be read that they hide their own targets alone.
    fn unread_subscriptions(&self, unread: Vec<Unread>) -> Vec<Unread> {
        let of = |name: &str| self.settings.subscriptions.iter().find(|it| place(it) == name).cloned();
        let with_targets = |unread: Unread| {
            let hides = of(&unread.place).map_or(Hidden::Everything, Hidden::Subscription);
            Unread { hides, ..unread }
        };
        unread.into_iter().map(with_targets).collect()
    }
}

/// Adds the parts of a subscription's network that could not be read, each once.
fn add_parts(unread: &mut Vec<Unread>, parts: Vec<UnreadPart>) {
    for UnreadPart { place, error, .. } in parts {
        if !unread.iter().any(|known| known.place == place) {
            unread.push(Unread { place, error: error.into(), hides: Hidden::Nothing });
        }
    }
}

/// Says of a target that its windows could not be judged: it is not gone.
fn unjudged((target, error): (TargetId, CloudError)) -> Unread {
    Unread { place: format!("the rules of {}", target.in_words()), error, hides: Hidden::Target(target) }
}

/// Returns the name of a subscription that reports use.
fn place(subscription: &str) -> String {
    format!("subscription {subscription}")
}
