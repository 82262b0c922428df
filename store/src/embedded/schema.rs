//! The schema and its migrations. Its version is SQLite's own `user_version`.

use postern_core::{Grant, GrantId, PrincipalKey};
use rusqlite::{Connection, params};

use super::documents::{place, rows};
use super::rows::{from_body, unavailable};
use super::sealing::{self, SEALS};
use super::writes::{enter, execute};
use crate::body::to_body;
use crate::error::StoreError;
use crate::record::Record as _;
use crate::records::request::{RequestKey, RequestRecord};
use crate::seal::Sealing;

/// The steps, each from one version to the next. Never change a released step: add another.
const MIGRATIONS: [&str; 4] = [
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
    "
    -- A place is a kind, a slash and a key.
    CREATE TABLE documents (
        place TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        indexes TEXT NOT NULL,
        body TEXT
    ) WITHOUT ROWID;
    -- An entry is a kind, a slash, the name of an index, a line break and a key.
    CREATE TABLE entries (entry TEXT PRIMARY KEY) WITHOUT ROWID;
    INSERT INTO documents SELECT 'agents/' || target, version, '', body FROM agents;
    INSERT INTO documents SELECT 'grants/' || id, version, '', body FROM grants;
    INSERT INTO documents SELECT 'policies/' || name, version, '', body FROM policies;
    INSERT INTO documents SELECT 'tokens/' || lower(hex(hash)), 1, '', body FROM tokens;
",
    // Records are sealed from here on (`sealing.rs`).
    "",
];

/// The version from which records are documents.
const DOCUMENTS: u32 = 3;

/// Refuses a store of a newer broker, before the broker touches anything in it.
pub(super) fn check(found: u32) -> Result<(), StoreError> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    if found > known { Err(StoreError::NewerSchema { found, known }) } else { Ok(()) }
}

/// Brings the schema from the given version to this broker's. Each step is one transaction.
pub(super) fn migrate(connection: &mut Connection, found: u32, seals: &Sealing) -> Result<(), StoreError> {
    for (step, version) in MIGRATIONS.iter().zip(1u32..).skip(found as usize) {
        let transaction = connection.transaction().map_err(unavailable)?;
        transaction.execute_batch(step).map_err(unavailable)?;
        if version == DOCUMENTS {
            make_documents(&transaction)?;
        }
        if version == SEALS {
            sealing::upgrade(&transaction, seals)?;
        }
        transaction.pragma_update(None, "user_version", version).map_err(unavailable)?;
        transaction.commit().map_err(unavailable)?;
    }
    Ok(())
}

/// Completes the step to documents: the keys of requests and the indexes of grants follow from the records' own definitions. A request
/// that cannot be read is left out, and a grant that cannot be read is in no index.
fn make_documents(db: &Connection) -> Result<(), StoreError> {
    rows(db, "SELECT principal, key, id FROM requests", [], |row| {
        let text = |at| row.get::<_, String>(at).ok();
        let read = || {
            let (principal, grant): (PrincipalKey, GrantId) =
                (text(0)?.parse().ok()?, text(2)?.parse().ok()?);
            Some((RequestKey::new(&principal, &text(1)?).to_string(), grant))
        };
        let Some((key, grant)) = read() else { return Ok(()) };
        let sql = "INSERT INTO documents VALUES (?1, 1, '', ?2)";
        execute(db, sql, params![place("requests", &key), to_body(&RequestRecord { grant })?]).map(drop)
    })?;
    rows(db, "SELECT id, body FROM grants", [], |row| {
        let text = |at| row.get::<_, String>(at).ok();
        let read = || Some((text(0)?, from_body::<Grant>("grant", &text(1)?).ok()?.indexes()));
        let Some((id, indexes)) = read() else { return Ok(()) };
        let sql = "UPDATE documents SET indexes = ?2 WHERE place = ?1";
        execute(db, sql, params![place("grants", &id), indexes.text()])?;
        indexes.names().try_for_each(|index| enter(db, "grants", index, &id))
    })?;
    let old = "DROP TABLE grants; DROP TABLE grant_targets; DROP TABLE requests; DROP TABLE policies;
        DROP TABLE agents; DROP TABLE tokens;";
    // A statement that is kept holds a lock on its table.
    db.flush_prepared_statement_cache();
    db.execute_batch(old).map_err(unavailable)
}
