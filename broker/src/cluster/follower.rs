//! The follower: receives the events of other brokers' changes, and wakes the reconciler where to look.
//!
//! The event of a commit names the numbers of its audit records. If a record is missing between two events, or behind the store's
//! own head, the follower reads the audit log from there: a lost event costs a second.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use postern_core::audit::AuditRecord;
use postern_core::{Grant, GrantId, Policy, TargetId};
use postern_runtime::error_chain::error_chain;
use postern_store::coordination::{ClusterEvent, CommittedChange};
use postern_store::{
    AgentRecord, IssuedPrincipal, Record as _, Revocation, RevokedIntermediate, Store, StoreError,
};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::Cluster;
use crate::clock::boottime;
use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::principals::Revocations;
use crate::signals::GrantChanges;
use crate::signals::Wakeups;
use crate::signals::rounds::RoundReporter;

/// The delay of an event after which the audit log is read instead.
pub const LATE_AFTER: Duration = Duration::from_secs(1);
/// The pause after a failure of the store.
const RETRY: Duration = Duration::from_millis(500);
/// The number of audit records that are read at once.
const PAGE: usize = 500;
/// The number of missing records above which none is read, and everything is looked at instead.
const MAX_MISSED: u64 = 20_000;

/// Follows the changes of the other brokers.
pub struct Follower {
    /// The leases, and the other brokers.
    pub cluster: Arc<Cluster>,
    /// The store that they change.
    pub store: Store,
    /// The agents that are connected here.
    pub sessions: Arc<AgentSessions>,
    /// The cloud layer.
    pub cloud: Arc<CloudLayer>,
    /// Wakes the reconciler.
    pub wakeups: Arc<Wakeups>,
    /// Tells watchers which grants changed.
    pub grant_changes: GrantChanges,
    /// The revocations of this broker.
    pub revocations: Arc<Revocations>,
    /// The number of the newest audit record, from the membership's renewals.
    pub head: watch::Receiver<u64>,
    /// Reports the rounds: each event and each look at the head.
    pub reporter: RoundReporter,
}

impl Follower {
    /// Follows until the process ends.
    ///
    /// # Errors
    /// Never: a broken connection is made again.
    pub async fn follow(mut self) -> anyhow::Result<()> {
        let mut last = *self.head.borrow();
        loop {
            match self.cluster.coordination.subscribe().await {
                Ok(mut events) => {
                    // Events between two subscriptions were lost.
                    self.catch_up_later();
                    self.receive(events.as_mut(), &mut last).await;
                    tracing::debug!("the subscription to cluster events broke");
                    self.reporter.failed(boottime(), "the subscription to cluster events broke");
                }
                Err(error) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "cannot subscribe to cluster events"
                    );
                    self.reporter.failed(boottime(), error_chain(&error));
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Wakes every target here: the events about leases are not in the audit log.
    fn catch_up_later(&self) {
        self.cluster.wake_own_targets(&self.wakeups, &self.sessions, &self.cloud);
    }

    async fn receive(&mut self, events: &mut dyn postern_store::coordination::Subscription, last: &mut u64) {
        let mut behind = *last;
        let mut tick = tokio::time::interval(LATE_AFTER);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                events = events.next() => match events {
                    Some(ClusterEvent::Committed(changed)) => self.changed(changed, last).await,
                    Some(event) => self.handle(event),
                    None => return,
                },
                // Renewals find the head by themselves: events of records that were there a while ago do not come any more.
                _ = tick.tick() => {
                    let head = *self.head.borrow_and_update();
                    let missing = std::mem::replace(&mut behind, head);
                    if *last < missing {
                        self.catch_up(last, missing).await;
                    }
                }
            }
            self.reporter.succeeded(boottime());
        }
    }

    async fn changed(&self, changed: CommittedChange, last: &mut u64) {
        if changed.before > *last {
            self.catch_up(last, changed.before).await;
        }
        *last = changed.after.max(*last);
        // This broker has handled its own changes already.
        if changed.own {
            return;
        }
        for grant in changed.keys(Grant::KIND).filter_map(|key| key.parse().ok()) {
            self.grant_changes.changed(grant);
        }
        self.wakeups.wake_all(changed.targets.iter().cloned());
        if changed.keys(Policy::KIND).next().is_some() {
            self.wakeups.wake_all(self.cluster.leases.targets());
        }
        let principals = changed.keys(Revocation::KIND).chain(changed.keys(IssuedPrincipal::KIND));
        if principals.chain(changed.keys(RevokedIntermediate::KIND)).next().is_some() {
            self.revocations.look();
        }
        for agent in changed.keys(AgentRecord::KIND).filter_map(|key| key.parse().ok()) {
            self.look_at_agent(&agent).await;
        }
    }

    fn handle(&self, event: ClusterEvent) {
        match event {
            ClusterEvent::Committed(_) | ClusterEvent::LeaseTaken { mine: true, .. } => {}
            ClusterEvent::LeaseTaken { target, exclusive, mine: false } => {
                if self.cluster.leases.lose(&target) {
                    tracing::debug!(%target, exclusive, "another broker took its lease");
                }
                self.cloud.let_go(&target);
                if exclusive {
                    // Its agent stays: the lease comes back, and no other broker can push anything to it meanwhile.
                } else {
                    self.sessions.disconnect(&target, "its agent has a newer session with another broker");
                }
            }
            ClusterEvent::LeaseFreed(target) => {
                if self.sessions.has_session(&target) {
                    self.wakeups.wake(&target);
                }
            }
            ClusterEvent::StatusPublished(targets) => {
                self.wakeups.wake_all(targets.into_iter().filter(|target| self.cluster.leases.holds(target)));
            }
            ClusterEvent::LookRequested(target) => {
                if self.cluster.leases.holds(&target) {
                    self.cloud.look_again(&target);
                }
            }
            // The membership's next renewal takes over its targets.
            ClusterEvent::MemberLeft => {}
        }
    }

    /// Ends the session of an agent whose record changed, if the agent was banned or its target enrolled again since.
    async fn look_at_agent(&self, target: &TargetId) {
        if !self.sessions.has_session(target) {
            if self.cluster.leases.holds(target) {
                // The agent may have been forgotten, and grants may wait for it: the pass reads its record.
                self.wakeups.wake(target);
            } else {
                // The broker that works on the target knows it; what this one knows is of an earlier record.
                self.sessions.set_forgotten(target, None);
            }
            return;
        }
        match self.store.agent(target).await {
            Ok(Some(agent)) if agent.record.banned.is_some() => {
                self.sessions.end(target, "the agent was banned")
            }
            Ok(Some(agent)) if agent.record.forgotten.is_some() => {
                self.sessions.end(target, "the agent was forgotten")
            }
            Ok(Some(agent)) => {
                self.sessions.end_before(target, agent.record.enrolled_at, "the target enrolled again")
            }
            Ok(None) => self.sessions.end(target, "the agent has no record any more"),
            // Without the store's answer no session stays: the agent connects again, and is checked then.
            Err(_) => self.sessions.end(target, "the store does not say whether the agent is banned"),
        }
    }

    /// Reads the records that were missed.
    async fn catch_up(&self, last: &mut u64, to: u64) {
        while let Err(error) = self.try_catch_up(last, to).await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "cannot read the changes of other brokers, will retry"
            );
            self.reporter.failed(boottime(), error_chain(&error));
            if matches!(error, StoreError::Corrupt { .. }) {
                self.look_everywhere();
                *last = to;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn try_catch_up(&self, last: &mut u64, to: u64) -> Result<(), StoreError> {
        if to.saturating_sub(*last) > MAX_MISSED {
            self.look_everywhere();
            for agent in self.sessions.targets() {
                self.look_at_agent(&agent).await;
            }
            *last = to;
        }
        while *last < to {
            let lines = self.store.audit_lines(*last, PAGE).await?;
            let Some((newest, _)) = lines.last() else { return Ok(()) };
            let newest = *newest;
            let records = lines.iter().filter_map(|(_, line)| serde_json::from_str::<AuditRecord>(line).ok());
            let (mut grants, mut agents) = (BTreeSet::new(), BTreeSet::new());
            let (mut policies, mut principals) = (false, false);
            for AuditRecord { event, .. } in records {
                policies |= event.action.starts_with("policy.");
                principals |=
                    event.action.starts_with("principal.") || event.action.starts_with("authority.");
                grants.extend(event.grant);
                agents.extend(event.target.filter(|_| event.action.starts_with("agent.")));
            }
            if policies {
                self.wakeups.wake_all(self.cluster.leases.targets());
            }
            if principals {
                self.revocations.look();
            }
            for grant in grants {
                self.look_at_grant(grant).await?;
            }
            for agent in agents {
                self.look_at_agent(&agent).await;
            }
            *last = newest;
        }
        Ok(())
    }

    async fn look_at_grant(&self, id: GrantId) -> Result<(), StoreError> {
        self.grant_changes.changed(id);
        if let Some(grant) = self.store.genuine::<Grant>(&id).await? {
            self.wakeups.wake_all(grant.record.targets().into_iter().cloned());
        }
        Ok(())
    }

    fn look_everywhere(&self) {
        self.grant_changes.missed();
        self.revocations.look();
        self.catch_up_later();
        self.wakeups.wake_all(self.cloud.targets());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use postern_core::audit::AuditEvent;
    use postern_store::coordination::ChangedRecord;
    use postern_store::testing::fake_peer::FakePeer;
    use postern_store::testing::memory::Memory;
    use postern_store::{Expect, Transaction};

    use super::*;
    use crate::clock::Clock;
    use crate::signals::rounds::Task;
    use crate::testing::builders::{a_grant, at};
    use crate::testing::reporter;

    /// A follower of this store, with the sender of its head.
    fn a_follower(store: &Memory) -> (Follower, watch::Sender<u64>) {
        let (clock, wakeups) = (Clock::start(at(0)), Arc::new(Wakeups::default()));
        let cluster = Cluster::of(Arc::new(FakePeer::default()));
        let (head, heads) = watch::channel(0);
        let follower = Follower {
            cluster: Arc::clone(&cluster),
            store: store.store(),
            sessions: AgentSessions::new(clock, Arc::clone(&wakeups)),
            cloud: CloudLayer::new(BTreeMap::new(), clock, Arc::clone(&wakeups), Arc::clone(&cluster.leases)),
            wakeups,
            grant_changes: GrantChanges::default(),
            revocations: Arc::default(),
            head: heads,
            reporter: reporter(Task::Follower),
        };
        (follower, head)
    }

    #[tokio::test]
    async fn i8_an_agent_that_enrolled_again_at_another_broker_is_not_forgotten_here() {
        let (follower, _head) = a_follower(&Memory::default());
        let target: TargetId = "host:vm-1".parse().unwrap();
        let sessions = Arc::clone(&follower.sessions);
        sessions.set_forgotten(&target, Some(at(0)));
        assert!(sessions.report(&target).detail.contains("forgotten"));
        let record = ChangedRecord { kind: AgentRecord::KIND.name.to_owned(), key: target.to_string() };
        let (records, targets) = (vec![record], Vec::new());
        let changed = CommittedChange { before: 0, after: 1, own: false, records, targets };
        follower.changed(changed, &mut 0).await;
        assert!(!sessions.report(&target).detail.contains("forgotten"));
    }

    #[tokio::test]
    async fn i8_a_change_whose_event_is_lost_is_found_in_the_audit_log() {
        let store = Memory::default();
        let (follower, head) = a_follower(&store);
        let (wakeups, mut changes) = (Arc::clone(&follower.wakeups), follower.grant_changes.watch());
        let grant = a_grant().build();
        let event = AuditEvent::done(at(0), "another", "grant.requested").on_grant(grant.id);
        let seq = store
            .commit(Transaction::default().put_grant(grant.clone(), Expect::Absent).audit(event))
            .await
            .unwrap()
            .seq;
        let found = async {
            // A renewal finds a newer head, and after that nothing happens any more.
            tokio::time::sleep(Duration::from_millis(100)).await;
            head.send_replace(seq);
            let woken = wakeups.take().await;
            (woken, changes.recv().await.unwrap())
        };
        let found = tokio::select! {
            found = found => found,
            ended = follower.follow() => panic!("{ended:?}"),
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("it is not found"),
        };
        let expected = (
            grant.targets().into_iter().cloned().collect(),
            crate::signals::grant_changes::GrantChange::Of(grant.id),
        );
        assert_eq!(found, expected);
    }
}
