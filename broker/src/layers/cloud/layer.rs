//! The cloud layer: what this broker knows of each cloud target. The rest of the broker asks and orders here; the [driver](super::driver)
//! carries the orders out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::plan::{LayerWindow, Observed};
use postern_core::target::CloudKind;
use postern_core::{Grant, ProtectedPort, TargetId, Window};
use postern_provider::{CallerToken, CloudError, Provider, Translation};
use tokio::sync::Notify;

use super::audit_outbox::AuditOutbox;
use super::target_state::TargetState;
use crate::clock::Clock;
use crate::cluster::leases::Leases;
use crate::layers::failure_streak::FailureStreak;
use crate::layers::report::{LayerReport, LayerStatus};
use crate::signals::Wakeups;
use crate::signals::rounds::RoundReporter;
use crate::telemetry;
use postern_store::Store;

/// The time limit of an authorization: the caller waits for it.
const AUTHORIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for which a call of the broker that had the target before may still be on its way: for as long as that broker
/// believed its lease, and a request takes.
const LATE_CALLS: Duration = Duration::from_secs(10);

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

    /// Returns the targets of [`Self::targets`] without those that are gone: an id that does not exist is no target, though
    /// it was requested.
    pub fn existing_targets(&self) -> Vec<TargetId> {
        let states = self.lock();
        states.iter().filter(|(_, state)| !state.is_over()).map(|(target, _)| target.clone()).collect()
    }

    /// Reports whether the target's cloud said last that there is no such target, and no grant has a window on it any more.
    pub fn is_gone(&self, target: &TargetId) -> bool {
        self.lock().get(target).is_some_and(TargetState::is_over)
    }

    /// Sets the windows that a target's cloud must hold, and the windows of every grant that is not over: any other window found
    /// there is stray. A plain host has no cloud layer.
    pub fn want(&self, target: &TargetId, desired: BTreeSet<LayerWindow>, known: BTreeSet<LayerWindow>) {
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

    /// Sets the ports that policies protect in a target's cloud: a lockdown that shuts others is reported.
    pub fn protect(&self, target: &TargetId, ports: BTreeSet<ProtectedPort>) {
        if self.provider(target).is_some() {
            self.lock().entry(target.clone()).or_default().protected = Some(ports);
        }
    }

    /// Returns what is known of a window of a grant in the cloud layer.
    pub fn observe(&self, grant: &Grant, window: &Window) -> Observed {
        let Some(cloud) = window.target.cloud().filter(|cloud| self.providers.contains_key(cloud)) else {
            return Observed::Refused { reason: "this broker drives no cloud for it".into() };
        };
        let wanted = LayerWindow::of(grant, window);
        let states = self.lock();
        let Some(state) = states.get(&window.target) else { return Observed::Unconfirmed };
        // While it is wanted, the next round opens it; and the call that opens it may be on its way to the cloud. The
        // opening of other windows says nothing about this one.
        let may_open = state.wants(&wanted) || state.opening.contains(&wanted) || state.leaving;
        match (&state.observed, &state.failure) {
            (Some(observed), _) if observed.contains(&wanted) && !state.needs_look() => Observed::Open,
            // A repair that fails keeps no close from being confirmed.
            (_, Some(_)) if state.is_repair_failure && !may_open && state.is_known_closed(&wanted) => {
                Observed::Absent
            }
            (_, Some(FailureStreak { error: CloudError::Refused { reason }, .. })) => {
                Observed::Refused { reason: reason.clone() }
            }
            // A VM that is gone has nothing open, and nothing can be opened on it.
            (_, Some(FailureStreak { error: error @ CloudError::NotFound { .. }, .. }))
                if state.wants(&wanted) =>
            {
                Observed::Refused { reason: error.to_string() }
            }
            (_, Some(FailureStreak { error: CloudError::NotFound { .. }, .. })) if !may_open => {
                Observed::Absent
            }
            (_, Some(FailureStreak { error: error @ CloudError::Unavailable { .. }, .. })) => {
                tracing::debug!(grant = %grant.id, ?cloud, %error, "not confirmed");
                Observed::Unconfirmed
            }
            (_, None) if !may_open && state.is_known_closed(&wanted) => Observed::Absent,
            (Some(_), None) | (_, None | Some(FailureStreak { error: CloudError::NotFound { .. }, .. })) => {
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
        let (open, shut) = (state.ports_left_open(target), state.ports_left_shut(target));
        let mut report = match (&state.failure, &state.observed) {
            (Some(FailureStreak { error: error @ CloudError::Unavailable { .. }, .. }), _) => {
                LayerReport::unreachable(&error.to_string())
            }
            (Some(failure), _) => LayerReport::of(LayerStatus::Failed, &failure.error.to_string()),
            (None, _) if !state.drift.is_empty() || open.is_some() => {
                let drift = state.drift.iter().map(|drift| drift.what.as_str());
                let drift: Vec<&str> = drift.chain(open.as_deref()).collect();
                LayerReport::of(LayerStatus::Failed, &drift.join("; "))
            }
            (None, Some(_)) if state.is_settled() => {
                LayerReport::of(LayerStatus::InSync, &shut.unwrap_or_default())
            }
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
    pub(super) fn with<T>(&self, target: &TargetId, work: impl FnOnce(&mut TargetState) -> T) -> Option<T> {
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

    /// Keeps every round away from the target. Returns whether nothing was known of the target before; none if a round is under
    /// way.
    pub(super) fn begin_exclusive(&self, target: &TargetId) -> Option<bool> {
        let mut states = self.lock();
        let is_new = !states.contains_key(target);
        let state = states.entry(target.clone()).or_default();
        state.rounds += 1;
        (!std::mem::replace(&mut state.busy, true)).then_some(is_new)
    }

    /// Lets rounds happen again; the first begins with a look. Or forgets the target.
    pub(super) fn end_exclusive(&self, target: &TargetId, forget: bool) {
        let mut states = self.lock();
        if let Some(state) = states.get_mut(target) {
            state.busy = false;
            state.failure = None;
            // The reconciler may have named windows meanwhile.
            if forget && state.desired.as_ref().is_none_or(BTreeSet::is_empty) && state.known.is_empty() {
                states.remove(target);
            } else {
                state.doubt();
            }
        }
        drop(states);
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
