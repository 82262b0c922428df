//! The reconciler: desired (the store) against observed (the hub, the clouds) gives the next step, for ever.
//!
//! It takes no input: a wake-up or the schedule says only where to look. The same pass opens, retries, recovers from
//! a crash, expires and repairs drift. I4 is kept here: every transition is durable and audited before a layer
//! hears of it.

mod schedule;
mod transition;
mod wake;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use postern_core::plan::{Layer, Observed, desired_cloud, desired_host, known_cloud, next_deadline};
use postern_core::policy::protection;
use postern_core::{Grant, GrantState, TargetId, Window};
use tracing::Instrument as _;

use crate::app::Feed;
use crate::clock::Clock;
use crate::cloud::Clouds;
use crate::hub::Hub;
use crate::layer::{host_layer, translate};
use crate::measure::Ways;
use crate::replica::{Held, Replica, Sights, View};
use crate::store::members::Claim;
use crate::store::{Lease, Store, StoreError, TargetSnapshot, Versioned};
use schedule::Schedule;
pub use wake::Wakeups;

/// How many targets are worked on at once: their commits share the store's groups.
const AT_ONCE: usize = 64;
/// How often everything is looked at though nothing was heard, against lost wake-ups.
const FULL_PASS: Duration = Duration::from_secs(60);
/// The longest sleep: timers do not count suspend, the schedule does.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// How long a target rests whose pass met a failing store.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// How often a grant on its way is looked at that waits for another broker, against lost news.
const OTHERS: Duration = Duration::from_secs(2);

/// What the reconciler works with. Everything is shared with the request handlers, which only persist and wake.
#[derive(Clone)]
pub struct Reconciler {
    /// Desired.
    pub store: Arc<dyn Store>,
    /// Observed, host layer.
    pub hub: Arc<Hub>,
    /// Observed, cloud layer.
    pub clouds: Arc<Clouds>,
    /// What of it all is this broker's to do.
    pub replica: Arc<Replica>,
    /// Where to look.
    pub wakeups: Arc<Wakeups>,
    /// Who else wants to know.
    pub feed: Feed,
    /// Time.
    pub clock: Clock,
    /// When the loop last went round, for the health check.
    pub pulse: Arc<Pulse>,
    /// How far each grant's layers have come, for the metrics and the log.
    pub ways: Arc<Ways>,
}

/// When a loop last went round.
#[derive(Debug, Default)]
pub struct Pulse(std::sync::Mutex<Option<Timestamp>>);

impl Pulse {
    /// The loop went round.
    pub fn beat(&self, now: Timestamp) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(now);
    }

    /// When it last did.
    pub fn last(&self) -> Option<Timestamp> {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Reconciler {
    /// Runs until the process ends.
    ///
    /// # Errors
    /// Never: a failing store is retried.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut schedule = Schedule::default();
        let mut full_pass_at = self.clock.now();
        loop {
            let now = self.clock.now();
            self.pulse.beat(now);
            if now >= full_pass_at {
                full_pass_at = later(now, FULL_PASS);
                self.wake_everything().await;
            }
            let first = schedule.first().map_or(full_pass_at, |at| at.min(full_pass_at));
            let targets = tokio::select! {
                targets = self.wakeups.take() => targets,
                () = tokio::time::sleep(self.clock.until(first).min(LONGEST_SLEEP)) => BTreeSet::new(),
            };
            let due = schedule.due(self.clock.now());
            let targets: BTreeSet<TargetId> = targets.into_iter().chain(due).collect();
            let mut passes = stream::iter(targets)
                .map(|target| async {
                    let (again, in_doubt) = self.pass(&target).await;
                    (target, again, in_doubt)
                })
                .buffer_unordered(AT_ONCE);
            let mut in_doubt = BTreeSet::new();
            while let Some((target, again, others)) = passes.next().await {
                schedule.set(&target, again);
                in_doubt.extend(others);
                // Whom a pass has told something is to hear it before the last of thousands has passed.
                tokio::task::yield_now().await;
            }
            // Not at once: passes over a store that fails would wake each other without end.
            let soon = later(self.clock.now(), STORE_RETRY);
            in_doubt.iter().for_each(|target| schedule.bring_forward(target, soon));
        }
    }

    /// What is open or on its way, whoever works on it, and what this broker works on.
    async fn wake_everything(&self) {
        match self.store.open_grants().await {
            Ok(grants) => {
                let windows = grants.into_iter().flat_map(|grant| grant.record.windows);
                self.wakeups.wake_all(windows.map(|window| window.target));
            }
            Err(error) => log_failure(&error, "the full pass is put off"),
        }
        self.wakeups.wake_all(self.hub.sessions());
        self.wakeups.wake_all(self.replica.leases.targets());
    }

    /// Brings one target as far as it can go now. Returns when to look at it again though nothing is heard, and the
    /// targets of a step whose outcome is not known.
    async fn pass(&self, target: &TargetId) -> (Option<Timestamp>, Vec<TargetId>) {
        let mut in_doubt = Vec::new();
        let again = match self.try_pass(target, &mut in_doubt).await {
            Ok(again) => again,
            // Someone else moved first: what they did is looked at at once.
            Err(StoreError::Conflict { .. }) => Some(self.clock.now()),
            Err(StoreError::Fenced { .. }) => {
                if self.replica.leases.is_member() {
                    // What is known here is from before somebody else worked on it.
                    self.replica.leases.found_lost(target);
                    self.clouds.let_go(target);
                    self.hub.doubt(target);
                }
                Some(later(self.clock.now(), STORE_RETRY))
            }
            Err(error) => {
                tracing::info_span!("pass", %target).in_scope(|| log_failure(&error, "a target has to wait"));
                Some(later(self.clock.now(), STORE_RETRY))
            }
        };
        (again, in_doubt)
    }

    async fn try_pass(
        &self,
        target: &TargetId,
        in_doubt: &mut Vec<TargetId>,
    ) -> Result<Option<Timestamp>, StoreError> {
        // Which session it is, before anything is read: a newer one is told what is read after it began.
        let session = self.hub.session(target);
        let has_session = session.is_some();
        let claim = if has_session { Claim::Agent } else { Claim::Free };
        let Some(held) = self.replica.leases.hold(target, claim).await? else {
            // Another broker works on it.
            self.clouds.let_go(target);
            // An administrator's turn ends, and the agent is here.
            return Ok(has_session.then(|| later(self.clock.now(), OTHERS)));
        };
        if held.turn && !has_session {
            // Its agent has a session with another broker, which tells it nothing before the turn is over.
            return Ok(Some(later(self.clock.now(), OTHERS)));
        }
        let snapshot = self.settle(&held, in_doubt).await?;
        let now = self.clock.now();
        let grants: Vec<&Grant> = snapshot.grants.iter().map(|grant| &grant.record).collect();
        // A broker that hung since it read this is told so by its own clock: what it read may be long over.
        if !self.replica.leases.holds(target) {
            return Err(StoreError::Fenced { what: format!("{target} may be another broker's by now") });
        }
        let retry = if let Some(session) = session {
            let protection = protection(target, &snapshot.policies);
            let mut desired = desired_host(target, protection, grants.iter().copied(), now);
            translate(&mut desired, target, &self.clouds);
            self.hub.tell(target, session, snapshot.seq, desired)
        } else {
            // It is told when it connects, which wakes this target.
            None
        };
        if self.clouds.drives(target) {
            let known = known_cloud(target, grants.iter().copied());
            self.clouds.want(target, desired_cloud(target, grants.iter().copied(), now), known);
        }
        let others = self.tell_others(&held.lease, &snapshot.grants).then(|| later(now, OTHERS));
        Ok(grants.iter().filter_map(|grant| next_deadline(grant)).chain(retry).chain(others).min())
    }

    /// Tells the other brokers how the target stands. Whether a grant on its way waits for what one of them tells.
    fn tell_others(&self, lease: &Lease, grants: &[Versioned<Grant>]) -> bool {
        if !self.replica.views.are_read() {
            return false;
        }
        let elsewhere = |target: &TargetId| *target != lease.target && !self.replica.leases.holds(target);
        let view = View::of(&lease.target, &self.hub, &self.clouds, grants);
        let awaited_by: BTreeSet<TargetId> = grants
            .iter()
            .flat_map(|grant| grant.record.targets())
            .filter(|t| elsewhere(t))
            .cloned()
            .collect();
        self.replica.views.tell(lease, view, awaited_by.into_iter().collect());
        grants.iter().any(|grant| {
            let is_on_its_way = matches!(grant.record.state, GrantState::Opening | GrantState::Closing(_));
            is_on_its_way && grant.record.targets().into_iter().any(elsewhere)
        })
    }

    /// Takes every transition that is due, each durable before the next look, until none is.
    async fn settle(&self, held: &Held, in_doubt: &mut Vec<TargetId>) -> Result<TargetSnapshot, StoreError> {
        let (lease, target) = (&held.lease, &held.lease.target);
        let mut inherits = held.inherits;
        loop {
            let snapshot = self.store.snapshot(lease).await?;
            if inherits {
                // Before anything is decided: the broker before may have told the agent of each of these.
                self.hub.inherit(target, snapshot.grants.iter().map(|grant| grant.record.id).collect());
                self.clouds.took_over(target);
                self.replica.leases.has_inherited(lease);
                inherits = false;
            }
            let sights = self.sights(target, &snapshot.grants).await?;
            let observe = |grant: &Grant, window: &Window, layer| {
                if window.target == *target || self.replica.leases.holds(&window.target) {
                    self.observe(grant, window, layer)
                } else {
                    sights.observe(grant, window, layer)
                }
            };
            let now = self.clock.now();
            self.ways.look(snapshot.grants.iter().map(|grant| &grant.record), observe, now);
            let steps = transition::due(&snapshot.grants, observe, now);
            if steps.is_empty() {
                return Ok(snapshot);
            }
            for step in steps {
                let (id, targets) = (step.grant, step.targets.clone());
                let span = tracing::info_span!("step", grant = %id, state = step.state);
                let transaction = step.transaction.under(lease.clone());
                let committed = self.store.commit(transaction).instrument(span).await;
                if matches!(committed, Err(StoreError::Unavailable { .. })) {
                    // It may have happened, and then whoever it concerns would not hear of it.
                    self.feed.changed(id);
                    in_doubt.extend(targets.iter().cloned());
                }
                committed?;
                tracing::info!(grant = %id, state = step.state, "grant moved");
                self.feed.changed(id);
                self.wakeups.wake_all(targets.into_iter().filter(|other| other != target));
            }
        }
    }

    /// What the other brokers tell of the targets that this one's grants have with them.
    async fn sights(&self, target: &TargetId, grants: &[Versioned<Grant>]) -> Result<Sights, StoreError> {
        let elsewhere = |other: &&TargetId| **other != *target && !self.replica.leases.holds(other);
        let others: BTreeSet<&TargetId> =
            grants.iter().flat_map(|grant| grant.record.targets()).filter(elsewhere).collect();
        let others: Vec<TargetId> = others.into_iter().cloned().collect();
        self.replica.views.read(&others).await
    }

    fn observe(&self, grant: &Grant, window: &Window, layer: Layer) -> Observed {
        match layer {
            Layer::Host => host_layer(&self.hub, &self.clouds, grant, window),
            Layer::Cloud => self.clouds.observe(grant, window),
        }
    }
}

fn log_failure(error: &StoreError, consequence: &str) {
    tracing::error!(error = error as &dyn std::error::Error, "{consequence}");
}

fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
