//! The output for people: plain columns without lines or colour, so that people can read, grep and paste them.

mod lockdown;
mod principals;
mod status;

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use jiff::Timestamp;
use postern_core::TargetId;
use postern_core::audit::{AuditRecord, Outcome};

use super::json::{
    AgentJson, AgentsJson, ForgottenJson, GrantJson, GrantsJson, PoliciesJson, PortJson, RequestedJson,
    TargetJson, TargetsJson, TokenJson, TrustedJson, VerifiedJson, WindowJson,
};
use super::time::{dash, exact, relative, utc, when};
use super::{Ids, printable};
pub(crate) use lockdown::{assessment_report, lockdowns};
pub(crate) use principals::{principals, revoked_proofs};
pub(crate) use status::status;

/// Draws a grant with each of its windows.
pub(crate) fn grant(grant: &GrantJson, now: Timestamp, ids: Ids) -> String {
    let state = match grant.reason.as_str() {
        "" => grant.state.to_owned(),
        reason => format!("{} ({reason})", grant.state),
    };
    let mut facts = vec![
        ("grant", grant.id.clone()),
        ("state", state),
        ("who", grant.principal.as_ref().map_or_else(dash, ToString::to_string)),
        ("why", grant.justification.clone()),
        ("asked", when(grant.requested_at, now)),
        ("for", grant.duration.map_or_else(dash, |duration| exact(duration.0))),
        ("opened", when(grant.opened_at, now)),
        ("end", when(grant.not_after, now)),
    ];
    if grant.closed_at.is_some() {
        facts.push(("closed", when(grant.closed_at, now)));
    }
    format!("{}\n\n{}", list(facts), windows(&grant.windows, ids))
}

/// Draws the answer to a request: the grant, and the address that the broker used if the request named no source.
pub(crate) fn requested(requested: &RequestedJson, now: Timestamp, ids: Ids) -> String {
    let shown = grant(&requested.grant, now, ids);
    if !requested.source_from_caller {
        return shown;
    }
    let mut sources: Vec<_> = requested.grant.windows.iter().map(|window| window.source.as_str()).collect();
    sources.sort_unstable();
    sources.dedup();
    format!(
        "{shown}\n\nno --source was given, so the broker used the address it sees: {}",
        sources.join(", ")
    )
}

/// Draws a list of grants.
pub(crate) fn grants(grants: &GrantsJson, now: Timestamp, ids: Ids) -> String {
    let rows = grants.grants.iter().map(|grant| {
        [
            grant.id.clone(),
            grant.state.to_owned(),
            grant.principal.as_ref().map_or_else(dash, ToString::to_string),
            opens(&grant.windows, ids),
            when(grant.not_after, now),
            grant.justification.clone(),
        ]
    });
    let table = table(["GRANT", "STATE", "WHO", "OPENS", "END", "WHY"], rows);
    if grants.more { format!("{table}\n\nmore grants exist; raise --limit to list them") } else { table }
}

/// Draws a grant as one line of a stream.
pub(crate) fn grant_line(grant: &GrantJson, now: Timestamp, ids: Ids) -> String {
    let who = printable(&grant.principal.as_ref().map_or_else(dash, ToString::to_string));
    let end = grant.not_after.map_or_else(dash, |at| format!("end {}", relative(at, now)));
    let what = printable(&opens(&grant.windows, ids));
    let line = format!("{}  {:<16}  {who}  {what}  {end}", grant.id, grant.state);
    if grant.reason.is_empty() { line } else { format!("{line}  ({})", printable(&grant.reason)) }
}

/// Draws a list of policies.
pub(crate) fn policies(policies: &PoliciesJson, _: Timestamp) -> String {
    let rows = policies.policies.iter().map(|policy| {
        let ports: Vec<_> =
            policy.ports.iter().filter_map(|rule| rule.port.as_ref()).map(PortJson::to_string).collect();
        [
            policy.name.clone(),
            policy.targets.join(" "),
            ports.join(" "),
            policy.mode.map_or_else(dash, str::to_owned),
            policy.layers.to_owned(),
            if policy.requesters.is_empty() {
                "every requester".to_owned()
            } else {
                policy.requesters.join(" ")
            },
            policy.version.map_or_else(dash, |version| version.to_string()),
        ]
    });
    table(["POLICY", "TARGETS", "PORTS", "MODE", "LAYERS", "WHO", "VERSION"], rows)
}

/// Draws a list of targets, with a column of details only if a layer has one.
pub(crate) fn targets(targets: &TargetsJson, now: Timestamp, ids: Ids) -> String {
    let rows = targets.targets.iter().map(|target| {
        let layer =
            |name| target.layers.iter().find(|layer| layer.layer == name).map_or("-", |layer| layer.status);
        let seen = target.layers.iter().filter_map(|layer| layer.last_seen).max();
        [
            named(&target.id, ids),
            target.mode.unwrap_or("-").to_owned(),
            ports(&target.ports),
            if target.policies.is_empty() { dash() } else { target.policies.join(" ") },
            target.open_windows.to_string(),
            layer("host").to_owned(),
            layer("cloud").to_owned(),
            seen.map_or_else(dash, |at| relative(at, now)),
            details(target.layers.iter().map(|layer| (layer.layer, layer.detail.as_str()))),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.iter().all(|row| row[8].is_empty()) {
        let rows = rows.into_iter().map(|[id, mode, ports, policies, windows, host, cloud, seen, _]| {
            [id, mode, ports, policies, windows, host, cloud, seen]
        });
        return table(["TARGET", "MODE", "PORTS", "POLICIES", "WINDOWS", "HOST", "CLOUD", "SEEN"], rows);
    }
    table(["TARGET", "MODE", "PORTS", "POLICIES", "WINDOWS", "HOST", "CLOUD", "SEEN", "DETAIL"], rows)
}

/// Draws a target with the details of its layers.
pub(crate) fn target(target: &TargetJson, now: Timestamp) -> String {
    let facts = [
        ("target", target.id.clone()),
        ("mode", target.mode.unwrap_or("-").to_owned()),
        ("ports", ports(&target.ports)),
        ("policies", if target.policies.is_empty() { dash() } else { target.policies.join(" ") }),
        ("windows", format!("{} open or opening", target.open_windows)),
    ];
    let rows = target.layers.iter().map(|layer| {
        [layer.layer.to_owned(), layer.status.to_owned(), when(layer.last_seen, now), or_dash(&layer.detail)]
    });
    format!("{}\n\n{}", list(facts), table(["LAYER", "STATUS", "SEEN", "DETAIL"], rows))
}

/// Draws a list of agents.
pub(crate) fn agents(agents: &AgentsJson, now: Timestamp, ids: Ids) -> String {
    table(
        ["TARGET", "STATUS", "VERSION", "SEEN", "ENROLLED", "CERTIFICATE ENDS"],
        agents.agents.iter().map(|a| row(a, now, ids)),
    )
}

/// Draws an agent.
pub(crate) fn agent(agent: &AgentJson, now: Timestamp, ids: Ids) -> String {
    agents(&AgentsJson { agents: vec![agent.clone()] }, now, ids)
}

/// Draws the end of an agent, with the time until which its machine may hold windows.
pub(crate) fn forgotten(agent: &ForgottenJson, now: Timestamp) -> String {
    let held = match agent.held_until {
        Some(_) => format!("until {}, of {}", when(agent.held_until, now), agent.held_grants.join(" ")),
        None => "none".to_owned(),
    };
    list([("forgotten", agent.forgotten.clone()), ("windows that it may hold", held)])
}

/// Draws a join token, with the command that uses it.
pub(crate) fn token(token: &TokenJson, now: Timestamp) -> String {
    let facts = [
        ("target", token.target.clone()),
        ("token", token.token.clone()),
        ("valid until", when(token.expires_at, now)),
    ];
    format!(
        "{}\n\nUse it once, on that machine: this command reads the token from its standard input.\n\n{}",
        list(facts),
        printable(&token.enroll_command)
    )
}

/// Draws the outcome of a verification.
pub(crate) fn verified(verified: &VerifiedJson, _: Timestamp) -> String {
    let outcome = if verified.sound { "sound" } else { "broken" };
    let mut rows = vec![
        ("log", outcome.to_owned()),
        ("records", verified.records.to_string()),
        ("head", verified.head.clone()),
    ];
    match &verified.trusted {
        None => rows.push(("trusted", "no signed checkpoint covers this log".to_owned())),
        Some(trusted) => {
            let TrustedJson { seq, hash, at, accepted, signer } = trusted;
            rows.push(("trusted", format!("record {seq}, {hash}")));
            rows.push(("signed", format!("{} by {}", utc(*at), printable(signer))));
            if let Some(accepted) = accepted {
                rows.push((
                    "accepted",
                    format!("{} by an operator, after the log had gone back", utc(*accepted)),
                ));
            }
        }
    }
    if let Some(uncovered) = verified.uncovered {
        rows.push(("not covered yet", uncovered.to_string()));
    }
    rows.extend(extent(verified));
    if let Some(TrustedJson { seq, at, .. }) = &verified.remembered {
        rows.push(("remembered", format!("record {seq}, signed {}", utc(*at))));
    }
    list(rows)
}

/// Returns the rows that say which records the broker read, and which it did not.
fn extent(verified: &VerifiedJson) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let accepted_record = verified.accepted_record.unwrap_or_default();
    if let Some(from) = verified.read_from {
        let read = match verified.records {
            last if last < from => "no new record".to_owned(),
            last => format!("records {from} to {last}"),
        };
        rows.push(("read", read));
        if let Some(at) = verified.verified_at.filter(|_| from > accepted_record + 1 && from > 1) {
            let first = accepted_record + 1;
            let before =
                format!("records {first} to {} were verified at {}; --full reads all", from - 1, utc(at));
            rows.push(("read before", before));
        }
    }
    if let Some(record) = verified.accepted_record {
        let at = verified.trusted.as_ref().and_then(|trusted| trusted.accepted);
        let at = at.map(|at| format!(" at {}", utc(at))).unwrap_or_default();
        rows.push(("not verified", format!("records up to {record}: accepted by an operator{at}")));
    }
    rows
}

/// Draws an audit record as one line.
pub(crate) fn record(record: &AuditRecord) -> String {
    let event = &record.event;
    let denied = if event.outcome == Outcome::Denied { " DENIED" } else { "" };
    let mut line = format!("{:>6}  {}  {}  {}{denied}", record.seq, utc(event.at), event.actor, event.action);
    if let Some(grant) = &event.grant {
        line.push_str(&format!("  grant={grant}"));
    }
    if let Some(target) = &event.target {
        line.push_str(&format!("  target={target}"));
    }
    for (name, value) in &event.details {
        line.push_str(&format!("  {name}={value:?}"));
    }
    printable(&line)
}

fn row(agent: &AgentJson, now: Timestamp, ids: Ids) -> [String; 6] {
    [
        named(&agent.target, ids),
        if agent.cloned.is_some() { format!("{}, cloned", agent.status) } else { agent.status.to_owned() },
        or_dash(&agent.version),
        agent.last_seen.map_or_else(dash, |at| relative(at, now)),
        agent.enrolled_at.map_or_else(dash, utc),
        when(agent.certificate_not_after, now),
    ]
}

/// Draws every window with the state of each layer, with a column of details only if a layer has one.
fn windows(windows: &[WindowJson], ids: Ids) -> String {
    let rows = windows.iter().map(|window| {
        let state =
            |name| window.layers.iter().find(|layer| layer.layer == name).map_or("-", |layer| layer.state);
        [
            named(&window.target, ids),
            window.port.as_ref().map_or_else(dash, PortJson::to_string),
            window.source.clone(),
            state("host").to_owned(),
            state("cloud").to_owned(),
            details(
                std::iter::once(("connect to", window.connect_to.as_str()))
                    .chain(window.layers.iter().map(|layer| (layer.layer, layer.detail.as_str()))),
            ),
        ]
    });
    let rows: Vec<_> = rows.collect();
    if rows.iter().all(|row| row[5].is_empty()) {
        let rows = rows
            .into_iter()
            .map(|[target, port, source, host, cloud, _]| [target, port, source, host, cloud]);
        return table(["TARGET", "PORT", "SOURCE", "HOST", "CLOUD"], rows);
    }
    table(["TARGET", "PORT", "SOURCE", "HOST", "CLOUD", "DETAIL"], rows)
}

/// Names a target in a table. The id of a VM on Azure has some 130 characters.
fn named(target: &str, ids: Ids) -> String {
    match (ids, target.parse::<TargetId>()) {
        (Ids::Short, Ok(target)) => target.in_words(),
        (Ids::Short | Ids::Whole, _) => target.to_owned(),
    }
}

/// Joins the details of the layers that have one.
fn details<'a>(layers: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let detailed = layers.filter(|(_, detail)| !detail.is_empty());
    detailed.map(|(layer, detail)| format!("{layer}: {detail}")).collect::<Vec<_>>().join("; ")
}

/// Describes the first window, and counts the others.
fn opens(windows: &[WindowJson], ids: Ids) -> String {
    let Some(first) = windows.first() else { return dash() };
    let port = first.port.as_ref().map_or_else(dash, PortJson::to_string);
    let more = if windows.len() > 1 { format!(" (+{})", windows.len() - 1) } else { String::new() };
    format!("{} {port} from {}{more}", named(&first.target, ids), first.source)
}

fn ports(ports: &[PortJson]) -> String {
    if ports.is_empty() {
        dash()
    } else {
        ports.iter().map(PortJson::to_string).collect::<Vec<_>>().join(" ")
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { dash() } else { text.to_owned() }
}

fn list(facts: impl IntoIterator<Item = (&'static str, String)>) -> String {
    drawn(facts.into_iter().map(|(name, fact)| [name.to_owned(), fact]), None)
}

fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    drawn(rows, Some(header))
}

fn drawn<const N: usize>(rows: impl IntoIterator<Item = [String; N]>, header: Option<[&str; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if let Some(header) = header {
        table.set_header(header);
    }
    // A cell is one line: foreign text must not leave its column.
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| printable(&cell).replace('\n', "\\n"))));
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests;
