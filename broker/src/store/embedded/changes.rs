//! One change, applied to the database inside the writer's transaction.

use postern_core::{Grant, Policy};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::{to_body, unavailable};
use crate::store::{AgentRecord, Change, Expect, StoreError, Version};

/// Applies the change, or says which expectation does not hold.
pub(super) fn apply(connection: &Connection, change: &Change) -> Result<(), StoreError> {
    match change {
        Change::PutGrant { grant, expect } => put_grant(connection, grant, *expect),
        Change::RememberRequest { principal, key, grant } => {
            let sql = "INSERT OR IGNORE INTO requests (principal, key, id) VALUES (?1, ?2, ?3)";
            let values = params![principal.as_str(), key, grant.to_string()];
            one_row(execute(connection, sql, values)?, || format!("the idempotency key of {principal}"))
        }
        Change::PutPolicy { policy, expect } => put_policy(connection, policy, *expect),
        Change::DeletePolicy { name } => {
            let deleted =
                execute(connection, "DELETE FROM policies WHERE name = ?1", params![name.as_str()])?;
            one_row(deleted, || format!("the policy {name}"))
        }
        Change::PutAgent { agent, expect } => put_agent(connection, agent, *expect),
        Change::PutToken { hash, token } => {
            let sql = "INSERT OR REPLACE INTO tokens (hash, body) VALUES (?1, ?2)";
            execute(connection, sql, params![hash.0, to_body(token)?]).map(|_| ())
        }
        Change::TakeToken { hash } => {
            let deleted = execute(connection, "DELETE FROM tokens WHERE hash = ?1", params![hash.0])?;
            one_row(deleted, || "the join token".to_owned())
        }
    }
}

fn put_grant(connection: &Connection, grant: &Grant, expect: Expect) -> Result<(), StoreError> {
    let id = grant.id.to_string();
    let before = version(connection, "SELECT version FROM grants WHERE id = ?1", &id)?;
    let next = expected(expect, before, || format!("the grant {id}"))?;
    let open = !grant.state.is_final();
    let sql = "INSERT OR REPLACE INTO grants (id, version, state, open, principal, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let name = grant.principal.name.as_str();
    execute(connection, sql, params![id, next, grant.state.word(), open, name, to_body(grant)?])?;
    for target in grant.targets() {
        let target = target.to_string();
        // The windows of a grant never change, only whether it is open.
        let sql = "DELETE FROM grant_targets WHERE target = ?1 AND open = ?2 AND id = ?3";
        execute(connection, sql, params![target, !open, id])?;
        let sql = "INSERT OR IGNORE INTO grant_targets (target, open, id) VALUES (?1, ?2, ?3)";
        execute(connection, sql, params![target, open, id])?;
    }
    Ok(())
}

fn put_policy(connection: &Connection, policy: &Policy, expect: Expect) -> Result<(), StoreError> {
    let name = policy.name.as_str();
    let before = version(connection, "SELECT version FROM policies WHERE name = ?1", name)?;
    let next = expected(expect, before, || format!("the policy {name}"))?;
    let sql = "INSERT OR REPLACE INTO policies (name, version, body) VALUES (?1, ?2, ?3)";
    execute(connection, sql, params![name, next, to_body(policy)?]).map(|_| ())
}

fn put_agent(connection: &Connection, agent: &AgentRecord, expect: Expect) -> Result<(), StoreError> {
    let target = agent.target.to_string();
    let before = version(connection, "SELECT version FROM agents WHERE target = ?1", &target)?;
    let next = expected(expect, before, || format!("the agent of {target}"))?;
    let sql = "INSERT OR REPLACE INTO agents (target, version, body) VALUES (?1, ?2, ?3)";
    execute(connection, sql, params![target, next, to_body(agent)?]).map(|_| ())
}

fn version(connection: &Connection, sql: &str, key: &str) -> Result<Option<Version>, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(unavailable)?;
    statement.query_row([key], |row| row.get(0)).optional().map_err(unavailable)
}

/// The version that the record gets, where the expectation holds.
fn expected(
    expect: Expect,
    before: Option<Version>,
    what: impl Fn() -> String,
) -> Result<Version, StoreError> {
    let holds = match expect {
        Expect::Absent => before.is_none(),
        Expect::Version(version) => before == Some(version),
        Expect::Any => true,
    };
    if holds { Ok(before.unwrap_or(0) + 1) } else { Err(StoreError::Conflict { what: what() }) }
}

fn one_row(rows: usize, what: impl Fn() -> String) -> Result<(), StoreError> {
    if rows == 1 { Ok(()) } else { Err(StoreError::Conflict { what: what() }) }
}

fn execute(connection: &Connection, sql: &str, values: impl rusqlite::Params) -> Result<usize, StoreError> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(unavailable)
}
