//! The state of the brokers for people.

use jiff::Timestamp;

use super::{list, or_dash, table};
use crate::output::json::{
    AuthorityJson, CaCertificateJson, ReplicaJson, StatusJson, StuckCloseJson, TaskJson,
};
use crate::output::printable;
use crate::output::time::{dash, span, utc, when};

/// Draws the facts, the brokers, the tasks, the stuck closes, and the problems that need attention.
pub(crate) fn status(status: &StatusJson, now: Timestamp) -> String {
    let mut parts = vec![facts(status), replicas(&status.replicas, now), tasks(&status.tasks)];
    if !status.stuck_closes.is_empty() {
        parts.push(stuck_closes(status));
    }
    parts.push(attention(&status.attention));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

fn facts(status: &StatusJson) -> String {
    let store = match status.store.error.as_str() {
        "" => format!("{}, {} audit records", status.store.kind, status.store.audit_records),
        error => format!("{}, does not answer: {error}", status.store.kind),
    };
    let agents = status.agents.as_ref().map(|agents| {
        let cloned = match agents.cloned {
            0 => String::new(),
            count => format!(", {count} with a clone"),
        };
        format!(
            "{} enrolled, {} connected, {} banned{cloned}",
            agents.enrolled, agents.connected, agents.banned
        )
    });
    let grants = status.grants.as_ref().map(|grants| {
        let waiting = match grants.pending_approval {
            0 => String::new(),
            count => format!(", {count} waiting for an approval"),
        };
        format!("{} opening, {} active, {} closing{waiting}", grants.opening, grants.active, grants.closing)
    });
    let oldest = status.oldest_unconfirmed.as_ref().map(|oldest| {
        let doing = if oldest.closing { "closing" } else { "opening" };
        let age = oldest.age.map_or_else(dash, |age| span(age.0));
        format!("{} {doing} for {age}", oldest.grant_id)
    });
    list([
        ("answered by", format!("{}, {}", status.replica, state(false, &status.not_ready))),
        ("store", store),
        ("audit head", or_dash(&status.store.audit_head)),
        ("agents", agents.unwrap_or_else(dash)),
        ("grants", grants.unwrap_or_else(dash)),
        ("longest wait", oldest.unwrap_or_else(dash)),
        ("authority", status.authority.as_ref().map_or_else(dash, authority)),
    ])
}

fn authority(authority: &AuthorityJson) -> String {
    let end = |certificate: &Option<CaCertificateJson>| {
        certificate.as_ref().and_then(|certificate| certificate.not_after).map_or_else(dash, utc)
    };
    let root_key = authority.root_key.replace('_', " ");
    format!(
        "intermediate until {}, root until {}, root key {root_key}",
        end(&authority.intermediate),
        end(&authority.root)
    )
}

fn replicas(replicas: &[ReplicaJson], now: Timestamp) -> String {
    if replicas.is_empty() {
        return String::new();
    }
    let rows = replicas.iter().map(|replica| {
        [
            replica.name.clone(),
            state(replica.ending, &replica.not_ready),
            replica.agents.to_string(),
            replica.targets.to_string(),
            replica.failing_clouds.to_string(),
            format!("{:+} ms", replica.clock_ahead_ms),
            or_dash(&replica.version),
            when(replica.started_at, now),
        ]
    });
    table(["REPLICA", "STATE", "AGENTS", "TARGETS", "FAILING CLOUDS", "CLOCK", "VERSION", "STARTED"], rows)
}

fn state(ending: bool, not_ready: &[String]) -> String {
    match (ending, not_ready) {
        (true, _) => "ending".to_owned(),
        (false, []) => "ready".to_owned(),
        (false, why) => format!("not ready ({})", why.join("; ")),
    }
}

/// Draws a line for each task of the broker that answers.
fn tasks(tasks: &[TaskJson]) -> String {
    if tasks.is_empty() {
        return String::new();
    }
    let rows = tasks.iter().map(|task| {
        let last = task.age.map_or_else(dash, |age| format!("{} ago", span(age.0)));
        let last = if task.overdue { format!("{last} (overdue)") } else { last };
        [task.task.clone(), last, or_dash(&task.result)]
    });
    table(["TASK", "LAST ROUND", "RESULT"], rows)
}

/// Draws a line for each layer that has not confirmed.
fn stuck_closes(status: &StatusJson) -> String {
    let shown =
        table(["STUCK CLOSE", "FOR", "TARGET", "LAYER", "DETAIL"], status.stuck_closes.iter().flat_map(rows));
    let count = u64::try_from(status.stuck_closes.len()).unwrap_or(u64::MAX);
    match status.stuck_closes_total.saturating_sub(count) {
        0 => shown,
        more => format!("{shown}\n\n{more} newer stuck closes are not shown"),
    }
}

fn rows(close: &StuckCloseJson) -> Vec<[String; 5]> {
    let row = |target: String, layer: &str, detail: &str| {
        let age = close.age.map_or_else(dash, |age| span(age.0));
        [close.grant_id.clone(), age, target, layer.to_owned(), or_dash(detail)]
    };
    if close.layers.is_empty() {
        return vec![row(
            close.targets.join(" "),
            "-",
            "every layer has confirmed; the broker has not recorded it yet",
        )];
    }
    close.layers.iter().map(|layer| row(layer.target.clone(), layer.layer, &layer.detail)).collect()
}

fn attention(lines: &[String]) -> String {
    if lines.is_empty() {
        return "nothing needs attention".to_owned();
    }
    let lines = lines.iter().map(|line| format!("\n  {}", printable(line).replace('\n', "\\n")));
    format!("needs attention:{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests;
