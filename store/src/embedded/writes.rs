//! Writes, each applied to the database inside the writer's transaction.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::documents::{self, entry, place};
use super::rows::unavailable;
use crate::batch::{Expect, Requirement, Write};
use crate::error::StoreError;
use crate::indexes::{ALL, Indexes};
use crate::kind::Version;

/// A document as the database has it; a deleted one may have left its version.
struct Before {
    version: Version,
    is_there: bool,
    indexes: Indexes,
}

/// Applies the write, and returns the new version of its record.
///
/// # Errors
/// A conflict, if the write's expectation does not hold.
pub(super) fn apply(connection: &Connection, write: &Write) -> Result<Version, StoreError> {
    let (kind, place) = (write.kind.name, place(write.kind.name, &write.key));
    if let (Expect::Absent, Some(put)) = (write.expect, &write.put) {
        // The usual write of a new record takes one statement to find out that there is none.
        let sql = "INSERT OR IGNORE INTO documents (place, version, indexes, body) VALUES (?1, 1, ?2, ?3)";
        if execute(connection, sql, params![place, put.indexes.text(), put.body])? == 1 {
            put.indexes.names().try_for_each(|index| enter(connection, kind, index, &write.key))?;
            return Ok(1);
        }
    }
    let before = before(connection, &place)?;
    let found = before.as_ref().filter(|before| before.is_there).map(|before| before.version);
    let last = before.as_ref().map_or(0, |before| before.version);
    let Some(version) = write.version_after(found, last) else {
        return Err(StoreError::Conflict { what: write.subject() });
    };
    let none = Indexes::default();
    let body = write.put.as_ref().map(|put| put.body.as_str());
    let old = before.as_ref().map_or(&none, |before| &before.indexes);
    let new = write.put.as_ref().map_or(&none, |put| &put.indexes);
    if body.is_none() && !write.kind.keeps_versions {
        execute(connection, "DELETE FROM documents WHERE place = ?1", params![place])?;
    } else {
        let sql = if before.is_some() {
            "UPDATE documents SET version = ?2, indexes = ?3, body = ?4 WHERE place = ?1"
        } else {
            "INSERT INTO documents (place, version, indexes, body) VALUES (?1, ?2, ?3, ?4)"
        };
        execute(connection, sql, params![place, version, new.text(), body])?;
    }
    for index in old.without(new).filter(|index| *index != ALL) {
        let sql = "DELETE FROM entries WHERE entry = ?1";
        execute(connection, sql, params![entry(kind, index, &write.key)])?;
    }
    for index in new.without(old) {
        enter(connection, kind, index, &write.key)?;
    }
    Ok(version)
}

/// Checks a condition on a document.
///
/// # Errors
/// A conflict, if the condition does not hold.
pub(super) fn check(connection: &Connection, requirement: &Requirement) -> Result<(), StoreError> {
    let before = before(connection, &place(requirement.kind.name, &requirement.key))?;
    let last = before.as_ref().map_or(0, |before| before.version);
    let found = before.filter(|before| before.is_there).map(|before| before.version);
    if requirement.expect.holds(found, last) {
        Ok(())
    } else {
        Err(StoreError::Conflict { what: requirement.subject() })
    }
}

/// Puts a document into an index. The documents themselves are in the order of [`ALL`].
pub(super) fn enter(connection: &Connection, kind: &str, index: &str, key: &str) -> Result<(), StoreError> {
    if index == ALL {
        return Ok(());
    }
    let sql = "INSERT OR IGNORE INTO entries (entry) VALUES (?1)";
    execute(connection, sql, params![entry(kind, index, key)]).map(drop)
}

fn before(connection: &Connection, place: &str) -> Result<Option<Before>, StoreError> {
    let sql = "SELECT version, indexes, body IS NOT NULL FROM documents WHERE place = ?1";
    let mut statement = connection.prepare_cached(sql).map_err(unavailable)?;
    let row = statement.query_row([place], |row| {
        // What no broker can have written must not keep a broker from writing over it.
        let indexes = Indexes::from_text(row.get(1).unwrap_or_default());
        Ok(Before { version: documents::version(row, 0), is_there: row.get(2)?, indexes })
    });
    row.optional().map_err(unavailable)
}

/// Runs a statement, and returns the number of rows that it changed.
pub(super) fn execute(
    connection: &Connection,
    sql: &str,
    values: impl rusqlite::Params,
) -> Result<usize, StoreError> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map_err(unavailable)
}
