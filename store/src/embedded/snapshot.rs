//! A copy of the database, also of one that a broker has open: SQLite reads it in one transaction, and the broker goes on committing.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::database::{LOCK_TIMEOUT, audit_lines, private};
use super::rows::{corrupt, unavailable};
use super::{schema, transfer};
use crate::error::StoreError;

/// Copies the database at one moment into a new private file, and has SQLite check the copy. The database is only read.
///
/// # Errors
/// The database is missing, was written by a newer broker, was moved or is incomplete; the file exists, cannot be written, or is
/// damaged.
pub fn snapshot(database: &Path, copy: &Path) -> Result<(), StoreError> {
    let connection = open(database)?;
    transfer::check(&connection)?;
    // SQLite would make the file with the umask's permissions. It takes an empty file.
    private(copy).map_err(|source| StoreError::Unavailable { source: Box::new(source) })?;
    connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()]).map_err(unavailable)?;
    let check: String =
        open(copy)?.pragma_query_value(None, "integrity_check", |row| row.get(0)).map_err(unavailable)?;
    if check == "ok" { Ok(()) } else { Err(corrupt("copied database", Damaged(check))) }
}

/// The facts about a database that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The version of the schema.
    pub schema: u32,
    /// The number of audit records.
    pub head: u64,
    /// The newest line of the audit log; none if the log is empty.
    pub newest: Option<String>,
}

/// Looks at a database, also at one that a broker has open, and changes nothing.
///
/// # Errors
/// The database is missing, was written by a newer broker, was moved or is incomplete, or cannot be read.
pub fn inspect(database: &Path) -> Result<Inspected, StoreError> {
    let connection = open(database)?;
    transfer::check(&connection)?;
    let schema =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(unavailable)?;
    let newest = audit_lines(&connection, "SELECT seq, line FROM audit ORDER BY seq DESC LIMIT 1", [])?.pop();
    Ok(Inspected {
        schema,
        head: newest.as_ref().map_or(0, |(seq, _)| *seq),
        newest: newest.map(|(_, line)| line),
    })
}

fn open(database: &Path) -> Result<Connection, StoreError> {
    let connection =
        Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(unavailable)?;
    connection.busy_timeout(LOCK_TIMEOUT).map_err(unavailable)?;
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(unavailable)?;
    schema::check(found)?;
    Ok(connection)
}

/// A database that SQLite finds damaged.
#[derive(Debug, thiserror::Error)]
#[error("SQLite finds it damaged: {0}")]
struct Damaged(String);
