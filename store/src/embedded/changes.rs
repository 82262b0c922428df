//! Changes, each applied to the database inside the writer's transaction.

use postern_core::{Grant, Policy};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::{to_body, unavailable};
use crate::{AgentRecord, Change, Expect, StoreError, Version};

/// The version of a record that has none.
const UNVERSIONED: Version = 0;

/// Applies the change, and returns the new version of its record.
///
/// # Errors
/// A conflict, if the change's expectation does not hold.
pub(super) fn apply(connection: &Connection, change: &Change) -> Result<Version, StoreError> {
    let version = match change {
        Change::PutGrant { grant, expect } => put_grant(connection, grant, *expect),
        Change::RememberRequest { principal, key, grant } => {
            let sql = "INSERT OR IGNORE INTO requests (principal, key, id) VALUES (?1, ?2, ?3)";
            let values = params![principal.as_str(), key, grant.to_string()];
            one_row(execute(connection, sql, values)?)
        }
        Change::PutPolicy { policy, expect } => put_policy(connection, policy, *expect),
        Change::DeletePolicy { name } => {
            // Its version stays, and counts on when a policy of that name is put again.
            let sql =
                "UPDATE policies SET version = version + 1, body = NULL WHERE name = ?1 AND body IS NOT NULL";
            one_row(execute(connection, sql, params![name.as_str()])?)
        }
        Change::PutAgent { agent, expect } => put_agent(connection, agent, *expect),
        Change::PutToken { hash, token } => {
            let sql = "INSERT OR REPLACE INTO tokens (hash, body) VALUES (?1, ?2)";
            execute(connection, sql, params![hash.0, to_body(token)?]).map(|_| Some(UNVERSIONED))
        }
        Change::TakeToken { hash } => {
            one_row(execute(connection, "DELETE FROM tokens WHERE hash = ?1", params![hash.0])?)
        }
    };
    version?.ok_or_else(|| StoreError::Conflict { what: change.subject() })
}

/// The new version of the record; `None` if the expectation does not hold.
type Changed = Result<Option<Version>, StoreError>;

fn put_grant(connection: &Connection, grant: &Grant, expect: Expect) -> Changed {
    let id = grant.id.to_string();
    let before = version(connection, "SELECT version FROM grants WHERE id = ?1", &id)?;
    if !expect.holds(before) {
        return Ok(None);
    }
    let next = before.unwrap_or(0) + 1;
    let open = !grant.state.is_final();
    let sql = "INSERT OR REPLACE INTO grants (id, version, state, open, principal, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let name = grant.principal.name.as_str();
    execute(connection, sql, params![id, next, grant.state.word(), open, name, to_body(grant)?])?;
    if before.is_some() && open {
        // The windows of a grant never change, only whether it is open.
        return Ok(Some(next));
    }
    for target in grant.targets() {
        let target = target.to_string();
        let sql = "DELETE FROM grant_targets WHERE target = ?1 AND open = ?2 AND id = ?3";
        execute(connection, sql, params![target, !open, id])?;
        let sql = "INSERT OR IGNORE INTO grant_targets (target, open, id) VALUES (?1, ?2, ?3)";
        execute(connection, sql, params![target, open, id])?;
    }
    Ok(Some(next))
}

fn put_policy(connection: &Connection, policy: &Policy, expect: Expect) -> Changed {
    let name = policy.name.as_str();
    let there = "SELECT version FROM policies WHERE name = ?1 AND body IS NOT NULL";
    if !expect.holds(version(connection, there, name)?) {
        return Ok(None);
    }
    let before = version(connection, "SELECT version FROM policies WHERE name = ?1", name)?;
    let next = before.unwrap_or(0) + 1;
    let sql = "INSERT OR REPLACE INTO policies (name, version, body) VALUES (?1, ?2, ?3)";
    execute(connection, sql, params![name, next, to_body(policy)?]).map(|_| Some(next))
}

fn put_agent(connection: &Connection, agent: &AgentRecord, expect: Expect) -> Changed {
    let target = agent.target.to_string();
    let before = version(connection, "SELECT version FROM agents WHERE target = ?1", &target)?;
    if !expect.holds(before) {
        return Ok(None);
    }
    let next = before.unwrap_or(0) + 1;
    let sql = "INSERT OR REPLACE INTO agents (target, version, body) VALUES (?1, ?2, ?3)";
    execute(connection, sql, params![target, next, to_body(agent)?]).map(|_| Some(next))
}

fn version(connection: &Connection, sql: &str, key: &str) -> Result<Option<Version>, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(unavailable)?;
    statement.query_row([key], |row| row.get(0)).optional().map_err(unavailable)
}

/// The outcome of a change that must touch exactly one record without a version.
fn one_row(rows: usize) -> Changed {
    Ok((rows == 1).then_some(UNVERSIONED))
}

fn execute(connection: &Connection, sql: &str, values: impl rusqlite::Params) -> Result<usize, StoreError> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(unavailable)
}
