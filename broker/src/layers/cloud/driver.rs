//! The driver: takes every cloud target from observed to desired in rounds. See [the page of this layer](super).

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use postern_core::TargetId;
use postern_core::plan::CloudStep;
use postern_provider::{CloudError, Provider};
use tracing::Instrument as _;

use super::layer::CloudLayer;
use super::log;
use super::target_state::TargetState;
use crate::clock::boottime;
use crate::layers::failure_streak::ALARM_AFTER;
use crate::signals::rounds::RoundReporter;
use crate::telemetry;

/// The time limit of a call in all: one that never ends must not keep its target from being closed. A provider bounds
/// each of its own calls more tightly; a call takes longer only while it waits for its turn under the cloud's rate limit, where
/// thousands of windows end at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(900);
/// The pause between checks, during a call, that this broker still holds the lease.
const LEASE_TICK: Duration = Duration::from_millis(250);
/// The time that an opening or a repair under way gets after a window of the same target must close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The longest sleep between checks for retries that are due.
const RETRY_TICK: Duration = Duration::from_secs(1);

impl CloudLayer {
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
            state.opening.clear();
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
        self.with(target, |state| state.is_repair_failure = false);
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
            let now = self.clock.now();
            let next = self.with(target, |state| state.begin_opening(now)).flatten();
            let Some(windows) = next else { break };
            let span = log::open_call(target, &windows);
            let opening = answered(provider.open(target, &windows)).instrument(span);
            // Boxed, so that the future of a round stays small.
            let opening = Box::pin(self.unless_close_is_due(target, opening));
            // A call that waits or is retried for longer than the lease lasts would land after another broker's look.
            let Some(answer) = self.while_held(target, opening).await else { break };
            let Some(reach) = answer else {
                // The call may take effect later: the provider remembers it, and the next look comes first.
                self.with(target, |state| {
                    state.doubt();
                    state.opening.clear();
                });
                self.look(target, provider).await?;
                continue;
            };
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
        let repairing = answered(provider.repair(target)).instrument(log::call("repair", target));
        let Some(repaired) = self.unless_close_is_due(target, Box::pin(repairing)).await else {
            // A repair may wait for a lockdown of other targets. The next round goes on with it, after the close.
            self.with(target, TargetState::doubt);
            return self.look(target, provider).await;
        };
        self.with(target, |state| state.is_repair_failure = repaired.is_err());
        repaired?;
        self.look(target, provider).await?;
        if self.with(target, |state| state.repair) == Some(true) {
            self.with(target, |state| state.is_repair_failure = true);
            return Err(CloudError::unavailable("a change by another principal could not be repaired"));
        }
        Ok(())
    }

    /// Returns the answer to an opening or a repair; none if it does not come within [`CLOSE_TIMEOUT`] after another
    /// window of the target must close: closing waits for neither (I2).
    async fn unless_close_is_due<T>(&self, target: &TargetId, opening: impl Future<Output = T>) -> Option<T> {
        let due = async {
            let must_close = || {
                let now = self.clock.now();
                let is_due = |state: &mut TargetState| {
                    state.to_close(now).any(|window| window.not_after <= now || !state.may_be_new(window))
                };
                self.with(target, is_due) == Some(true)
            };
            while !must_close() {
                tokio::time::sleep(LEASE_TICK).await;
            }
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        };
        tokio::select! {
            answer = opening => Some(answer),
            () = due => None,
        }
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
