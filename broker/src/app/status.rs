//! The status, for operators: the brokers, the agents, and the grants that wait for a layer.
//!
//! Operators ask for it when something is wrong. So it is answered while the store is away too, with what this broker knows
//! by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::Head;
use postern_core::plan::{Layer, Observed};
use postern_core::{Grant, GrantId, GrantState, TargetId, Window};
use postern_store::coordination::MemberInfo;
use postern_store::{AgentRecord, CloneAlarm};

use super::{App, Error};
use crate::clock::boottime;
use crate::cluster::peer_status::PeerStatus;
use crate::readiness;
use crate::signals::rounds::Round;

/// The time after which a close counts as stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);
/// The number of stuck closes that an answer lists one by one.
pub const MAX_STUCK_CLOSES: usize = 20;
/// The number of agents with a clone that an answer lists one by one.
pub const MAX_CLONED_AGENTS: usize = 20;
/// The time that the store has to answer.
const STORE_TIMEOUT: Duration = Duration::from_secs(3);

/// The status of the brokers and their grants.
#[derive(Debug)]
pub struct Overview {
    /// The reasons why this broker is not ready, one line for each part.
    pub not_ready: Vec<String>,
    /// The tasks of this broker.
    pub tasks: Vec<TaskStatus>,
    /// The part that the store answers, or the reason why it does not answer.
    pub stored: Result<StoredStatus, String>,
}

/// The part of the status that comes from the store.
#[derive(Debug)]
pub struct StoredStatus {
    /// The brokers, by name.
    pub replicas: Vec<MemberInfo>,
    /// The head of the audit log.
    pub head: Head,
    /// The agents.
    pub agents: AgentCounts,
    /// The agents with a clone, by target, at most [`MAX_CLONED_AGENTS`].
    pub cloned_agents: Vec<(TargetId, CloneAlarm)>,
    /// The grants that are not over.
    pub grants: GrantCounts,
    /// The stuck closes, the oldest first; at most [`MAX_STUCK_CLOSES`].
    pub stuck: Vec<StuckClose>,
    /// The number of stuck closes in all.
    pub stuck_total: usize,
    /// The grant that has been opening or closing for the longest.
    pub oldest: Option<Unconfirmed>,
}

/// A task of this broker, with its last round.
#[derive(Debug, PartialEq, Eq)]
pub struct TaskStatus {
    /// The name of the task.
    pub task: &'static str,
    /// The period; none if the task waits for events.
    pub every: Option<Duration>,
    /// The time since its last round; none before the first.
    pub age: Option<Duration>,
    /// The result of that round: `ok`, or the error on one line; empty before the first.
    pub result: String,
    /// Set if the task has not gone round for three of its periods.
    pub overdue: bool,
    /// Set if its rounds have failed for longer than one period.
    pub failing: bool,
}

/// Agents, counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AgentCounts {
    /// The number that are enrolled and not banned.
    pub enrolled: usize,
    /// The number that have a session at a broker.
    pub connected: u64,
    /// The number that are banned.
    pub banned: usize,
    /// The number that have a clone.
    pub cloned: usize,
}

/// Grants that are not over, counted by state.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GrantCounts {
    /// The number that wait for an approval.
    pub pending_approval: u64,
    /// The number that open.
    pub opening: u64,
    /// The number that are active.
    pub active: u64,
    /// The number that close.
    pub closing: u64,
}

/// A grant that should have closed.
#[derive(Debug, PartialEq, Eq)]
pub struct StuckClose {
    /// The grant.
    pub grant: GrantId,
    /// The moment from which it has had to close.
    pub since: Timestamp,
    /// The time since then.
    pub age: Duration,
    /// Its targets.
    pub targets: Vec<TargetId>,
    /// The layers of its targets that have not confirmed, each with the reason.
    pub layers: Vec<(TargetId, Layer, String)>,
}

/// A grant that waits for a layer.
#[derive(Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// The grant.
    pub grant: GrantId,
    /// Reports that it closes; otherwise it opens.
    pub closing: bool,
    /// The moment from which it waits.
    pub since: Timestamp,
    /// The time since then.
    pub age: Duration,
}

/// Returns the status.
pub async fn overview(app: &App) -> Overview {
    let stored = answered(stored(app)).await;
    let now = boottime();
    let tasks = app.rounds.list().into_iter().map(|round| task_status(round, now));
    Overview { not_ready: readiness::in_words(&app.readiness.reasons()), tasks: tasks.collect(), stored }
}

fn task_status(round: Round, now: Duration) -> TaskStatus {
    TaskStatus {
        task: round.task.word(),
        every: round.every,
        age: round.last.map(|_| round.age(now)),
        overdue: round.is_overdue(now),
        failing: round.is_failing(now),
        result: match (round.last, round.result) {
            (None, _) => String::new(),
            (Some(_), Ok(())) => "ok".to_owned(),
            (Some(_), Err(error)) => error,
        },
    }
}

/// Returns the store's answer, or the reason why there is none, on one line.
async fn answered<T>(look: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match tokio::time::timeout(STORE_TIMEOUT, look).await {
        Ok(answer) => answer.map_err(|error| format!("{:#}", anyhow::Error::from(error)).replace('\n', " ")),
        Err(_) => Err(format!("it did not answer within {} s", STORE_TIMEOUT.as_secs())),
    }
}

async fn stored(app: &App) -> Result<StoredStatus, Error> {
    let head = app.store.audit_head().await?;
    let replicas = app.cluster.coordination.list_members().await?;
    let agents = app.store.agents().await?.into_iter().map(|agent| agent.record);
    let agents: Vec<AgentRecord> = agents.filter(|agent| agent.forgotten.is_none()).collect();
    let grants: Vec<Grant> = app.store.open_grants().await?.into_iter().map(|grant| grant.record).collect();
    let now = app.clock.now();
    let stuck = stuck(&grants, now);
    let shown = &stuck[..stuck.len().min(MAX_STUCK_CLOSES)];
    let targets: BTreeSet<&TargetId> = shown.iter().flat_map(|(grant, _)| grant.targets()).collect();
    let peers = app.peer_status(targets).await?;
    let observe = |grant: &Grant, window: &Window, layer| app.observer.observe(grant, window, layer, &peers);
    let detail = |target: &TargetId, layer| detail(app, target, layer, &peers);
    let closes = shown.iter().map(|(grant, since)| StuckClose {
        grant: grant.id,
        since: *since,
        age: span(*since, now),
        targets: grant.targets().into_iter().cloned().collect(),
        layers: unconfirmed_layers(grant, observe, detail),
    });
    Ok(StoredStatus {
        agents: count_agents(&agents, &replicas),
        cloned_agents: cloned(&agents).take(MAX_CLONED_AGENTS).collect(),
        grants: count_grants(&grants),
        stuck: closes.collect(),
        stuck_total: stuck.len(),
        oldest: oldest(&grants, now),
        replicas,
        head,
    })
}

/// Returns the detail of a layer's report on a target.
fn detail(app: &App, target: &TargetId, layer: Layer, peers: &PeerStatus) -> String {
    if !app.cluster.leases.holds(target) && peers.of(target).is_none() {
        return "no broker works on this target".into();
    }
    app.observer.report(target, layer, peers).detail
}

/// Returns the closes that take too long, and when each began; the oldest first.
fn stuck(grants: &[Grant], now: Timestamp) -> Vec<(&Grant, Timestamp)> {
    let mut stuck: Vec<_> =
        grants.iter().filter_map(|grant| Some((grant, grant.closes_since(now)?))).collect();
    stuck.retain(|(_, since)| span(*since, now) > STUCK_AFTER);
    stuck.sort_by_key(|(grant, since)| (*since, grant.id));
    stuck
}

/// Returns the layers that have not confirmed that a grant is closed, each once, with the reason.
fn unconfirmed_layers(
    grant: &Grant,
    observe: impl Fn(&Grant, &Window, Layer) -> Observed,
    detail: impl Fn(&TargetId, Layer) -> String,
) -> Vec<(TargetId, Layer, String)> {
    let mut waiting = BTreeMap::new();
    for window in &grant.windows {
        for layer in Layer::ALL.into_iter().filter(|layer| layer.required_by(window)) {
            let (reason, otherwise) = match observe(grant, window, layer) {
                Observed::Absent | Observed::Unreachable { may_hold: false, .. } => continue,
                Observed::Unreachable { reason, .. } | Observed::Refused { reason } => (reason, ""),
                Observed::Open => (detail(&window.target, layer), "it is still open"),
                Observed::Unconfirmed => (detail(&window.target, layer), "it has not answered yet"),
            };
            let reason = if reason.is_empty() { otherwise.to_owned() } else { reason };
            waiting.entry((window.target.clone(), layer)).or_insert(reason);
        }
    }
    waiting.into_iter().map(|((target, layer), reason)| (target, layer, reason)).collect()
}

fn oldest(grants: &[Grant], now: Timestamp) -> Option<Unconfirmed> {
    let waits = |grant: &Grant| {
        let closes = grant.closes_since(now);
        let opens = (grant.state == GrantState::Opening).then_some(grant.requested_at);
        let since = closes.or(opens)?;
        Some(Unconfirmed { grant: grant.id, closing: closes.is_some(), since, age: span(since, now) })
    };
    grants.iter().filter_map(waits).min_by_key(|waiting| (waiting.since, waiting.grant))
}

fn count_agents(agents: &[AgentRecord], replicas: &[MemberInfo]) -> AgentCounts {
    let banned = agents.iter().filter(|agent| agent.banned.is_some()).count();
    let connected = replicas.iter().map(|cluster| cluster.agents).sum();
    AgentCounts { enrolled: agents.len() - banned, connected, banned, cloned: cloned(agents).count() }
}

/// Returns the agents with a clone.
fn cloned(agents: &[AgentRecord]) -> impl Iterator<Item = (TargetId, CloneAlarm)> {
    agents.iter().filter_map(|agent| Some((agent.target.clone(), agent.cloned.clone()?)))
}

fn count_grants(grants: &[Grant]) -> GrantCounts {
    let mut counts = GrantCounts::default();
    for grant in grants {
        match grant.state {
            GrantState::PendingApproval => counts.pending_approval += 1,
            GrantState::Opening => counts.opening += 1,
            GrantState::Active => counts.active += 1,
            GrantState::Closing(_) => counts.closing += 1,
            GrantState::Closed(_) | GrantState::Denied { .. } | GrantState::Failed { .. } => {}
        }
    }
    counts
}

/// Returns the time from `since` to `now`, or zero if `since` is later.
fn span(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
