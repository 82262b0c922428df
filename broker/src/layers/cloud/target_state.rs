//! The state of one target: the windows that its cloud must hold, the windows that it holds, and what is amiss. Pure, except for
//! the chance in a retry's pause.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::plan::{CloudStep, LayerWindow, cloud_steps};
use postern_core::{ProtectedPort, TargetId};
use postern_provider::{CloudError, Drift, Observation, Reach, Stray};
use postern_runtime::backoff::Backoff;

use super::audit_outbox::{FOREIGN, UNKNOWN};
use crate::layers::failure_streak::FailureStreak;

/// The pauses between two rounds on a target whose cloud fails. Chance may double the longest: a window past its end is closed
/// half a minute after an outage at the latest.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(250), longest: Duration::from_secs(15) };

/// The state of one target.
#[derive(Default)]
pub(super) struct TargetState {
    /// The windows that the cloud must hold; `None` until the reconciler has said so.
    pub(super) desired: Option<BTreeSet<LayerWindow>>,
    /// The windows of every grant that is not in a final state: any other is stray.
    pub(super) known: BTreeSet<LayerWindow>,
    /// The windows that the cloud holds; `None` if a look has to come first.
    pub(super) observed: Option<BTreeSet<LayerWindow>>,
    /// Windows that are open in part.
    pub(super) partial: BTreeSet<LayerWindow>,
    /// The way to the target, as the cloud said last.
    pub(super) reach: Reach,
    /// Windows that this broker opened or saw open, and has not closed since.
    left_open: BTreeSet<LayerWindow>,
    /// The drift at the last look.
    pub(super) drift: BTreeSet<Drift>,
    /// The strays at the last look: rules among the target's own that are no windows.
    pub(super) strays: BTreeSet<Stray>,
    /// The ports that policies protect in the cloud; `None` until the reconciler has said so.
    pub(super) protected: Option<BTreeSet<ProtectedPort>>,
    /// The ports that the lockdown shuts, as the cloud said last.
    shut: Option<BTreeSet<ProtectedPort>>,
    /// Set if the provider has something to repair.
    pub(super) repair: bool,
    /// Set if the provider was asked to repair something since the last look.
    pub(super) repaired: bool,
    /// The windows that the last round, which failed, had to close.
    tried: BTreeSet<LayerWindow>,
    /// Set if the next round must look, though no window is wanted.
    look: bool,
    pub(super) busy: bool,
    /// The windows of the opening that is on its way to the cloud.
    pub(super) opening: BTreeSet<LayerWindow>,
    /// Set if another broker works on the target, and the round that is under way is the last.
    pub(super) leaving: bool,
    /// The time of one more look, because calls of the broker that had the target before may land late.
    late_calls: Option<Timestamp>,
    /// Set if there was a look since the reconciler read the store: `known` may be older than `observed`.
    looked_since: bool,
    /// The rounds that failed in a row, with the last error.
    pub(super) failure: Option<FailureStreak<CloudError>>,
    /// True if only a repair failed: the windows are known, and what is closed counts as closed.
    pub(super) is_repair_failure: bool,
    pub(super) last_seen: Option<Timestamp>,
    /// The number of rounds: a sweep that began before the last one is older than this state.
    pub(super) rounds: u64,
}

impl TargetState {
    /// Reports whether there is something to do.
    pub(super) fn has_work(&self, now: Timestamp) -> bool {
        let is_due = self.failure.as_ref().is_none_or(|failure| now >= failure.retry_at);
        let is_free = !self.busy && (is_due || self.has_new_close(now));
        let Some(desired) = &self.desired else { return is_free && self.is_overdue(now) };
        // A target without an open window is left to the sweep, which reads thousands at once.
        let is_idle =
            desired.is_empty() && self.known.is_empty() && self.observed.is_none() && self.failure.is_none();
        is_free && (self.repair || self.look || !(self.is_quiet() || is_idle))
    }

    /// Reports whether a window must close that the last failed round did not yet have to close: closing does
    /// not wait for the pause after a failure of something else (I2).
    fn has_new_close(&self, now: Timestamp) -> bool {
        !self.is_gone() && self.to_close(now).any(|window| !self.tried.contains(window))
    }

    /// Returns the windows that are or may be open, or whose opening is on its way, and that must not be open any more.
    pub(super) fn to_close(&self, now: Timestamp) -> impl Iterator<Item = &LayerWindow> {
        let open = self.left_open.iter().chain(&self.partial).chain(&self.opening);
        open.filter(move |window| window.not_after <= now || self.desired.is_some() && !self.wants(window))
    }

    /// Reports whether a window was seen open whose end has passed: that needs no word from the store (I2).
    fn is_overdue(&self, now: Timestamp) -> bool {
        self.left_open.iter().chain(&self.partial).any(|window| window.not_after <= now)
    }

    /// Returns the steps that are left, closes first. Until the reconciler has said what the cloud must hold, those close what
    /// has ended.
    pub(super) fn steps(&self, now: Timestamp) -> Option<Vec<CloudStep>> {
        let observed = self.observed.as_ref()?;
        let Some(desired) = &self.desired else {
            let lasting =
                observed.union(&self.partial).filter(|window| now < window.not_after).cloned().collect();
            let mut steps = cloud_steps(&lasting, observed, &self.partial);
            steps.retain(|step| matches!(step, CloudStep::Close(_)));
            return Some(steps);
        };
        Some(cloud_steps(desired, observed, &self.partial))
    }

    /// Reports whether a window is open whose end has come.
    pub(super) fn has_ended(&self, now: Timestamp) -> bool {
        let mut open = self.observed.iter().flatten().chain(&self.partial).chain(&self.left_open);
        open.any(|window| window.not_after <= now)
    }

    /// Reports whether calls of the broker that had the target before may still land.
    pub(super) fn awaits_late_calls(&self) -> bool {
        self.late_calls.is_some()
    }

    /// Sets the desired and the known windows, as the reconciler read them from the store.
    pub(super) fn want(&mut self, desired: BTreeSet<LayerWindow>, known: BTreeSet<LayerWindow>) {
        if std::mem::take(&mut self.leaving) {
            // The target was let go of, and taken up again before the round under way ended: its answers say nothing now.
            self.doubt();
        }
        (self.desired, self.known, self.looked_since) = (Some(desired), known, false);
    }

    /// Reports whether the window may be of a grant that was requested since the store was read.
    pub(super) fn may_be_new(&self, window: &LayerWindow) -> bool {
        self.looked_since && !self.known.contains(window)
    }

    /// Reports whether every step that is left closes windows of grants that may have been requested since the store was read.
    pub(super) fn waits_for_store(&self, now: Timestamp) -> bool {
        let is_new = |window: &LayerWindow| self.may_be_new(window) && now < window.not_after;
        let waits = |step: &CloudStep| match step {
            CloudStep::Close(windows) => windows.iter().all(is_new),
            CloudStep::Open(_) => false,
        };
        let steps = self.steps(now).unwrap_or_default();
        !self.needs_look() && !self.repair && !steps.is_empty() && steps.iter().all(waits)
    }

    /// Records that the target was taken over from another broker.
    pub(super) fn took_over(&mut self, look_again: Timestamp) {
        self.doubt();
        self.late_calls = Some(look_again);
    }

    /// Forgets the observed windows once the late calls of another broker have landed.
    pub(super) fn look_for_late_calls(&mut self, now: Timestamp) {
        if self.late_calls.is_some_and(|at| at <= now) {
            self.late_calls = None;
            self.doubt();
        }
    }

    /// Removes every desired window whose end has passed (I2).
    pub(super) fn expire(&mut self, now: Timestamp) {
        if let Some(desired) = &mut self.desired {
            desired.retain(|window| now < window.not_after);
        }
    }

    /// Reports whether the cloud holds what it should, as far as is known.
    pub(super) fn is_settled(&self) -> bool {
        self.observed.is_some() && self.observed == self.desired && self.partial.is_empty()
    }

    /// Reports whether no round follows by itself: the target is settled, or it is gone and no window is wanted on it.
    pub(super) fn is_quiet(&self) -> bool {
        let is_unwanted = self.desired.as_ref().is_none_or(BTreeSet::is_empty);
        self.is_settled() || self.is_gone() && is_unwanted
    }

    /// Reports whether its cloud said last that there is no such target. No window on it can be open.
    pub(super) fn is_gone(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| matches!(failure.error, CloudError::NotFound { .. }))
    }

    /// Reports whether the target is gone, and no grant has a window on it any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_gone() && self.is_quiet() && self.known.is_empty() && !self.busy
    }

    /// Forgets the observed windows: the next round begins with a look.
    pub(super) fn doubt(&mut self) {
        self.observed = None;
        self.look = true;
    }

    /// Reports whether the next round begins with a look.
    pub(super) fn needs_look(&self) -> bool {
        self.look || self.observed.is_none()
    }

    /// Reports whether the target's cloud must hold the window.
    pub(super) fn wants(&self, window: &LayerWindow) -> bool {
        self.desired.as_ref().is_some_and(|desired| desired.contains(window))
    }

    /// Records what a look has found. Returns the audit records.
    pub(super) fn looked(&mut self, target: &TargetId, look: Observation, now: Timestamp) -> Vec<AuditEvent> {
        let drift =
            |what: &str| AuditEvent::done(now, "broker", "cloud.drift").on_target(target).with("what", what);
        let missing = self.left_open.difference(&look.windows).filter(|window| self.wants(window));
        let mut events: Vec<AuditEvent> = missing
            .map(|window| {
                drift(&format!("another principal closed {}", words(window))).on_grant(window.grant)
            })
            .collect();
        let found: BTreeSet<Drift> = look.drift.into_iter().collect();
        // Drift that lasts is recorded once.
        events.extend(found.difference(&self.drift).map(|found| drift(&found.what)));
        // A removal is recorded once a look shows that it happened.
        let removed = std::mem::take(&mut self.repaired);
        let is_left = |stray: &Stray| look.strays.iter().any(|left| left.rule == stray.rule);
        let gone = self.strays.iter().filter(|stray| removed && !is_left(stray));
        events.extend(gone.map(|Stray { rule, what }| {
            AuditEvent::done(now, "broker", FOREIGN).on_target(target).with("rule", rule).with("what", what)
        }));
        self.repair = !look.strays.is_empty() || found.iter().any(|drift| drift.repairable);
        (self.drift, self.strays) = (found, look.strays);
        self.left_open.clone_from(&look.windows);
        (self.partial, self.reach, self.shut) = (look.partial, look.reach, look.shut);
        self.observed = Some(look.windows);
        (self.look, self.looked_since) = (false, true);
        self.last_seen = Some(now);
        events
    }

    /// Returns the ports that policies protect and the lockdown does not shut, in words with the remedy.
    pub(super) fn ports_left_open(&self, target: &TargetId) -> Option<String> {
        let shut = self.shut.as_ref()?;
        let open = list(self.protected.as_ref()?.difference(shut))?;
        if shut.is_empty() {
            return Some(format!(
                "its policies protect {open} in the cloud, and it is not under lockdown: run `postern lockdown {target}`"
            ));
        }
        Some(format!(
            "its policies protect {open}, which the lockdown does not shut: run `postern lockdown {target}`"
        ))
    }

    /// Returns the ports that the lockdown shuts and no policy protects, in words with the remedy.
    pub(super) fn ports_left_shut(&self, target: &TargetId) -> Option<String> {
        let protected = self.protected.as_ref()?;
        let shut = list(self.shut.as_ref()?.difference(protected))?;
        let remedy = if protected.is_empty() {
            format!("put it under a policy, or run `postern release {target}`")
        } else {
            format!("run `postern lockdown {target}`")
        };
        Some(format!("the lockdown shuts {shut}, which no policy protects in the cloud any more: {remedy}"))
    }

    /// Records that the target is gone, and that something of Postern's is left for the provider to remove.
    pub(super) fn left_behind(&mut self) {
        self.observed = Some(BTreeSet::new());
        self.repair = true;
    }

    /// Returns the windows of the next opening, which is on its way from here on; none if there is nothing to open.
    pub(super) fn begin_opening(&mut self, now: Timestamp) -> Option<BTreeSet<LayerWindow>> {
        self.expire(now);
        let open = |step| if let CloudStep::Open(windows) = step { Some(windows) } else { None };
        let windows = self.steps(now)?.into_iter().find_map(open)?;
        self.opening.clone_from(&windows);
        Some(windows)
    }

    /// Records that windows were opened, and the way to the target.
    pub(super) fn opened(&mut self, windows: &BTreeSet<LayerWindow>, reach: Reach) {
        self.opening.clear();
        self.partial.retain(|window| !windows.contains(window));
        self.left_open.extend(windows.iter().cloned());
        self.observed.get_or_insert_default().extend(windows.iter().cloned());
        self.reach = reach;
    }

    /// Records that a window was closed. Returns an audit record if no open grant knew the window.
    pub(super) fn closed(&mut self, window: &LayerWindow, now: Timestamp) -> Option<AuditEvent> {
        self.left_open.remove(window);
        self.partial.remove(window);
        if let Some(observed) = &mut self.observed {
            observed.remove(window);
        }
        if self.known.contains(window) {
            return None;
        }
        let is_changed = self.known.iter().any(|known| known.grant == window.grant);
        let event = if is_changed {
            let what = format!("another principal changed a window of the grant; closed {}", words(window));
            AuditEvent::done(now, "broker", "cloud.drift").with("what", what)
        } else {
            AuditEvent::done(now, "broker", UNKNOWN).with("window", words(window))
        };
        Some(event.on_target(&window.target).on_grant(window.grant))
    }

    /// Records a failure. Returns an alarm at the third in a row.
    pub(super) fn fail(
        &mut self,
        target: &TargetId,
        error: CloudError,
        now: Timestamp,
    ) -> Option<AuditEvent> {
        // A target that is gone is no alarm: Auto Scaling replaces machines all day.
        let (was_gone, is_gone) = (self.is_gone(), matches!(error, CloudError::NotFound { .. }));
        let before = self.failure.take().filter(|_| was_gone == is_gone);
        let failure = FailureStreak::after(before, error, BACKOFF, now);
        self.is_repair_failure &= !is_gone;
        if self.is_repair_failure {
            self.look = true;
        } else {
            self.observed = None;
        }
        self.tried = self.to_close(now).cloned().collect();
        if is_gone {
            self.left_open.clear();
            self.partial.clear();
            self.drift.clear();
            self.strays.clear();
            (self.repair, self.look) = (false, false);
        }
        let alarm = (failure.is_alarm() && !is_gone).then(|| {
            let stuck = self.known.union(&self.left_open).filter(|window| !self.wants(window)).count();
            AuditEvent::done(now, "broker", "cloud.alarm")
                .on_target(target)
                .with("error", &failure.error)
                .with("windows_to_close", stuck)
        });
        self.failure = Some(failure);
        alarm
    }

    /// Reports whether the target has failed so often that an operator should look.
    pub(super) fn is_stuck(&self) -> bool {
        !self.is_gone() && self.failure.as_ref().is_some_and(FailureStreak::is_stuck)
    }
}

/// Returns ports in words; none if there are none.
fn list<'a>(ports: impl Iterator<Item = &'a ProtectedPort>) -> Option<String> {
    let ports: Vec<_> = ports.map(ToString::to_string).collect();
    (!ports.is_empty()).then(|| ports.join(", "))
}

/// Returns a window in words.
fn words(window: &LayerWindow) -> String {
    format!("{} from {} until {}", window.port, window.source, window.not_after)
}
