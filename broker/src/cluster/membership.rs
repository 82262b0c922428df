//! The membership: this broker renews it every second, and joins again where it has ended. The answer to a renewal names the
//! members that are gone, and this broker takes over their targets. See [the page of the cluster](super).

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use postern_core::TargetId;
use postern_runtime::error_chain::error_chain;
use postern_store::StoreError;
use postern_store::coordination::{Claim, MemberInfo, RenewalReply};
use tokio::sync::watch;

use super::Cluster;
use crate::clock::{Clock, boottime};
use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::readiness::{self, Readiness};
use crate::signals::parts::MEMBERSHIP;
use crate::signals::rounds::RoundReporter;
use crate::signals::{ShutdownPhase, Wakeups};
use crate::telemetry;

/// The pause between two renewals.
pub const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of a renewal.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(2);
/// The time for which agents stay with a broker that has lost its store: other brokers may have it.
const AGENTS_STAY: Duration = Duration::from_secs(15);
/// The silence after which an agent goes to another broker: a broker that hung for longer has no agents.
const HUNG_AFTER: Duration = Duration::from_secs(9);
/// The difference between the clocks of a broker and its store at which the log says so.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(1);

/// Keeps this broker a member.
pub struct MembershipKeeper {
    /// The leases, and the other brokers.
    pub cluster: Arc<Cluster>,
    /// The agents that are connected here.
    pub sessions: Arc<AgentSessions>,
    /// The cloud layer.
    pub cloud: Arc<CloudLayer>,
    /// Wakes the reconciler.
    pub wakeups: Arc<Wakeups>,
    /// The broker's clock.
    pub clock: Clock,
    /// The replica's name.
    pub name: String,
    /// Receives the number of the newest audit record.
    pub head: watch::Sender<u64>,
    /// The reasons for which this broker is not ready.
    pub readiness: Readiness,
    /// The source of the warnings that other brokers show for this one.
    pub warnings: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// The phase of the shutdown: a broker that shuts down says so, and takes nothing over.
    pub shutdown: watch::Receiver<ShutdownPhase>,
}

/// The state of the membership so far.
struct MembershipState {
    info: MemberInfo,
    /// The time at which the last renewal that was answered was sent.
    renewed: Duration,
    /// Set once a renewal was answered since this broker started: a broker that joins after that was a member before.
    was_member: bool,
    is_lost: bool,
    agents_left: bool,
    clock_said: bool,
    /// The number of its leases that were taken away so far, by the store's count.
    losses: u64,
}

impl MembershipState {
    fn of(info: MemberInfo) -> Self {
        Self {
            info,
            renewed: boottime(),
            was_member: false,
            is_lost: false,
            agents_left: false,
            clock_said: false,
            losses: 0,
        }
    }
}

impl MembershipKeeper {
    /// Renews the membership until the process ends. `ready` is sent after the first renewal, before which nothing else starts.
    ///
    /// # Errors
    /// The store was written by a newer broker, or was moved.
    pub async fn keep(
        self,
        ready: tokio::sync::oneshot::Sender<()>,
        reporter: RoundReporter,
    ) -> anyhow::Result<()> {
        let info = MemberInfo {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_at: self.clock.now(),
            ..MemberInfo::default()
        };
        let mut state = MembershipState::of(info);
        let mut ready = Some(ready);
        let mut before = boottime();
        loop {
            let sent = boottime();
            if sent.saturating_sub(std::mem::replace(&mut before, sent)) > HUNG_AFTER {
                // Sessions that look alive are not: a claim on their targets would take them from the brokers with the agents.
                self.sessions.disconnect_all("this broker hung; connect to another");
            }
            let info = self.info(&state);
            let reply = tokio::time::timeout(RENEWAL_TIMEOUT, self.cluster.coordination.renew(&info)).await;
            match reply {
                Ok(Ok(reply)) => {
                    self.cluster.leases.believe_from(sent);
                    self.renewed(&mut state, sent, reply).await;
                    reporter.succeeded(boottime());
                    if let Some(ready) = ready.take() {
                        // The start-up that waits for it may have failed meanwhile.
                        ready.send(()).ok();
                    }
                }
                Ok(Err(error @ (StoreError::NewerSchema { .. } | StoreError::Migration(_)))) => {
                    return Err(error.into());
                }
                Ok(Err(error)) => {
                    reporter.failed(boottime(), error_chain(&error));
                    self.not_renewed(&mut state, &error.to_string());
                }
                Err(_) => {
                    let late = "there was no answer in time";
                    reporter.failed(boottime(), late);
                    self.not_renewed(&mut state, late);
                }
            }
            tokio::time::sleep(RENEWAL_INTERVAL.saturating_sub(boottime().saturating_sub(sent))).await;
        }
    }

    fn info(&self, state: &MembershipState) -> MemberInfo {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        MemberInfo {
            agents: count(self.sessions.targets().len()),
            targets: count(self.cluster.leases.len()),
            stuck: count(self.cloud.stuck()),
            ending: self.is_ending(),
            not_ready: readiness::in_words(&self.readiness.reasons()),
            warnings: (self.warnings)(),
            ..state.info.clone()
        }
    }

    fn is_ending(&self) -> bool {
        *self.shutdown.borrow() > ShutdownPhase::Running
    }

    async fn renewed(&self, state: &mut MembershipState, sent: Duration, reply: RenewalReply) {
        let was_member = std::mem::replace(&mut state.was_member, true);
        if reply.joined {
            // The membership before is gone, and with it every lease: the targets of agents that are still here come first.
            let lost = self.cluster.leases.forget();
            // Logged also if it holds no lease: the events of the brokers that took them may have come first.
            if was_member {
                tracing::warn!(targets = lost.len(), "joined the other brokers again");
            }
            self.cloud.let_go_of_all();
            self.wakeups.wake_all(lost);
            self.wakeups.wake_all(self.sessions.targets());
        } else if state.is_lost {
            tracing::info!("reached the store again");
        }
        (state.renewed, state.is_lost, state.agents_left) = (sent, false, false);
        self.readiness.clear(MEMBERSHIP);
        if let Some(store_time) = reply.store_time {
            let ahead = self.clock.now().duration_since(store_time);
            state.info.clock_ahead_ms = i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
            telemetry::clock_ahead_of_store(ahead);
            if ahead.abs() > CLOCK_TOLERANCE && !state.clock_said {
                state.clock_said = true;
                let seconds_ahead = ahead.as_secs_f64();
                tracing::warn!(
                    seconds_ahead,
                    "this broker's clock differs from the store's: ends differ by as much between brokers"
                );
            }
        }
        if std::mem::replace(&mut state.losses, reply.losses) != reply.losses && !reply.joined {
            self.compare_leases().await;
        }
        self.head.send_if_modified(|head| std::mem::replace(head, reply.head) != reply.head);
        if !self.is_ending() {
            for gone in reply.gone {
                self.take_over(&gone).await;
            }
        }
    }

    /// Compares the leases with the store's: some were taken away, and the events may have been lost.
    async fn compare_leases(&self) {
        match self.cluster.coordination.held().await {
            Ok(held) => {
                let lost = self.cluster.leases.keep_only(&held);
                for target in &lost {
                    self.cloud.let_go(target);
                    self.sessions.doubt(target);
                }
                self.wakeups.wake_all(lost);
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot compare the leases with the store's"
                );
            }
        }
    }

    /// Takes over targets of a member that is gone; the members that are left share them.
    async fn take_over(&self, gone: &str) {
        loop {
            let taken = match self.cluster.coordination.take_over(gone).await {
                Ok(taken) if taken.is_empty() => return,
                Ok(taken) => taken,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot take over from a broker that is gone, will retry"
                    );
                    return;
                }
            };
            tracing::info!(targets = taken.len(), gone, "took over from a broker that is gone");
            let targets: Vec<TargetId> = taken.iter().map(|taken| taken.lease.target.clone()).collect();
            for taken in taken {
                self.cluster.leases.took(taken, Claim::Free);
            }
            self.wakeups.wake_all(targets);
        }
    }

    fn not_renewed(&self, state: &mut MembershipState, error: &str) {
        if self.cluster.leases.is_member() {
            return;
        }
        if !state.is_lost {
            state.is_lost = true;
            self.readiness.set(MEMBERSHIP, error);
            tracing::error!(
                error,
                "lost the store: this broker opens nothing, and closes open windows at their end"
            );
        }
        let silent = boottime().saturating_sub(state.renewed);
        if silent > AGENTS_STAY && !state.agents_left {
            state.agents_left = true;
            // Another broker may have the store: the agents look for one.
            self.sessions.end_all("this broker has lost touch with its store; another may have it");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use postern_store::testing::fake_peer::FakePeer;
    use tracing::Level;

    use super::*;
    use crate::testing::builders::at;
    use crate::testing::captured_log::capture_log;

    fn a_member() -> MembershipKeeper {
        let (clock, wakeups) = (Clock::start(at(0)), Arc::new(Wakeups::default()));
        let cluster = Cluster::of(Arc::new(FakePeer::default()));
        MembershipKeeper {
            cluster: Arc::clone(&cluster),
            sessions: AgentSessions::new(clock, Arc::clone(&wakeups)),
            cloud: CloudLayer::new(BTreeMap::new(), clock, Arc::clone(&wakeups), Arc::clone(&cluster.leases)),
            wakeups,
            clock,
            name: "broker-1".to_owned(),
            head: watch::channel(0).0,
            readiness: Readiness::default(),
            warnings: Box::new(Vec::new),
            shutdown: watch::channel(ShutdownPhase::Running).1,
        }
    }

    #[tokio::test]
    async fn i8_a_broker_that_joins_again_says_so_also_where_it_holds_no_lease_any_more() {
        let (logged, _guard) = capture_log(Level::WARN);
        let (member, mut state) = (a_member(), MembershipState::of(MemberInfo::default()));
        let joined = || RenewalReply { joined: true, ..RenewalReply::default() };
        // A broker joins as it opens the store; where its first renewal comes late, it joins once more.
        for first in [RenewalReply::default(), joined()] {
            state = MembershipState::of(MemberInfo::default());
            member.renewed(&mut state, boottime(), first).await;
            member.renewed(&mut state, boottime(), RenewalReply::default()).await;
        }
        assert_eq!(logged.lines(), 0, "a start is no return");
        member.renewed(&mut state, boottime(), joined()).await;
        assert_eq!(logged.lines(), 1);
    }
}
