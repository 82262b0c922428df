//! The state of the brokers as programs see it, and the problems in it that need attention.

use jiff::Timestamp;
use postern_proto::v1;
use serde::Serialize;

use super::{CloneAlarmJson, SecondsJson, time, wire::seconds, words};
use crate::output::time::span;

/// The difference between a broker's clock and its store's above which the clock needs attention.
const CLOCK_TOLERANCE_MS: u64 = 1000;

/// The state of the brokers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StatusJson {
    pub replica: String,
    pub ready: bool,
    pub not_ready: Vec<String>,
    pub attention: Vec<String>,
    pub replicas: Vec<ReplicaJson>,
    pub store: StoreJson,
    pub agents: Option<AgentCountsJson>,
    pub grants: Option<GrantCountsJson>,
    pub stuck_closes: Vec<StuckCloseJson>,
    pub stuck_closes_total: u64,
    pub oldest_unconfirmed: Option<UnconfirmedJson>,
    pub authority: Option<AuthorityJson>,
    pub tasks: Vec<TaskJson>,
    pub cloned_agents: Vec<ClonedAgentJson>,
}

/// A task of the broker that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TaskJson {
    pub task: String,
    pub every: Option<SecondsJson>,
    pub age: Option<SecondsJson>,
    pub result: String,
    pub overdue: bool,
    pub failing: bool,
}

/// The certificate authority of the broker that answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AuthorityJson {
    pub root: Option<CaCertificateJson>,
    pub intermediate: Option<CaCertificateJson>,
    pub root_key: &'static str,
    pub warnings: Vec<String>,
}

/// A certificate of the authority itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct CaCertificateJson {
    pub subject: String,
    pub serial: String,
    pub not_before: Option<Timestamp>,
    pub not_after: Option<Timestamp>,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ReplicaJson {
    pub name: String,
    pub version: String,
    pub started_at: Option<Timestamp>,
    pub agents: u64,
    pub targets: u64,
    pub failing_clouds: u64,
    pub ending: bool,
    pub not_ready: Vec<String>,
    pub clock_ahead_ms: i64,
    pub answers: bool,
    pub warnings: Vec<String>,
}

/// The store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StoreJson {
    pub kind: &'static str,
    pub error: String,
    pub audit_records: u64,
    pub audit_head: String,
}

/// The counts of agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct AgentCountsJson {
    pub enrolled: u64,
    pub connected: u64,
    pub banned: u64,
    pub cloned: u64,
}

/// An agent whose identity two machines hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ClonedAgentJson {
    pub target: String,
    pub alarm: Option<CloneAlarmJson>,
}

/// The counts of grants that are not over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct GrantCountsJson {
    pub pending_approval: u64,
    pub opening: u64,
    pub active: u64,
    pub closing: u64,
}

/// A grant that should have closed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StuckCloseJson {
    pub grant_id: String,
    pub since: Option<Timestamp>,
    pub age: Option<SecondsJson>,
    pub targets: Vec<String>,
    pub layers: Vec<UnconfirmedLayerJson>,
}

/// A layer that has not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UnconfirmedLayerJson {
    pub target: String,
    pub layer: &'static str,
    pub detail: String,
}

/// A grant that waits for a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct UnconfirmedJson {
    pub grant_id: String,
    pub closing: bool,
    pub since: Option<Timestamp>,
    pub age: Option<SecondsJson>,
}

impl From<v1::GetStatusResponse> for StatusJson {
    fn from(wire: v1::GetStatusResponse) -> Self {
        let mut status = Self {
            replica: wire.replica,
            ready: wire.ready,
            not_ready: wire.not_ready,
            attention: Vec::new(),
            replicas: wire.replicas.into_iter().map(ReplicaJson::from).collect(),
            store: wire.store.unwrap_or_default().into(),
            agents: wire.agents.map(AgentCountsJson::from),
            grants: wire.grants.map(GrantCountsJson::from),
            stuck_closes: wire.stuck_closes.into_iter().map(StuckCloseJson::from).collect(),
            stuck_closes_total: wire.stuck_closes_total,
            oldest_unconfirmed: wire.oldest_unconfirmed.map(UnconfirmedJson::from),
            authority: wire.authority.map(AuthorityJson::from),
            tasks: wire.tasks.into_iter().map(TaskJson::from).collect(),
            cloned_agents: wire.cloned_agents.into_iter().map(ClonedAgentJson::from).collect(),
        };
        status.attention = attention(&status);
        status
    }
}

/// Returns the problems that need an operator, one line each; none if all is well.
fn attention(status: &StatusJson) -> Vec<String> {
    let mut found = Vec::new();
    let not_ready = |name: &str, why: &[String]| format!("{name} is not ready: {}", why.join("; "));
    let answers_and_ends = status.replicas.iter().any(|replica| replica.answers && replica.ending);
    if !status.ready && !answers_and_ends {
        found.push(not_ready(&status.replica, &status.not_ready));
    }
    if status.store.error.is_empty() {
        // A broker that ends is no problem while another is ready.
        if !status.replicas.iter().any(|replica| replica.not_ready.is_empty() && !replica.ending) {
            found.push("no broker is ready".to_owned());
        }
    } else {
        found.push(format!("the store does not answer: {}", status.store.error));
    }
    for replica in &status.replicas {
        let name = &replica.name;
        if !replica.answers && !replica.ending && !replica.not_ready.is_empty() {
            found.push(not_ready(name, &replica.not_ready));
        }
        if replica.failing_clouds > 0 {
            let count = replica.failing_clouds;
            found.push(format!("cloud calls for {count} of the targets of {name} keep failing"));
        }
        let off = replica.clock_ahead_ms.unsigned_abs();
        if off > CLOCK_TOLERANCE_MS {
            let side = if replica.clock_ahead_ms > 0 { "ahead of" } else { "behind" };
            found.push(format!("the clock of {name} is {off} ms {side} the store's"));
        }
    }
    found.extend(authority_warnings(status));
    found.extend(cloned_agents(status));
    found.extend(status.tasks.iter().filter_map(|task| task_problem(status, task)));
    match status.stuck_closes_total {
        0 => {}
        1 => found.push("1 grant has not closed in time".to_owned()),
        count => found.push(format!("{count} grants have not closed in time")),
    }
    found
}

/// Returns the agents whose identity two machines hold, each with the remedy.
fn cloned_agents(status: &StatusJson) -> Vec<String> {
    let remedy = "ban it, or enrol it again with a join token";
    let line = |agent: &ClonedAgentJson| {
        let reason = agent.alarm.as_ref().map(|alarm| alarm.reason.as_str()).unwrap_or_default();
        format!("the agent of {} has a clone ({reason}): {remedy}", agent.target)
    };
    let mut lines: Vec<String> = status.cloned_agents.iter().map(line).collect();
    let all = status.agents.as_ref().map_or(0, |agents| agents.cloned);
    match all.saturating_sub(u64::try_from(lines.len()).unwrap_or(u64::MAX)) {
        0 => {}
        more => lines.push(format!("{more} more agents have a clone: `postern agents list` shows them")),
    }
    lines
}

/// Returns the brokers' warnings about the life of their authorities, each with the broker's name. A broker that is
/// not ready because of it is already in the list.
fn authority_warnings(status: &StatusJson) -> Vec<String> {
    let mut by_broker: Vec<(&String, &Vec<String>)> = Vec::new();
    if let Some(authority) = &status.authority {
        by_broker.push((&status.replica, &authority.warnings));
    }
    let others = status.replicas.iter().filter(|replica| !replica.answers && replica.not_ready.is_empty());
    by_broker.extend(others.map(|replica| (&replica.name, &replica.warnings)));
    let lines = by_broker
        .into_iter()
        .flat_map(|(name, warnings)| warnings.iter().map(move |warning| format!("{name}: {warning}")));
    lines.collect()
}

/// Returns the problem of a task that is overdue or keeps failing, unless another line names the cause of its failures.
fn task_problem(status: &StatusJson, task: &TaskJson) -> Option<String> {
    let name = format!("the task {:?} of {}", task.task, status.replica);
    if task.overdue {
        return Some(match task.age {
            Some(SecondsJson(age)) => format!("{name} is overdue: its last round was {} ago", span(age)),
            None => format!("{name} is overdue: it has not gone round yet"),
        });
    }
    let is_explained = match task.task.as_str() {
        _ if !status.ready || !status.store.error.is_empty() => true,
        "cloud layer" => status.replicas.iter().any(|replica| replica.answers && replica.failing_clouds > 0),
        "authority" => status.authority.as_ref().is_some_and(|authority| !authority.warnings.is_empty()),
        _ => false,
    };
    (task.failing && !is_explained).then(|| format!("{name} keeps failing: {}", task.result))
}

impl From<v1::TaskStatus> for TaskJson {
    fn from(wire: v1::TaskStatus) -> Self {
        let v1::TaskStatus { task, every, age, result, overdue, failing } = wire;
        Self { task, every: seconds(every), age: seconds(age), result, overdue, failing }
    }
}

impl From<v1::AuthorityStatus> for AuthorityJson {
    fn from(wire: v1::AuthorityStatus) -> Self {
        Self {
            root_key: words::root_key(wire.root_key()),
            root: wire.root.map(CaCertificateJson::from),
            intermediate: wire.intermediate.map(CaCertificateJson::from),
            warnings: wire.warnings,
        }
    }
}

impl From<v1::CaCertificate> for CaCertificateJson {
    fn from(wire: v1::CaCertificate) -> Self {
        Self {
            subject: wire.subject,
            serial: wire.serial,
            not_before: time(wire.not_before),
            not_after: time(wire.not_after),
        }
    }
}

impl From<v1::Replica> for ReplicaJson {
    fn from(wire: v1::Replica) -> Self {
        Self {
            name: wire.name,
            version: wire.version,
            started_at: time(wire.started_at),
            agents: wire.agents,
            targets: wire.targets,
            failing_clouds: wire.failing_clouds,
            ending: wire.ending,
            not_ready: wire.not_ready,
            clock_ahead_ms: wire.clock_ahead_ms,
            answers: wire.answers,
            warnings: wire.warnings,
        }
    }
}

impl From<v1::StoreStatus> for StoreJson {
    fn from(wire: v1::StoreStatus) -> Self {
        Self {
            kind: words::store_kind(wire.kind()),
            error: wire.error,
            audit_records: wire.audit_records,
            audit_head: wire.audit_head,
        }
    }
}

impl From<v1::AgentCounts> for AgentCountsJson {
    fn from(wire: v1::AgentCounts) -> Self {
        let v1::AgentCounts { enrolled, connected, banned, cloned } = wire;
        Self { enrolled, connected, banned, cloned }
    }
}

impl From<v1::ClonedAgent> for ClonedAgentJson {
    fn from(wire: v1::ClonedAgent) -> Self {
        Self { target: wire.target, alarm: wire.alarm.map(CloneAlarmJson::from) }
    }
}

impl From<v1::GrantCounts> for GrantCountsJson {
    fn from(wire: v1::GrantCounts) -> Self {
        let v1::GrantCounts { pending_approval, opening, active, closing } = wire;
        Self { pending_approval, opening, active, closing }
    }
}

impl From<v1::StuckClose> for StuckCloseJson {
    fn from(wire: v1::StuckClose) -> Self {
        Self {
            grant_id: wire.grant_id,
            since: time(wire.since),
            age: seconds(wire.age),
            targets: wire.targets,
            layers: wire.layers.into_iter().map(UnconfirmedLayerJson::from).collect(),
        }
    }
}

impl From<v1::UnconfirmedLayer> for UnconfirmedLayerJson {
    fn from(wire: v1::UnconfirmedLayer) -> Self {
        Self { layer: words::layer(wire.layer()), target: wire.target, detail: wire.detail }
    }
}

impl From<v1::UnconfirmedGrant> for UnconfirmedJson {
    fn from(wire: v1::UnconfirmedGrant) -> Self {
        Self {
            grant_id: wire.grant_id,
            closing: wire.closing,
            since: time(wire.since),
            age: seconds(wire.age),
        }
    }
}

#[cfg(test)]
pub(in crate::output) mod tests;
