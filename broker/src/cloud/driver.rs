//! The driver: takes every cloud target from observed to desired, one step after another, and remembers what the
//! cloud said.
//!
//! A close is retried for ever (I6). After a round with an error the next begins with a look: what a failed call did is
//! not known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::plan::{CloudStep, CloudWindow, Observed};
use postern_core::target::CloudKind;
use postern_core::{Grant, TargetId, Window};
use postern_provider::{CallerToken, CloudError, Provider, Translation};
use tokio::sync::Notify;
use tracing::Instrument as _;

use super::journal::Journal;
use super::place::{ALARM_AT, Failure, Place};
use super::trace;
use crate::clock::Clock;
use crate::layer::{LayerReport, LayerStatus};
use crate::measure;
use crate::reconcile::Wakeups;
use crate::replica::Replica;

/// How long a call may take in all: one that never ends must not keep its target from being closed. A provider bounds
/// each of its own calls more tightly; what takes longer is waiting for its turn under the cloud's rate, where thousands
/// of windows end at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(900);
/// How long a cloud may take to say what a caller may do: the caller waits for it.
const AUTHORIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a call of the broker before may still be on its way: for as long as that one believed its lease, and a request
/// takes to be done.
const LATE_CALLS: Duration = Duration::from_secs(10);
/// How often it is asked whether the lease still is this broker's, while a call goes on.
const LEASE_TICK: Duration = Duration::from_millis(250);
/// The longest sleep between looks for retries that are due.
const TICK: Duration = Duration::from_secs(1);

/// Every cloud target and what its cloud said.
pub struct Clouds {
    pub(super) providers: BTreeMap<CloudKind, Arc<dyn Provider>>,
    places: Mutex<HashMap<TargetId, Place>>,
    pub(super) notify: Notify,
    /// A target that was being worked on no longer is.
    pub(super) idle: Notify,
    pub(super) wakeups: Arc<Wakeups>,
    pub(super) clock: Clock,
    pub(super) journal: Journal,
    /// What of it all is this broker's to do.
    pub(super) replica: Arc<Replica>,
}

impl Clouds {
    /// Clouds without targets.
    pub fn new(
        providers: BTreeMap<CloudKind, Arc<dyn Provider>>,
        clock: Clock,
        wakeups: Arc<Wakeups>,
        replica: Arc<Replica>,
    ) -> Arc<Self> {
        Arc::new(Self {
            providers,
            places: Mutex::default(),
            notify: Notify::new(),
            idle: Notify::new(),
            wakeups,
            clock,
            journal: Journal::default(),
            replica,
        })
    }

    /// Whether this broker drives the target's cloud.
    pub fn drives(&self, target: &TargetId) -> bool {
        self.provider(target).is_some()
    }

    /// Whether the target's cloud lets a caller ask for access to it, where it is to be asked.
    ///
    /// # Errors
    /// Refused where the caller may not; anything else decides nothing.
    pub async fn authorize(&self, target: &TargetId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
        let Some(provider) = self.provider(target) else { return Ok(()) };
        let answer = tokio::time::timeout(AUTHORIZE_TIMEOUT, provider.authorize(target, caller)).await;
        answer.unwrap_or_else(|_| {
            let seconds = AUTHORIZE_TIMEOUT.as_secs();
            Err(CloudError::unavailable(format!("it did not say within {seconds} s who may have access")))
        })
    }

    /// Every target of which something is wanted, or something of ours was seen.
    pub fn targets(&self) -> Vec<TargetId> {
        self.lock().keys().cloned().collect()
    }

    /// Says what a target's cloud layer must hold, and which windows are of grants that are not over yet: whatever else
    /// is found there is nobody's. A plain host has no cloud layer.
    pub fn want(&self, target: &TargetId, desired: BTreeSet<CloudWindow>, known: BTreeSet<CloudWindow>) {
        if self.provider(target).is_none() {
            return;
        }
        let mut places = self.lock();
        let place = places.entry(target.clone()).or_default();
        let changed = place.desired.as_ref() != Some(&desired);
        place.told(desired, known);
        // What was wanted and not begun is wanted no more: no round follows that would say so.
        if changed && !place.busy && place.is_quiet() {
            self.wakeups.wake(target);
        }
        self.notify.notify_one();
    }

    /// What is known of a window of a grant in the cloud layer.
    pub fn observe(&self, grant: &Grant, window: &Window) -> Observed {
        let Some(cloud) = window.target.cloud().filter(|cloud| self.providers.contains_key(cloud)) else {
            return Observed::Refused { reason: "this broker drives no cloud for it".into() };
        };
        let wanted = CloudWindow {
            target: window.target.clone(),
            grant: grant.id,
            port: window.port,
            source: window.source,
            not_after: grant.not_after,
        };
        let places = self.lock();
        let Some(place) = places.get(&window.target) else { return Observed::Unconfirmed };
        // While it is wanted, or a round is under way, the call that opens it may be on its way to the cloud.
        let may_open = place.busy || place.wants(&wanted);
        match (&place.observed, &place.failure) {
            (Some(observed), _) if observed.contains(&wanted) && !place.needs_look() => Observed::Open,
            (_, Some(Failure { error: CloudError::Refused { reason }, .. })) => {
                Observed::Refused { reason: reason.clone() }
            }
            // A VM that is gone has nothing open, and nothing can be opened on it.
            (_, Some(Failure { error: error @ CloudError::NotFound { .. }, .. })) if place.wants(&wanted) => {
                Observed::Refused { reason: error.to_string() }
            }
            (_, Some(Failure { error: CloudError::NotFound { .. }, .. })) if !may_open => Observed::Absent,
            (_, Some(Failure { error: error @ CloudError::Unavailable { .. }, .. })) => {
                tracing::debug!(grant = %grant.id, ?cloud, %error, "not confirmed");
                Observed::Unconfirmed
            }
            // A rule that is no window may be what became of this one: it may let its sources in until it is gone.
            (Some(_), None)
                if !may_open
                    && !place.partial.contains(&wanted)
                    && place.strays.is_empty()
                    && !place.awaits_late_calls() =>
            {
                Observed::Absent
            }
            (Some(_), None) | (_, None | Some(Failure { error: CloudError::NotFound { .. }, .. })) => {
                Observed::Unconfirmed
            }
        }
    }

    /// Where to connect for a window, if something on the way translates that.
    pub fn endpoint(&self, window: &Window) -> Option<SocketAddr> {
        self.lock().get(&window.target)?.reach.endpoint(window.port, window.source)
    }

    /// Whose connections a target sees under another address.
    pub fn translation(&self, target: &TargetId) -> Option<Translation> {
        self.lock().get(target)?.reach.translation.clone()
    }

    /// How the cloud layer of a target stands, for people.
    pub fn report(&self, target: &TargetId) -> LayerReport {
        if target.cloud().is_none() {
            return LayerReport::of(LayerStatus::NotRequired, "");
        }
        if self.provider(target).is_none() {
            return LayerReport::unreachable("this broker drives no cloud for it");
        }
        let places = self.lock();
        let Some(place) = places.get(target) else { return LayerReport::of(LayerStatus::Pending, "") };
        let mut report = match (&place.failure, &place.observed) {
            (Some(Failure { error: error @ CloudError::Unavailable { .. }, .. }), _) => {
                LayerReport::unreachable(&error.to_string())
            }
            (Some(failure), _) => LayerReport::of(LayerStatus::Failed, &failure.error.to_string()),
            (None, _) if !place.drift.is_empty() => {
                let drift: Vec<&str> = place.drift.iter().map(|drift| drift.what.as_str()).collect();
                LayerReport::of(LayerStatus::Failed, &drift.join("; "))
            }
            (None, Some(_)) if place.is_settled() => LayerReport::of(LayerStatus::InSync, ""),
            (None, _) => LayerReport::of(LayerStatus::Pending, ""),
        };
        report.last_seen = place.last_seen;
        report
    }

    /// Drives every target until the process ends.
    ///
    /// # Errors
    /// Never: a failing cloud is retried.
    pub async fn run(self: Arc<Self>) -> anyhow::Result<()> {
        let mut drives = FuturesUnordered::new();
        loop {
            for (target, provider) in self.take_work() {
                drives.push(self.drive(target, provider));
            }
            tokio::select! {
                () = self.notify.notified() => {}
                Some(()) = drives.next(), if !drives.is_empty() => {}
                () = tokio::time::sleep(TICK), if !self.providers.is_empty() => {}
            }
        }
    }

    /// The targets that have something to do now and are not being worked on.
    fn take_work(&self) -> Vec<(TargetId, Arc<dyn Provider>)> {
        let now = self.clock.now();
        let mut places = self.lock();
        // An end needs no word of the store's: it may be gone by then.
        places.values_mut().for_each(|place| {
            place.expire(now);
            place.look_for_late_calls(now);
        });
        let alone = self.replica.members.is_alone();
        let ready = places.iter_mut().filter(|(target, place)| {
            // Without the lease nothing begins; what has ended is closed all the same (I2).
            let may = self.replica.leases.holds(target) || place.has_ended(now);
            may && place.has_work(now) && (alone || !place.waits_for_store(now))
        });
        ready
            .filter_map(|(target, place)| {
                let provider = self.providers.get(&target.cloud()?)?;
                place.busy = true;
                place.turns += 1;
                Some((target.clone(), Arc::clone(provider)))
            })
            .collect()
    }

    /// One round on one target: read if need be, close, put right what is amiss, and open.
    async fn drive(&self, target: TargetId, provider: Arc<dyn Provider>) {
        let outcome = self.steps(&target, provider.as_ref()).await;
        let now = self.clock.now();
        if self.with(&target, |place| place.leaving) == Some(true) {
            self.leave(&target).await;
            return;
        }
        let ended = self.with(&target, |place| {
            let was_stuck = place.is_stuck();
            place.busy = false;
            let alarm = match outcome {
                Ok(()) => {
                    place.failure = None;
                    place.last_seen = Some(now);
                    None
                }
                Err(error) => {
                    metrics::counter!(measure::CLOUD_FAILURES).increment(1);
                    place.fail(&target, error, now)
                }
            };
            (alarm, was_stuck != place.is_stuck())
        });
        let (alarm, stuck_changed) = ended.unwrap_or_default();
        if let Some(alarm) = alarm {
            let error = alarm.details.get("error").map_or("", String::as_str);
            tracing::error!(%target, %error, "the cloud layer has failed {ALARM_AT} times in a row");
            self.tell([alarm]);
        }
        if stuck_changed {
            metrics::gauge!(measure::CLOUD_STUCK).set(u32::try_from(self.stuck()).unwrap_or(u32::MAX));
        }
        self.idle.notify_waiters();
        self.wakeups.wake(&target);
    }

    async fn steps(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        if self.with(target, |place| place.needs_look()) != Some(false) {
            self.look(target, provider).await?;
        }
        // Nothing that can go wrong with the rest may keep open what is to be closed (I2).
        self.close_all(target, provider).await?;
        if provider.needs_look(target) {
            self.look(target, provider).await?;
        }
        if !self.replica.leases.holds(target) {
            return Ok(());
        }
        self.repair(target, provider).await?;
        // Asked anew before every opening: a window may have ended while the one before it was opened.
        loop {
            self.close_all(target, provider).await?;
            // Another broker may have closed by now what this one still means to open.
            if !self.replica.leases.holds(target) {
                break;
            }
            let open = |step| if let CloudStep::Open(windows) = step { Some(windows) } else { None };
            let Some(windows) = self.steps_left(target).into_iter().find_map(open) else { break };
            let span = trace::call_for("open", target, &windows);
            let opening = answered(provider.open(target, &windows)).instrument(span);
            // A call that waits, or is tried again, for longer than the lease lasts would land after another broker's look.
            let Some(reach) = self.while_held(target, opening).await else { break };
            let reach = reach?;
            self.with(target, |place| place.opened(&windows, reach));
            self.wakeups.wake(target);
        }
        Ok(())
    }

    /// What is left to do, closes first.
    fn steps_left(&self, target: &TargetId) -> Vec<CloudStep> {
        let now = self.clock.now();
        let steps = |place: &mut Place| {
            place.expire(now);
            place.steps(now)
        };
        self.with(target, steps).flatten().unwrap_or_default()
    }

    /// Closes whatever is to be closed, each grant once: one that the cloud keeps does not keep the others.
    async fn close_all(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        let mut failed = None;
        let (ours, now) = (self.replica.leases.holds(target), self.clock.now());
        for step in self.steps_left(target) {
            let CloudStep::Close(mut windows) = step else { break };
            // What another broker may have opened meanwhile is not nobody's: without the lease only the end counts.
            windows.retain(|window| ours || window.not_after <= now);
            // Nor is what somebody asked for since the store was read: it is read again first.
            let asked = windows.len();
            if !self.replica.members.is_alone() {
                self.with(target, |place| {
                    windows.retain(|window| window.not_after <= now || !place.may_be_new(window));
                });
            }
            if windows.len() < asked {
                self.wakeups.wake(target);
            }
            if windows.is_empty() {
                continue;
            }
            let span = trace::call_for("close", target, &windows);
            match answered(provider.close(target, &windows)).instrument(span).await {
                Ok(()) => {
                    let now = self.clock.now();
                    // A close takes away what it finds of strays: the next look says which are gone.
                    self.with(target, |place| place.repaired |= !place.strays.is_empty());
                    for window in &windows {
                        self.tell(self.with(target, |place| place.closed(window, now)).flatten());
                    }
                    self.wakeups.wake(target);
                }
                Err(error) => {
                    let grant = windows.first().map(|window| window.grant.to_string()).unwrap_or_default();
                    tracing::warn!(%target, grant, %error, "windows are still open");
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Lets the provider put right what it can.
    async fn repair(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        // What nobody has asked for yet waits: only an end does not.
        if self.with(target, |place| place.repair && place.desired.is_some()) != Some(true) {
            return Ok(());
        }
        tracing::warn!(%target, "putting right what somebody changed in the cloud");
        self.with(target, |place| place.repaired = true);
        answered(provider.repair(target)).instrument(trace::call("repair", target)).await?;
        self.look(target, provider).await?;
        if self.with(target, |place| place.repair) == Some(true) {
            return Err(CloudError::unavailable("what somebody changed could not be put right"));
        }
        Ok(())
    }

    /// The answer, if this broker works on the target for that long.
    async fn while_held<T>(&self, target: &TargetId, call: impl Future<Output = T>) -> Option<T> {
        let lost = async {
            while self.replica.leases.holds(target) {
                tokio::time::sleep(LEASE_TICK).await;
            }
        };
        tokio::select! {
            answer = call => Some(answer),
            () = lost => None,
        }
    }

    async fn look(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        let look = answered(provider.observe(target)).instrument(trace::call("look", target)).await?;
        let now = self.clock.now();
        self.tell(self.with(target, |place| place.looked(target, look, now)).into_iter().flatten());
        Ok(())
    }

    /// Tells the log, and the audit log, and counts.
    pub(super) fn tell(&self, events: impl IntoIterator<Item = AuditEvent>) {
        for event in events {
            if event.action == "cloud.drift" {
                metrics::counter!(measure::CLOUD_DRIFT).increment(1);
            }
            let target = event.target.as_ref().map(ToString::to_string).unwrap_or_default();
            let grant = event.grant.map(tracing::field::display);
            tracing::warn!(%target, grant, action = event.action, details = ?event.details, "told the audit log");
            self.journal.tell(event);
        }
    }

    /// Does something with a target's place.
    fn with<T>(&self, target: &TargetId, work: impl FnOnce(&mut Place) -> T) -> Option<T> {
        self.lock().get_mut(target).map(work)
    }

    /// Forgets a target on which another broker works. A round that is under way is left to end; its last call may land
    /// after the other's look, so that the other is asked to look again.
    pub fn let_go(&self, target: &TargetId) {
        let mut places = self.lock();
        match places.get_mut(target) {
            Some(place) if place.busy => place.leaving = true,
            Some(_) => drop(places.remove(target)),
            None => {}
        }
    }

    /// Forgets every target: what is this broker's is told anew.
    pub fn let_go_of_all(&self) {
        let targets = self.targets();
        targets.iter().for_each(|target| self.let_go(target));
        self.wakeups.wake_all(targets);
    }

    /// Takes over a target from another broker, whose last call may land late: nothing that is remembered of its cloud is
    /// believed, and it is looked at now, and again.
    pub fn took_over(&self, target: &TargetId) {
        let Some(provider) = self.provider(target) else { return };
        provider.taken_over(target);
        let again = self.clock.now().checked_add(LATE_CALLS).unwrap_or(Timestamp::MAX);
        self.lock().entry(target.clone()).or_default().took_over(again);
        self.notify.notify_one();
    }

    /// Has a target looked at before anything else is done with it.
    pub fn look_again(&self, target: &TargetId) {
        self.with(target, Place::doubt);
        self.notify.notify_one();
    }

    /// How many targets have a cloud that keeps failing.
    pub fn stuck(&self) -> usize {
        self.lock().values().filter(|place| place.is_stuck()).count()
    }

    /// The end of a round on a target that another broker works on.
    async fn leave(&self, target: &TargetId) {
        self.lock().remove(target);
        self.idle.notify_waiters();
        if let Err(error) = self.replica.members.ask_to_look(target).await {
            // Whoever took over looks again by itself some time later.
            tracing::debug!(%target, error = &error as &dyn std::error::Error, "nobody could be asked to look");
        }
        self.wakeups.wake(target);
    }

    /// Keeps every round away from the target, if none is under way.
    pub(super) fn take(&self, target: &TargetId) -> bool {
        let mut places = self.lock();
        let place = places.entry(target.clone()).or_default();
        place.turns += 1;
        !std::mem::replace(&mut place.busy, true)
    }

    /// Lets rounds happen again, the first of them with a fresh look.
    pub(super) fn give_back(&self, target: &TargetId) {
        if let Some(place) = self.lock().get_mut(target) {
            place.busy = false;
            place.doubt();
            place.failure = None;
        }
        // A round needs to know what is to be open.
        self.wakeups.wake(target);
        self.notify.notify_one();
        self.idle.notify_waiters();
    }

    pub(super) fn provider(&self, target: &TargetId) -> Option<&Arc<dyn Provider>> {
        self.providers.get(&target.cloud()?)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answer of a cloud to one call.
async fn answered<T>(call: impl Future<Output = Result<T, CloudError>>) -> Result<T, CloudError> {
    within(ANSWER_TIMEOUT, call).await
}

/// The answer of a cloud, if it comes in time.
pub(super) async fn within<T>(
    span: Duration,
    call: impl Future<Output = Result<T, CloudError>>,
) -> Result<T, CloudError> {
    let late = |_| CloudError::unavailable(format!("there was no answer for {} s", span.as_secs()));
    tokio::time::timeout(span, call).await.map_err(late)?
}

#[cfg(test)]
mod tests;
