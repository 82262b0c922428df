//! What the driver knows of one target: what its cloud must hold, what it holds, and what is amiss. Pure, but for the
//! chance in a retry's wait.

use std::collections::BTreeSet;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use jiff::Timestamp;
use postern_core::TargetId;
use postern_core::audit::AuditEvent;
use postern_core::plan::{CloudStep, CloudWindow, cloud_steps};
use postern_provider::{CloudError, Drift, Observation, Reach, Stray};

use super::journal::{FOREIGN, UNKNOWN};

/// How often in a row a target may fail before the broker raises an alarm.
pub(super) const ALARM_AT: u32 = 3;

/// The longest pause between two rounds on a target whose cloud fails, but for chance, which may double it: what is open
/// past its end is closed half a minute after an outage at the latest.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// One target's place.
#[derive(Default)]
pub(super) struct Place {
    /// What the cloud must hold; `None` until the store was asked for the first time.
    pub(super) desired: Option<BTreeSet<CloudWindow>>,
    /// The windows of every grant that is not in a final state: no other is anybody's.
    pub(super) known: BTreeSet<CloudWindow>,
    /// What the cloud holds; `None` where that has to be read first.
    pub(super) observed: Option<BTreeSet<CloudWindow>>,
    /// Windows of which something is open, and not all.
    pub(super) partial: BTreeSet<CloudWindow>,
    /// How the target is reached, as the cloud said last.
    pub(super) reach: Reach,
    /// What we opened, or saw open, and have not closed since.
    left_open: BTreeSet<CloudWindow>,
    /// What was amiss at the last look.
    pub(super) drift: BTreeSet<Drift>,
    /// Rules among the target's own that were no windows at the last look.
    pub(super) strays: BTreeSet<Stray>,
    /// Whether the provider has something to put right.
    pub(super) repair: bool,
    /// Whether the provider was asked to put something right since the last look.
    pub(super) repaired: bool,
    /// Whether it is to be read anew though nobody wants anything of it.
    look: bool,
    pub(super) busy: bool,
    /// Whether another broker works on it, and the round that is under way is the last.
    pub(super) leaving: bool,
    /// When it is to be looked at once more, because calls of the broker before may have landed.
    late_calls: Option<Timestamp>,
    /// Whether it was looked at since the store was asked what it is to hold: what is known of grants may be older.
    looked_since: bool,
    pub(super) failure: Option<Failure>,
    pub(super) last_seen: Option<Timestamp>,
    /// Counts what was done here: a sweep that began before is older than what is known.
    pub(super) turns: u64,
}

/// Calls that failed in a row.
pub(super) struct Failure {
    pub(super) error: CloudError,
    pub(super) times: u32,
    pub(super) retry_at: Timestamp,
    backoff: ExponentialBackoff,
}

impl Place {
    /// Whether there is something to do.
    pub(super) fn has_work(&self, now: Timestamp) -> bool {
        let is_free = !self.busy && self.failure.as_ref().is_none_or(|failure| now >= failure.retry_at);
        let Some(desired) = &self.desired else { return is_free && self.is_overdue(now) };
        // A target that nobody has anything open on is left to the sweep: it reads thousands at once.
        let is_idle =
            desired.is_empty() && self.known.is_empty() && self.observed.is_none() && self.failure.is_none();
        is_free && (self.repair || self.look || !(self.is_quiet() || is_idle))
    }

    /// Whether something was seen open whose end has passed: that needs no word of the store's (I2).
    fn is_overdue(&self, now: Timestamp) -> bool {
        self.left_open.iter().chain(&self.partial).any(|window| window.not_after <= now)
    }

    /// What is left to do, closes first. As long as nobody knows what the cloud must hold, that is to close what has ended.
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

    /// Whether something is open whose end has come.
    pub(super) fn has_ended(&self, now: Timestamp) -> bool {
        let mut open = self.observed.iter().flatten().chain(&self.partial).chain(&self.left_open);
        open.any(|window| window.not_after <= now)
    }

    /// Whether calls of the broker before may still land: what was not seen there may come.
    pub(super) fn awaits_late_calls(&self) -> bool {
        self.late_calls.is_some()
    }

    /// Takes in what the store says of it.
    pub(super) fn told(&mut self, desired: BTreeSet<CloudWindow>, known: BTreeSet<CloudWindow>) {
        if std::mem::take(&mut self.leaving) {
            // Let go of, and taken up again before the round ended that was under way: its answers say nothing now.
            self.doubt();
        }
        (self.desired, self.known, self.looked_since) = (Some(desired), known, false);
    }

    /// Whether the window is of a grant that somebody may have asked for since the store was read.
    pub(super) fn may_be_new(&self, window: &CloudWindow) -> bool {
        self.looked_since && !self.known.contains(window)
    }

    /// Whether all that is left to do is to close what somebody may have asked for since the store was read.
    pub(super) fn waits_for_store(&self, now: Timestamp) -> bool {
        let is_new = |window: &CloudWindow| self.may_be_new(window) && now < window.not_after;
        let waits = |step: &CloudStep| match step {
            CloudStep::Close(windows) => windows.iter().all(is_new),
            CloudStep::Open(_) => false,
        };
        let steps = self.steps(now).unwrap_or_default();
        !self.needs_look() && !self.repair && !steps.is_empty() && steps.iter().all(waits)
    }

    /// Takes in that another broker did what was done here.
    pub(super) fn took_over(&mut self, look_again: Timestamp) {
        self.doubt();
        self.late_calls = Some(look_again);
    }

    /// Has a target looked at once more, when what a broker that is gone had sent has landed.
    pub(super) fn look_for_late_calls(&mut self, now: Timestamp) {
        if self.late_calls.is_some_and(|at| at <= now) {
            self.late_calls = None;
            self.doubt();
        }
    }

    /// Wants nothing any more whose end has passed (I2).
    pub(super) fn expire(&mut self, now: Timestamp) {
        if let Some(desired) = &mut self.desired {
            desired.retain(|window| now < window.not_after);
        }
    }

    /// Whether the cloud holds what it should, as far as is known.
    pub(super) fn is_settled(&self) -> bool {
        self.observed.is_some() && self.observed == self.desired && self.partial.is_empty()
    }

    /// Whether no round follows by itself: everything is as it should be, or the target is gone and nobody wants it.
    pub(super) fn is_quiet(&self) -> bool {
        let is_unwanted = self.desired.as_ref().is_none_or(BTreeSet::is_empty);
        self.is_settled() || self.is_gone() && is_unwanted
    }

    /// Whether its cloud said last that there is no such target. Nothing of it can be open.
    pub(super) fn is_gone(&self) -> bool {
        self.failure.as_ref().is_some_and(|failure| matches!(failure.error, CloudError::NotFound { .. }))
    }

    /// Forgets what was known: the next round begins with a look.
    pub(super) fn doubt(&mut self) {
        self.observed = None;
        self.look = true;
    }

    /// Whether the next round begins with a look.
    pub(super) fn needs_look(&self) -> bool {
        self.look || self.observed.is_none()
    }

    /// Whether the target's cloud is to hold the window.
    pub(super) fn wants(&self, window: &CloudWindow) -> bool {
        self.desired.as_ref().is_some_and(|desired| desired.contains(window))
    }

    /// Takes in what a look has found. What there is to tell of it.
    pub(super) fn looked(&mut self, target: &TargetId, look: Observation, now: Timestamp) -> Vec<AuditEvent> {
        let drift =
            |what: &str| AuditEvent::done(now, "broker", "cloud.drift").on_target(target).with("what", what);
        let missing = self.left_open.difference(&look.windows).filter(|window| self.wants(window));
        let mut events: Vec<AuditEvent> = missing
            .map(|window| drift(&format!("somebody closed {}", words(window))).on_grant(window.grant))
            .collect();
        let found: BTreeSet<Drift> = look.drift.into_iter().collect();
        // What lasts is told once.
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
        (self.partial, self.reach) = (look.partial, look.reach);
        self.observed = Some(look.windows);
        (self.look, self.looked_since) = (false, true);
        self.last_seen = Some(now);
        events
    }

    /// Takes in that the target is gone, and that something of ours is left of it for the provider to take away.
    pub(super) fn left_behind(&mut self) {
        self.observed = Some(BTreeSet::new());
        self.repair = true;
    }

    /// Takes in that windows were opened, and how the target is reached.
    pub(super) fn opened(&mut self, windows: &BTreeSet<CloudWindow>, reach: Reach) {
        self.partial.retain(|window| !windows.contains(window));
        self.left_open.extend(windows.iter().cloned());
        self.observed.get_or_insert_default().extend(windows.iter().cloned());
        self.reach = reach;
    }

    /// Takes in that a window was closed. What there is to tell, if it was not one of ours to close.
    pub(super) fn closed(&mut self, window: &CloudWindow, now: Timestamp) -> Option<AuditEvent> {
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
            let what = format!("somebody changed a window of the grant; closed {}", words(window));
            AuditEvent::done(now, "broker", "cloud.drift").with("what", what)
        } else {
            AuditEvent::done(now, "broker", UNKNOWN).with("window", words(window))
        };
        Some(event.on_target(&window.target).on_grant(window.grant))
    }

    /// Takes in that something failed. An alarm, if it has failed too often by now.
    pub(super) fn fail(
        &mut self,
        target: &TargetId,
        error: CloudError,
        now: Timestamp,
    ) -> Option<AuditEvent> {
        // That a target is gone is nothing to be alarmed at: Auto Scaling replaces them all day.
        let (was_gone, is_gone) = (self.is_gone(), matches!(error, CloudError::NotFound { .. }));
        let (times, mut backoff) = match self.failure.take() {
            Some(failure) if was_gone == is_gone => (failure.times + 1, failure.backoff),
            Some(_) | None => (1, patience()),
        };
        let wait = backoff.next().unwrap_or(LONGEST_PAUSE);
        self.observed = None;
        if is_gone {
            self.left_open.clear();
            self.partial.clear();
            self.drift.clear();
            self.strays.clear();
            (self.repair, self.look) = (false, false);
        }
        let alarm = (times == ALARM_AT && !is_gone).then(|| {
            let stuck = self.known.union(&self.left_open).filter(|window| !self.wants(window)).count();
            AuditEvent::done(now, "broker", "cloud.alarm")
                .on_target(target)
                .with("error", &error)
                .with("windows_to_close", stuck)
        });
        self.failure =
            Some(Failure { error, times, retry_at: now.checked_add(wait).unwrap_or(now), backoff });
        alarm
    }

    /// Whether it has failed so often that somebody should look.
    pub(super) fn is_stuck(&self) -> bool {
        !self.is_gone() && self.failure.as_ref().is_some_and(|failure| failure.times >= ALARM_AT)
    }
}

/// A window in words.
fn words(window: &CloudWindow) -> String {
    format!("{} from {} until {}", window.port, window.source, window.not_after)
}

/// For ever, with growing pauses.
fn patience() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(LONGEST_PAUSE)
        .without_max_times()
        .with_jitter()
        .build()
}
