//! The driver: takes every cloud target from observed to desired, one step after another, and remembers what the
//! cloud said.
//!
//! A close is retried for ever (I6). After any error the cloud is read again before the next step: what a failed call
//! did is not known.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use postern_cloud::{CloudError, Provider};
use postern_core::plan::{CloudStep, CloudWindow, Observed, cloud_steps};
use postern_core::target::CloudKind;
use postern_core::{Grant, TargetId, Window};
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::layer::{LayerReport, LayerStatus};
use crate::reconcile::Wakeups;

/// How often in a row a target may fail before the broker raises an alarm.
const ALARM_AT: u32 = 3;
/// How long a cloud may take to answer one call: one that never does must not keep its target from being closed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest sleep between looks for retries that are due.
const TICK: Duration = Duration::from_secs(1);

/// Every cloud target and what its cloud said.
pub struct Clouds {
    pub(super) providers: BTreeMap<CloudKind, Arc<dyn Provider>>,
    places: Mutex<HashMap<TargetId, Place>>,
    notify: Notify,
    /// A target that was being worked on no longer is.
    pub(super) idle: Notify,
    wakeups: Arc<Wakeups>,
    clock: Clock,
}

/// One target's place.
#[derive(Default)]
struct Place {
    desired: BTreeSet<CloudWindow>,
    /// What the cloud holds; `None` where that has to be read first.
    observed: Option<BTreeSet<CloudWindow>>,
    busy: bool,
    failure: Option<Failure>,
    last_seen: Option<Timestamp>,
}

struct Failure {
    error: CloudError,
    times: u32,
    retry_at: Timestamp,
    backoff: ExponentialBackoff,
}

impl Clouds {
    /// Clouds without targets.
    pub fn new(
        providers: BTreeMap<CloudKind, Arc<dyn Provider>>,
        clock: Clock,
        wakeups: Arc<Wakeups>,
    ) -> Arc<Self> {
        Arc::new(Self {
            providers,
            places: Mutex::default(),
            notify: Notify::new(),
            idle: Notify::new(),
            wakeups,
            clock,
        })
    }

    /// Whether this broker drives the target's cloud.
    pub fn drives(&self, target: &TargetId) -> bool {
        self.provider(target).is_some()
    }

    /// Says what a target's cloud layer must hold. A plain host has none.
    pub fn want(&self, target: &TargetId, desired: BTreeSet<CloudWindow>) {
        if self.provider(target).is_none() {
            return;
        }
        // Also with nothing desired: the first look at a target finds what an earlier broker may have left open.
        let mut places = self.lock();
        let place = places.entry(target.clone()).or_default();
        let changed = place.desired != desired;
        place.desired = desired;
        // What was wanted and not begun is wanted no more: no round follows that would say so.
        if changed && !place.busy && place.is_settled() {
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
        let may_open = place.busy || place.desired.contains(&wanted);
        match (&place.observed, &place.failure) {
            (Some(observed), _) if observed.contains(&wanted) => Observed::Open,
            (_, Some(Failure { error: CloudError::Refused { reason }, .. })) => {
                Observed::Refused { reason: reason.clone() }
            }
            // A VM that is gone has nothing open, and nothing can be opened on it.
            (_, Some(Failure { error: error @ CloudError::NotFound { .. }, .. }))
                if place.desired.contains(&wanted) =>
            {
                Observed::Refused { reason: error.to_string() }
            }
            (_, Some(Failure { error: CloudError::NotFound { .. }, .. })) if !may_open => Observed::Absent,
            (_, Some(Failure { error: error @ CloudError::Unavailable { .. }, .. })) => {
                tracing::debug!(?cloud, %error, "not confirmed");
                Observed::Unconfirmed
            }
            (Some(_), None) if !may_open => Observed::Absent,
            (_, None | Some(Failure { error: CloudError::NotFound { .. }, .. })) => Observed::Unconfirmed,
        }
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
            (None, Some(observed)) if *observed == place.desired => LayerReport::of(LayerStatus::InSync, ""),
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
        let ready = places.iter_mut().filter(|(_, place)| {
            !place.busy
                && !place.is_settled()
                && place.failure.as_ref().is_none_or(|failure| now >= failure.retry_at)
        });
        ready
            .filter_map(|(target, place)| {
                let provider = self.providers.get(&target.cloud()?)?;
                place.busy = true;
                Some((target.clone(), Arc::clone(provider)))
            })
            .collect()
    }

    /// One round on one target: read if need be, then the steps that are left, closes first.
    async fn drive(&self, target: TargetId, provider: Arc<dyn Provider>) {
        let outcome = self.steps(&target, provider.as_ref()).await;
        let now = self.clock.now();
        if let Some(place) = self.lock().get_mut(&target) {
            place.busy = false;
            match outcome {
                Ok(()) => {
                    place.failure = None;
                    place.last_seen = Some(now);
                }
                Err(error) => place.fail(&target, error, now),
            }
        }
        self.idle.notify_waiters();
        self.wakeups.wake(&target);
    }

    async fn steps(&self, target: &TargetId, provider: &dyn Provider) -> Result<(), CloudError> {
        let known = self.lock().get(target).and_then(|place| place.observed.clone());
        let mut observed = match known {
            Some(observed) => observed,
            None => answered(provider.observe(target)).await?.windows,
        };
        loop {
            // Read anew before every step: a window may have ended while the step before it ran.
            let desired = self.lock().get(target).map(|place| place.desired.clone()).unwrap_or_default();
            let Some(step) = cloud_steps(&desired, &observed).into_iter().next() else { break };
            match step {
                CloudStep::Close(window) => {
                    answered(provider.close(&window)).await?;
                    observed.remove(&window);
                }
                CloudStep::Open(window) => {
                    answered(provider.open(&window)).await?;
                    observed.insert(window);
                }
            }
            if let Some(place) = self.lock().get_mut(target) {
                place.observed = Some(observed.clone());
            }
            self.wakeups.wake(target);
        }
        if let Some(place) = self.lock().get_mut(target) {
            place.observed = Some(observed);
        }
        Ok(())
    }

    /// Keeps every round away from the target, if none is under way.
    pub(super) fn take(&self, target: &TargetId) -> bool {
        let mut places = self.lock();
        let place = places.entry(target.clone()).or_default();
        !std::mem::replace(&mut place.busy, true)
    }

    /// Lets rounds happen again, the first of them with a fresh look.
    pub(super) fn give_back(&self, target: &TargetId) {
        if let Some(place) = self.lock().get_mut(target) {
            place.busy = false;
            place.observed = None;
            place.failure = None;
        }
        self.notify.notify_one();
        self.idle.notify_waiters();
    }

    pub(super) fn provider(&self, target: &TargetId) -> Option<&Arc<dyn Provider>> {
        self.providers.get(&target.cloud()?)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TargetId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whether the cloud holds what it should, as far as is known.
    fn is_settled(&self) -> bool {
        self.observed.as_ref() == Some(&self.desired)
    }

    fn fail(&mut self, target: &TargetId, error: CloudError, now: Timestamp) {
        let (times, mut backoff) = match self.failure.take() {
            Some(failure) => (failure.times + 1, failure.backoff),
            None => (1, patience()),
        };
        if times == ALARM_AT {
            tracing::error!(%target, %error, "the cloud layer has failed {times} times in a row");
        }
        let wait = backoff.next().unwrap_or(Duration::from_secs(30));
        self.observed = None;
        self.failure =
            Some(Failure { error, times, retry_at: now.checked_add(wait).unwrap_or(now), backoff });
    }
}

/// The answer of the cloud, if it comes in time.
async fn answered<T>(call: impl Future<Output = Result<T, CloudError>>) -> Result<T, CloudError> {
    let late = |_| CloudError::Unavailable {
        reason: format!("there was no answer for {} s", ANSWER_TIMEOUT.as_secs()),
    };
    tokio::time::timeout(ANSWER_TIMEOUT, call).await.map_err(late)?
}

/// For ever, from a quarter of a second up to half a minute.
fn patience() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(30))
        .without_max_times()
        .with_jitter()
        .build()
}

#[cfg(test)]
mod tests;
