//! The reconciler: compares what is desired (the store) with what is observed (the layers), takes the next step, and repeats.
//!
//! The problem: between a request and an open window lie a store, an agent and a cloud, and each may fail or answer late, at any
//! moment, as may the broker itself. So no code path "opens a grant" from end to end. One loop looks at a target, does the
//! next thing, and looks again; the same pass opens, retries, recovers from a crash, expires and repairs drift.
//!
//! The words:
//! - A *pass* works on one target. It *settles* first: every transition that is due is committed, until none is. Then it hands the
//!   whole desired state to the host layer and the cloud layer.
//! - A *transition* moves one grant into its next state (`transition`). What is due follows from the grant, what is observed in
//!   each layer, and the time, and from nothing else.
//! - *Wake-ups* and the *schedule* (`schedule`) say which target is next. They carry no data: a lost one costs time, and
//!   a full pass every minute makes up for it.
//!
//! The rule (I4): every transition is durable and audited before a layer learns of it. What a pass read under its lease counts only
//! as long as it holds the lease: the store refuses a commit under a lost one, and the pass checks once more before it pushes.
//!
//! On a failure:
//! - Another commit came first: the pass reads the store again at once.
//! - The store is away: the target rests for half a second. If the answer to a commit was lost, the commit may have happened:
//!   watchers get the change, and every target of the grant is looked at again.
//! - The lease is lost: this broker forgets what it knows of the target, which is from before another broker worked on it.
//! - A layer fails or refuses: that is an observation like any other. A grant that cannot open is rolled back, and one that
//!   closes stays closing until every layer has confirmed it (I6).
//! - The broker dies: the next one begins with a full pass, and goes on from what the store says.

mod schedule;
mod transition;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::Timestamp;
use postern_core::plan::{desired_cloud, desired_host, known_cloud, next_deadline};
use postern_core::policy::{Protection, protection};
use postern_core::{Grant, GrantState, TargetId, Window};
use postern_runtime::error_chain::error_chain;
use postern_store::coordination::Claim;
use postern_store::{Lease, Store, StoreError, TargetSnapshot, Versioned};
use tracing::Instrument as _;

use crate::clock::{Clock, boottime};
use crate::cluster::Cluster;
use crate::cluster::leases::HeldLease;
use crate::cluster::peer_status::PeerStatus;
use crate::layers::cloud::CloudLayer;
use crate::layers::host::desired_state::StateNumber;
use crate::layers::host::sessions::AgentSessions;
use crate::layers::observer::Observer;
use crate::limits::log_due;
use crate::signals::rounds::RoundReporter;
use crate::signals::{GrantChanges, Wakeups};
use crate::telemetry::GrantProgress;
use schedule::Schedule;

/// The number of targets that are worked on at once: their commits share the store's groups.
const MAX_CONCURRENT_PASSES: usize = 64;
/// The pause between looks at every target without a wake-up, against lost ones.
const FULL_PASS: Duration = Duration::from_secs(60);
/// The longest sleep: timers do not count suspend, the schedule does.
pub const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// The rest of a target whose pass met a failing store.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// The pause between looks at a grant that waits for another broker, against lost events.
const PEER_RECHECK: Duration = Duration::from_secs(2);

/// The reconciler. Its parts are shared with the request handlers, which only persist and wake.
#[derive(Clone)]
pub struct Reconciler {
    /// The desired state.
    pub store: Store,
    /// The host layer.
    pub sessions: Arc<AgentSessions>,
    /// The cloud layer.
    pub cloud: Arc<CloudLayer>,
    /// Answers how windows stand.
    pub observer: Observer,
    /// The other brokers, and the targets on which this one works.
    pub cluster: Arc<Cluster>,
    /// The targets to look at.
    pub wakeups: Arc<Wakeups>,
    /// Tells watchers which grants changed.
    pub grant_changes: GrantChanges,
    /// The broker's clock.
    pub clock: Clock,
    /// The progress of each grant's layers, for the metrics and the log.
    pub progress: Arc<GrantProgress>,
}

impl Reconciler {
    /// Runs until the process ends.
    ///
    /// # Errors
    /// Never: a failing store is retried.
    pub async fn run(self, reporter: RoundReporter) -> anyhow::Result<()> {
        let mut schedule = Schedule::default();
        let mut full_pass = Ok(());
        // The targets whose last pass met a failing store.
        let mut failures = BTreeMap::new();
        let mut full_pass_at = self.clock.now();
        loop {
            let failure = failures.iter().next().map(|(target, error)| format!("{target}: {error}"));
            reporter.report(boottime(), full_pass.clone().and(failure.map_or(Ok(()), Err)));
            let now = self.clock.now();
            if now >= full_pass_at {
                full_pass_at = later(now, FULL_PASS);
                full_pass = self.wake_everything().await;
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
                    let outcome = self.pass(&target).await;
                    (target, outcome)
                })
                .buffer_unordered(MAX_CONCURRENT_PASSES);
            let mut in_doubt = BTreeSet::new();
            while let Some((target, PassOutcome { again, in_doubt: others, failure })) = passes.next().await {
                schedule.set(&target, again);
                in_doubt.extend(others);
                match failure {
                    Some(error) => drop(failures.insert(target, error)),
                    None => drop(failures.remove(&target)),
                }
                // Yield, so that sessions send what this pass queued before the rest of the batch runs.
                tokio::task::yield_now().await;
            }
            // Not at once: passes over a store that fails would wake each other without end.
            let soon = later(self.clock.now(), STORE_RETRY);
            in_doubt.iter().for_each(|target| schedule.bring_forward(target, soon));
        }
    }

    /// Wakes every target of a grant that is not over, every target with a session, and every target with a lease.
    ///
    /// # Errors
    /// The grants could not be read; the other targets are woken all the same.
    async fn wake_everything(&self) -> Result<(), String> {
        let read = match self.store.open_grants().await {
            Ok(grants) => {
                let windows = grants.into_iter().flat_map(|grant| grant.record.windows);
                self.wakeups.wake_all(windows.map(|window| window.target));
                Ok(())
            }
            Err(error) => {
                log_failure(&error, "cannot read the open grants, will retry");
                Err(error_chain(&error))
            }
        };
        self.cluster.wake_own_targets(&self.wakeups, &self.sessions, &self.cloud);
        read
    }

    /// Brings one target as far as it can go now.
    async fn pass(&self, target: &TargetId) -> PassOutcome {
        let (mut in_doubt, mut failure) = (Vec::new(), None);
        let again = match self.try_pass(target, &mut in_doubt).await {
            Ok(again) => again,
            // Another commit came first: read the store again at once.
            Err(StoreError::Conflict { .. }) => Some(self.clock.now()),
            Err(StoreError::Fenced { .. }) => {
                if self.cluster.leases.is_member() {
                    // What is known here is from before another broker worked on the target.
                    self.cluster.leases.found_lost(target);
                    self.cloud.let_go(target);
                    self.sessions.doubt(target);
                }
                Some(later(self.clock.now(), STORE_RETRY))
            }
            Err(error) => {
                tracing::info_span!("pass", %target)
                    .in_scope(|| log_failure(&error, "cannot work on a target, will retry"));
                failure = Some(error_chain(&error));
                Some(later(self.clock.now(), STORE_RETRY))
            }
        };
        PassOutcome { again, in_doubt, failure }
    }

    async fn try_pass(
        &self,
        target: &TargetId,
        in_doubt: &mut Vec<TargetId>,
    ) -> Result<Option<Timestamp>, StoreError> {
        // The session is noted before anything is read: a newer one gets what is read after it began.
        let session = self.sessions.session_number(target);
        let has_session = session.is_some();
        let claim = if has_session { Claim::Agent } else { Claim::Free };
        let Some(held) = self.cluster.leases.hold(target, claim).await? else {
            // Another broker works on the target.
            self.cloud.let_go(target);
            // A lockdown on that broker ends some time, and the agent is here.
            return Ok(has_session.then(|| later(self.clock.now(), PEER_RECHECK)));
        };
        if held.exclusive && !has_session {
            // The agent has a session with another broker, which pushes nothing before the lockdown here is over.
            return Ok(Some(later(self.clock.now(), PEER_RECHECK)));
        }
        let snapshot = self.settle(&held, in_doubt).await?;
        let now = self.clock.now();
        let grants: Vec<&Grant> = snapshot.grants.iter().map(|grant| &grant.record).collect();
        // If the broker hung since it read this, its own clock says so here: what it read may be long over.
        if !self.cluster.leases.holds(target) {
            return Err(StoreError::Fenced { what: format!("{target} may be another broker's by now") });
        }
        let retry = if let Some(session) = session {
            let protection = self.protection(target, &snapshot);
            let mut desired = desired_host(target, protection, grants.iter().copied(), now);
            self.observer.translate(&mut desired, target);
            let policies = snapshot.policies.as_ref().map_or(0, |kept| kept.generation);
            self.sessions.push(target, session, StateNumber { generation: snapshot.seq, policies }, desired)
        } else {
            // The agent gets its state when it connects, which wakes this target.
            None
        };
        if self.cloud.drives(target) {
            let known = known_cloud(target, grants.iter().copied());
            // While the policies cannot be read, what they last protected counts.
            if let Ok(kept) = &snapshot.policies {
                let in_cloud: Vec<_> =
                    kept.policies.iter().filter(|policy| policy.layers.cloud()).cloned().collect();
                self.cloud.protect(target, protection(target, &in_cloud).ports);
            }
            self.cloud.want(target, desired_cloud(target, grants.iter().copied(), now), known);
        }
        let others = self.publish_status(&held.lease, &snapshot.grants).then(|| later(now, PEER_RECHECK));
        Ok(grants.iter().filter_map(|grant| next_deadline(grant)).chain(retry).chain(others).min())
    }

    /// Returns the target's protection; none if its policies cannot be read, so that the host keeps what it has.
    fn protection(&self, target: &TargetId, snapshot: &TargetSnapshot) -> Option<Protection> {
        match &snapshot.policies {
            Ok(kept) => Some(protection(target, &kept.policies)),
            Err(error) => {
                if let Some(omitted) = log_due("policies that cannot be read") {
                    tracing::error!(
                        event = "policies.unreadable",
                        %target,
                        error = error_chain(&**error),
                        omitted,
                        "the policies cannot be read: hosts keep their protection, no request is granted, and closes go on"
                    );
                }
                None
            }
        }
    }

    /// Publishes the target's status for the other brokers. Returns whether a grant that opens or closes waits for the status
    /// of another broker.
    fn publish_status(&self, lease: &Lease, grants: &[Versioned<Grant>]) -> bool {
        if !self.cluster.peer_status.is_read() {
            return false;
        }
        let elsewhere = |target: &TargetId| *target != lease.target && !self.cluster.leases.holds(target);
        let status = self.observer.status(&lease.target, grants);
        let awaited_by: BTreeSet<TargetId> = grants
            .iter()
            .flat_map(|grant| grant.record.targets())
            .filter(|t| elsewhere(t))
            .cloned()
            .collect();
        self.cluster.peer_status.publish(lease, status, awaited_by.into_iter().collect());
        grants.iter().any(|grant| {
            let is_on_its_way = matches!(grant.record.state, GrantState::Opening | GrantState::Closing(_));
            is_on_its_way && grant.record.targets().into_iter().any(elsewhere)
        })
    }

    /// Commits every transition that is due, each before the next look, until none is.
    async fn settle(
        &self,
        held: &HeldLease,
        in_doubt: &mut Vec<TargetId>,
    ) -> Result<TargetSnapshot, StoreError> {
        let (lease, target) = (&held.lease, &held.lease.target);
        let mut inherits = held.inherits;
        loop {
            let snapshot = self.store.snapshot(lease).await?;
            let forgotten = snapshot.agent.as_ref().and_then(|agent| agent.forgotten.as_ref());
            self.sessions.set_forgotten(target, forgotten.map(|forgotten| forgotten.at));
            if inherits {
                // Before anything is decided: the other broker may have pushed windows of each of these grants.
                self.sessions.inherit(target, snapshot.grants.iter().map(|grant| grant.record.id).collect());
                self.cloud.took_over(target);
                self.cluster.leases.has_inherited(lease);
                inherits = false;
            }
            let peers = self.peer_status(target, &snapshot.grants).await?;
            let observe = |grant: &Grant, window: &Window, layer| {
                if window.target == *target {
                    self.observer.observe_here(grant, window, layer)
                } else {
                    self.observer.observe(grant, window, layer, &peers)
                }
            };
            let now = self.clock.now();
            self.progress.look(snapshot.grants.iter().map(|grant| &grant.record), observe, now);
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
                    // The commit may have happened, and then watchers and other targets would not learn of it.
                    self.grant_changes.changed(id);
                    in_doubt.extend(targets.iter().cloned());
                }
                committed?;
                tracing::info!(event = "grant.moved", grant = %id, state = step.state, "grant moved");
                self.grant_changes.changed(id);
                self.wakeups.wake_all(targets.into_iter().filter(|other| other != target));
            }
        }
    }

    /// Reads the status of the other targets of these grants, from the brokers that work on them.
    async fn peer_status(
        &self,
        target: &TargetId,
        grants: &[Versioned<Grant>],
    ) -> Result<PeerStatus, StoreError> {
        let elsewhere = |other: &&TargetId| **other != *target && !self.cluster.leases.holds(other);
        let others: BTreeSet<&TargetId> =
            grants.iter().flat_map(|grant| grant.record.targets()).filter(elsewhere).collect();
        let others: Vec<TargetId> = others.into_iter().cloned().collect();
        self.cluster.peer_status.read(&others).await
    }
}

/// The outcome of a pass over one target.
struct PassOutcome {
    /// The time at which to look again without a wake-up.
    again: Option<Timestamp>,
    /// The targets of a step whose outcome is not known.
    in_doubt: Vec<TargetId>,
    /// The error of the store, if it failed.
    failure: Option<String>,
}

fn log_failure(error: &StoreError, consequence: &str) {
    tracing::error!(error = error as &dyn std::error::Error, "{consequence}");
}

fn later(at: Timestamp, span: Duration) -> Timestamp {
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
