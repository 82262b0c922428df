//! The schema and its migrations. Its version is SQLite's own `user_version`.

use rusqlite::Connection;

use super::rows::unavailable;
use crate::StoreError;

/// The steps, each from one version to the next. Never change a released step: add another.
const MIGRATIONS: [&str; 2] = [
    "
    CREATE TABLE grants (
        id TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        state TEXT NOT NULL,
        open INTEGER NOT NULL,
        principal TEXT NOT NULL,
        body TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX grants_open ON grants (id) WHERE open = 1;
    CREATE INDEX grants_principal ON grants (principal, id);
    CREATE TABLE grant_targets (
        target TEXT NOT NULL,
        id TEXT NOT NULL,
        open INTEGER NOT NULL,
        PRIMARY KEY (target, open, id)
    ) WITHOUT ROWID;
    CREATE TABLE requests (
        principal TEXT NOT NULL,
        key TEXT NOT NULL,
        id TEXT NOT NULL,
        PRIMARY KEY (principal, key)
    ) WITHOUT ROWID;
    CREATE TABLE policies (name TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT) WITHOUT ROWID;
    CREATE TABLE agents (target TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE tokens (hash BLOB PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE audit (seq INTEGER PRIMARY KEY, line TEXT NOT NULL);
",
    "CREATE TABLE marks (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;",
];

/// Refuses a store of a newer broker, before the broker touches anything in it.
pub(super) fn check(found: u32) -> Result<(), StoreError> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    if found > known { Err(StoreError::NewerSchema { found, known }) } else { Ok(()) }
}

/// Brings the schema from the given version to this broker's.
pub(super) fn migrate(connection: &mut Connection, found: u32) -> Result<(), StoreError> {
    for (step, version) in MIGRATIONS.iter().zip(1u32..).skip(found as usize) {
        let transaction = connection.transaction().map_err(unavailable)?;
        transaction.execute_batch(step).map_err(unavailable)?;
        transaction.pragma_update(None, "user_version", version).map_err(unavailable)?;
        transaction.commit().map_err(unavailable)?;
    }
    Ok(())
}
