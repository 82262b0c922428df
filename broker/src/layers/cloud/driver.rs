//! The driver: takes every cloud target from observed to desired in rounds, and remembers the answers of its cloud. See
//! [the page of this layer](super).

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
use postern_store::Store;
use tokio::sync::Notify;
use tracing::Instrument as _;

use super::audit_outbox::AuditOutbox;
use super::log;
use super::target_state::{ALARM_AFTER, Failure, TargetState};
use crate::clock::{Clock, boottime};
use crate::cluster::leases::Leases;
use crate::layers::report::{LayerReport, LayerStatus};
use crate::signals::Wakeups;
use crate::signals::rounds::RoundReporter;
use crate::telemetry;

/// The time limit of a call in all: one that never ends must not keep its target from being closed. A provider bounds
/// each of its own calls more tightly; a call takes longer only while it waits for its turn under the cloud's rate limit, where
/// thousands of windows end at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(900);
/// The time limit of an authorization: the caller waits for it.
const AUTHORIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for which a call of the broker that had the target before may still be on its way: for as long as that broker
/// believed its lease, and a request takes.
const LATE_CALLS: Duration = Duration::from_secs(10);
/// The pause between checks, during a call, that this broker still holds the lease.
const LEASE_TICK: Duration = Duration::from_millis(250);
/// The longest sleep between checks for retries that are due.
const RETRY_TICK: Duration = Duration::from_secs(1);

/// The cloud layer: the state of every cloud target.
pub struct CloudLayer {
    pub(super) providers: BTreeMap<CloudKind, Arc<dyn Provider>>,
    states: Mutex<HashMap<TargetId, TargetState>>,
    pub(super) notify: Notify,
    /// Signals that a round on some target has ended.
    pub(super) idle: Notify,
    pub(super) wakeups: Arc<Wakeups>,
    pub(super) clock: Clock,
    pub(super) outbox: AuditOutbox,
    /// The targets on which this broker works.
    pub(super) leases: Arc<Leases>,
}

impl CloudLayer {
    /// A cloud layer without targets.
    pub fn new(
        providers: BTreeMap<CloudKind, Arc<dyn Provider>>,
        clock: Clock,
        wakeups: Arc<Wakeups>,
        leases: Arc<Leases>,
    ) -> Arc<Self> {
        Arc::new(Self {
            providers,
            states: Mutex::default(),
            notify: Notify::new(),
            idle: Notify::new(),
            wakeups,
            clock,
            outbox: AuditOutbox::default(),
            leases,
        })
    }

    /// Reports whether this broker drives the target's cloud.
    pub fn drives(&self, target: &TargetId) -> bool {
        self.provider(target).is_some()
    }

    /// Asks the target's cloud whether the caller may request access to it, if the cloud is configured to decide that.
    ///
    /// # Errors
    /// Refused if the caller may not; any other error decides nothing.
    pub async fn authorize(&self, target: &TargetId, caller: Option<&CallerToken>) -> Result<(), CloudError> {
        let Some(provider) = self.provider(target) else { return Ok(()) };
        let answer = tokio::time::timeout(AUTHORIZE_TIMEOUT, provider.authorize(target, caller)).await;
        answer.unwrap_or_else(|_| {
            let seconds = AUTHORIZE_TIMEOUT.as_secs();
            Err(CloudError::unavailable(format!(
                "it did not answer within {seconds} s whether the caller may have access"
            )))
        })
    }

    /// Returns every target on which a window is wanted, or on which something of Postern's was seen.
    pub fn targets(&self) -> Vec<TargetId> {
        self.lock().keys().cloned().collect()
    }

    /// Sets the windows that a target's cloud must hold, and the windows of every grant that is not over: any other window found
    /// there is stray. A plain host has no cloud layer.
    pub fn want(&self, target: &TargetId, desired: BTreeSet<CloudWindow>, known: BTreeSet<CloudWindow>) {
        if self.provider(target).is_none() {
            return;
        }
        let mut states = self.lock();
        let state = states.entry(target.clone()).or_default();
        let changed = state.desired.as_ref() != Some(&desired);
        state.want(desired, known);
        // Windows that were wanted and not yet begun are wanted no more: no round follows that would wake the reconciler.
        if changed && !state.busy && state.is_quiet() {
            self.wakeups.wake(target);
        }
        self.notify.notify_one();
    }

    /// Returns what is known of a window of a grant in the cloud layer.
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
        let states = self.lock();
        let Some(state) = states.get(&window.target) else { return Observed::Unconfirmed };
        // While it is wanted, or a round is under way, the call that opens it may be on its way to the cloud.
        let may_open = state.busy || state.wants(&wanted);
        match (&state.observed, &state.failure) {
            (Some(observed), _) if observed.contains(&wanted) && !state.needs_look() => Observed::Open,
            (_, Some(Failure { error: CloudError::Refused { reason }, .. })) => {
                Observed::Refused { reason: reason.clone() }
            }
            // A VM that is gone has nothing open, and nothing can be opened on it.
            (_, Some(Failure { error: error @ CloudError::NotFound { .. }, .. })) if state.wants(&wanted) => {
                Observed::Refused { reason: error.to_string() }
            }
            (_, Some(Failure { error: CloudError::NotFound { .. }, .. })) if !may_open => Observed::Absent,
            (_, Some(Failure { error: error @ CloudError::Unavailable { .. }, .. })) => {
                tracing::debug!(grant = %grant.id, ?cloud, %error, "not confirmed");
                Observed::Unconfirmed
            }
            // A stray may be what became of this window: it may let the window's sources in until it is gone.
            (Some(_), None)
                if !may_open
                    && !state.partial.contains(&wanted)
                    && state.strays.is_empty()
                    && !state.awaits_late_calls() =>
            {
                Observed::Absent
            }
            (Some(_), None) | (_, None | Some(Failure { error: CloudError::NotFound { .. }, .. })) => {
                Observed::Unconfirmed
            }
        }
    }

    /// Returns the address to connect to for a window, if something on the way translates it.
    pub fn endpoint(&self, window: &Window) -> Option<SocketAddr> {
        self.lock().get(&window.target)?.reach.endpoint(window.port, window.source)
    }

    /// Returns how sources are translated on the way to a target, if they are.
    pub fn translation(&self, target: &TargetId) -> Option<Translation> {
        self.lock().get(target)?.reach.translation.clone()
    }

    /// Returns the report on the cloud layer of a target.
    pub fn report(&self, target: &TargetId) -> LayerReport {
        if target.cloud().is_none() {
            return LayerReport::of(LayerStatus::NotRequired, "");
        }
        if self.provider(target).is_none() {
            return LayerReport::unreachable("this broker drives no cloud for it");
        }
        let states = self.lock();
        let Some(state) = states.get(target) else { return LayerReport::of(LayerStatus::Pending, "") };
        let mut report = match (&state.failure, &state.observed) {
            (Some(Failure { error: error @ CloudError::Unavailable { .. }, .. }), _) => {
                LayerReport::unreachable(&error.to_string())
            }
            (Some(failure), _) => LayerReport::of(LayerStatus::Failed, &failure.error.to_string()),
            (None, _) if !state.drift.is_empty() => {
                let drift: Vec<&str> = state.drift.iter().map(|drift| drift.what.as_str()).collect();
                LayerReport::of(LayerStatus::Failed, &drift.join("; "))
            }
            (None, Some(_)) if state.is_settled() => LayerReport::of(LayerStatus::InSync, ""),
            (None, _) => LayerReport::of(LayerStatus::Pending, ""),
        };
        report.last_seen = state.last_seen;
        report
    }

    /// Writes the cloud layer's records into the audit log, until the process ends.
    ///
    /// # Errors
    /// Never: a failing store is retried.
    pub async fn keep_writing_records(
        self: Arc<Self>,
        store: Store,
        reporter: RoundReporter,
    ) -> anyhow::Result<()> {
        self.outbox.keep_writing(&store, &reporter).await
    }

    /// Drives every target until the process ends.
    ///
    /// # Errors
    /// Never: a failing cloud is retried.
    pub async fn run(self: Arc<Self>, reporter: RoundReporter) -> anyhow::Result<()> {
        let mut drives = FuturesUnordered::new();
        loop {
            for (target, provider) in self.take_work() {
                drives.push(self.drive(target, provider));
            }
            reporter.report(boottime(), self.check_targets());
            tokio::select! {
                () = self.notify.notified() => {}
                Some(()) = drives.next(), if !drives.is_empty() => {}
                () = tokio::time::sleep(RETRY_TICK), if !self.providers.is_empty() => {}
            }
        }
    }

    /// Returns the interval at which the driver looks for work without a signal; none if it drives no cloud.
    pub fn tick(&self) -> Option<Duration> {
        (!self.providers.is_empty()).then_some(RETRY_TICK)
    }

    /// Fails with the error of a target whose cloud keeps failing.
    fn check_targets(&self) -> Result<(), String> {
        let states = self.lock();
        let mut stuck = states.iter().filter(|(_, state)| state.is_stuck());
        let Some((target, state)) = stuck.next() else { return Ok(()) };
        let error = state.failure.as_ref().map(|failure| failure.error.to_string()).unwrap_or_default();
        match stuck.count() {
            0 => Err(format!("{target}: {error}")),
            more => Err(format!("{target}, and {more} more: {error}")),
        }
    }

    /// Takes the targets that have work to do now and on which no round works.
    fn take_work(&self) -> Vec<(TargetId, Arc<dyn Provider>)> {
        let now = self.clock.now();
        let mut states = self.lock();
        // An end needs no word from the store: the store may be away by then.
        states.values_mut().for_each(|state| {
            state.expire(now);
            state.look_for_late_calls(now);
        });
        let alone = self.leases.is_alone();
        let ready = states.iter_mut().filter(|(target, state)| {
            // Without the lease nothing begins; what has ended is closed all the same (I2).
            let may = self.leases.holds(target) || state.has_ended(now);
            may && state.has_work(now) && (alone || !state.waits_for_store(now))
        });
        ready
            .filter_map(|(target, state)| {
                let provider = self.providers.get(&target.cloud()?)?;
                state.busy = true;
                state.rounds += 1;
                Some((target.clone(), Arc::clone(provider)))
            })
            .collect()
    }

    /// Runs one round on one target: look if need be, close, repair, and open.
    async fn drive(&self, target: TargetId, provider: Arc<dyn Provider>) {
        let outcome = self.steps(&target, provider.as_ref()).await;
        let now = self.clock.now();
        if self.with(&target, |state| state.leaving) == Some(true) {
            self.leave(&target).await;
            return;
        }
        let ended = self.with(&target, |state| {
            let was_stuck = state.is_stuck();
            state.busy = false;
            let alarm = match outcome {
                Ok(()) => {
                    state.failure = None;
                    state.last_seen = Some(now);
                    None
                }
                Err(error) => {
                    metrics::counter!(telemetry::CLOUD_FAILURES).increment(1);
                    state.fail(&target, error, now)
                }
            };
            (alarm, was_stuck != state.is_stuck())
        });
        let (alarm, stuck_changed) = ended.unwrap_or_default();
        if let Some(alarm) = alarm {
            let error = alarm.details.get("error").map_or("", String::as_str);
            tracing::error!(
                event = "cloud.failing",
                %target,
                %error,
                "the cloud layer has failed {ALARM_AFTER} times in a row"
            );
            self.record([alarm]);
        }
        if stuck_changed {
            metrics::gauge!(telemetry::CLOUD_STUCK).set(u32::try_from(self.stuck()).unwrap_or(u32::MAX));
        }
        self.idle.notify_waiters();
        self.wakeups.wake(&target);
    }

    async fn steps(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        if self.with(target, |state| state.needs_look()) != Some(false) {
            self.look(target, provider).await?;
        }
        // No failure of a later step may keep a window open that must close (I2).
        self.close_all(target, provider).await?;
        if provider.needs_look(target) {
            self.look(target, provider).await?;
        }
        if !self.leases.holds(target) {
            return Ok(());
        }
        self.repair(target, provider).await?;
        // Computed again before every opening: a window may have ended while the one before it was opened.
        loop {
            self.close_all(target, provider).await?;
            // Another broker may have closed by now the windows that this one still means to open.
            if !self.leases.holds(target) {
                break;
            }
            let open = |step| if let CloudStep::Open(windows) = step { Some(windows) } else { None };
            let Some(windows) = self.steps_left(target).into_iter().find_map(open) else { break };
            let span = log::open_call(target, &windows);
            let opening = answered(provider.open(target, &windows)).instrument(span);
            // A call that waits or is retried for longer than the lease lasts would land after another broker's look.
            let Some(reach) = self.while_held(target, opening).await else { break };
            let reach = reach?;
            self.with(target, |state| state.opened(&windows, reach));
            self.wakeups.wake(target);
        }
        Ok(())
    }

    /// Returns the steps that are left, closes first.
    fn steps_left(&self, target: &TargetId) -> Vec<CloudStep> {
        let now = self.clock.now();
        let steps = |state: &mut TargetState| {
            state.expire(now);
            state.steps(now)
        };
        self.with(target, steps).flatten().unwrap_or_default()
    }

    /// Closes every window that must close, grant by grant: a refusal for one grant keeps no other window open.
    async fn close_all(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        let mut failed = None;
        let (holds, now) = (self.leases.holds(target), self.clock.now());
        for step in self.steps_left(target) {
            let CloudStep::Close(mut windows) = step else { break };
            // Without the lease another broker may own these windows: close only those that have expired.
            windows.retain(|window| holds || window.not_after <= now);
            // A window may be of a grant that was requested since the store was read: have the store read again first.
            let asked = windows.len();
            if !self.leases.is_alone() {
                self.with(target, |state| {
                    windows.retain(|window| window.not_after <= now || !state.may_be_new(window));
                });
            }
            if windows.len() < asked {
                self.wakeups.wake(target);
            }
            if windows.is_empty() {
                continue;
            }
            let span = log::close_call(target, &windows);
            match answered(provider.close(target, &windows)).instrument(span).await {
                Ok(()) => {
                    let now = self.clock.now();
                    // A close removes strays, too: the next look says which are gone.
                    self.with(target, |state| state.repaired |= !state.strays.is_empty());
                    for window in &windows {
                        self.record(self.with(target, |state| state.closed(window, now)).flatten());
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

    /// Has the provider repair what it can.
    async fn repair(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        // A repair waits until the reconciler has said what the target must hold: only an end does not.
        if self.with(target, |state| state.repair && state.desired.is_some()) != Some(true) {
            return Ok(());
        }
        tracing::warn!(%target, "repairing what another principal changed in the cloud");
        self.with(target, |state| state.repaired = true);
        answered(provider.repair(target)).instrument(log::call("repair", target)).await?;
        self.look(target, provider).await?;
        if self.with(target, |state| state.repair) == Some(true) {
            return Err(CloudError::unavailable("a change by another principal could not be repaired"));
        }
        Ok(())
    }

    /// Returns the answer to a call; none if this broker loses the lease before it comes.
    async fn while_held<T>(&self, target: &TargetId, call: impl Future<Output = T>) -> Option<T> {
        let lost = async {
            while self.leases.holds(target) {
                tokio::time::sleep(LEASE_TICK).await;
            }
        };
        tokio::select! {
            answer = call => Some(answer),
            () = lost => None,
        }
    }

    async fn look(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        let look = answered(provider.observe(target)).instrument(log::call("look", target)).await?;
        let now = self.clock.now();
        self.record(self.with(target, |state| state.looked(target, look, now)).into_iter().flatten());
        Ok(())
    }

    /// Logs and counts the events, and queues them for the audit log.
    pub(super) fn record(&self, events: impl IntoIterator<Item = AuditEvent>) {
        for event in events {
            if event.action == "cloud.drift" {
                metrics::counter!(telemetry::CLOUD_DRIFT).increment(1);
            }
            let target = event.target.as_ref().map(ToString::to_string).unwrap_or_default();
            let grant = event.grant.map(tracing::field::display);
            tracing::warn!(%target, grant, action = event.action, details = ?event.details, "recorded in the audit log");
            self.outbox.push(event);
        }
    }

    /// Does something with a target's state.
    fn with<T>(&self, target: &TargetId, work: impl FnOnce(&mut TargetState) -> T) -> Option<T> {
        self.lock().get_mut(target).map(work)
    }

    /// Forgets a target on which another broker works. A round that is under way is left to end; its last call may land
    /// after the other broker's look, so the other broker is asked to look again.
    pub fn let_go(&self, target: &TargetId) {
        let mut states = self.lock();
        match states.get_mut(target) {
            Some(state) if state.busy => state.leaving = true,
            Some(_) => drop(states.remove(target)),
            None => {}
        }
    }

    /// Forgets every target: the reconciler sets the state of this broker's targets again.
    pub fn let_go_of_all(&self) {
        let targets = self.targets();
        targets.iter().for_each(|target| self.let_go(target));
        self.wakeups.wake_all(targets);
    }

    /// Takes over a target from another broker, whose last call may land late: the remembered state is not believed, and the
    /// target is looked at now and once more later.
    pub fn took_over(&self, target: &TargetId) {
        let Some(provider) = self.provider(target) else { return };
        provider.taken_over(target);
        let again = self.clock.now().checked_add(LATE_CALLS).unwrap_or(Timestamp::MAX);
        self.lock().entry(target.clone()).or_default().took_over(again);
        self.notify.notify_one();
    }

    /// Has the next round on a target begin with a look.
    pub fn look_again(&self, target: &TargetId) {
        self.with(target, TargetState::doubt);
        self.notify.notify_one();
    }

    /// Returns the number of targets whose cloud keeps failing.
    pub fn stuck(&self) -> usize {
        self.lock().values().filter(|state| state.is_stuck()).count()
    }

    /// Ends a round on a target on which another broker works.
    async fn leave(&self, target: &TargetId) {
        self.lock().remove(target);
        self.idle.notify_waiters();
        if let Err(error) = self.leases.ask_to_look(target).await {
            // The other broker looks again by itself some time later.
            tracing::debug!(%target, error = &error as &dyn std::error::Error, "the broker that holds the lease could not be asked to look");
        }
        self.wakeups.wake(target);
    }

    /// Keeps every round away from the target. False if one is under way.
    pub(super) fn begin_exclusive(&self, target: &TargetId) -> bool {
        let mut states = self.lock();
        let state = states.entry(target.clone()).or_default();
        state.rounds += 1;
        !std::mem::replace(&mut state.busy, true)
    }

    /// Lets rounds happen again; the first begins with a look.
    pub(super) fn end_exclusive(&self, target: &TargetId) {
        if let Some(state) = self.lock().get_mut(target) {
            state.busy = false;
            state.doubt();
            state.failure = None;
        }
        // The next round needs the desired windows from the reconciler.
        self.wakeups.wake(target);
        self.notify.notify_one();
        self.idle.notify_waiters();
    }

    pub(super) fn provider(&self, target: &TargetId) -> Option<&Arc<dyn Provider>> {
        self.providers.get(&target.cloud()?)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, TargetState>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the answer of a cloud to one call.
async fn answered<T>(call: impl Future<Output = Result<T, CloudError>>) -> Result<T, CloudError> {
    within(ANSWER_TIMEOUT, call).await
}

/// Returns the answer of a cloud; unavailable if it does not come in time.
pub(super) async fn within<T>(
    span: Duration,
    call: impl Future<Output = Result<T, CloudError>>,
) -> Result<T, CloudError> {
    let late = |_| CloudError::unavailable(format!("there was no answer for {} s", span.as_secs()));
    tokio::time::timeout(span, call).await.map_err(late)?
}

#[cfg(test)]
mod tests;
