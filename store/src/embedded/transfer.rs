//! Moving the embedded store, under the lock that a broker takes, so that no broker writes during the migration.

use std::path::Path;

use async_trait::async_trait;
use postern_core::audit::{AuditRecord, Head};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::database::{Lock, audit_lines, connect, read_head};
use super::rows::{corrupt, from_body, unavailable};
use crate::transfer::{Counts, Item, PAGE, Page, Source, Target};
use crate::{MigrationError, RecordKind, StoreError, TokenHash};

/// The marks that keep a store from being opened.
const MOVED: &str = "moved";
const INCOMPLETE: &str = "incomplete";

/// A database, as the source or the target of a migration.
#[derive(Debug)]
pub struct Transfer {
    connection: Connection,
    _lock: Lock,
}

impl Transfer {
    /// Opens a database, to move it or to move another store into it.
    ///
    /// # Errors
    /// A broker has it open, it was written by a newer broker, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (lock, connection) = connect(path)?;
        Ok(Self { connection, _lock: lock })
    }
}

/// Refuses a store that was moved away, or whose migration was not completed.
pub(super) fn check(db: &Connection) -> Result<(), StoreError> {
    if let Some(to) = mark(db, MOVED)? {
        return Err(MigrationError::Moved { to }.into());
    }
    match mark(db, INCOMPLETE)? {
        Some(from) => Err(MigrationError::Incomplete { from }.into()),
        None => Ok(()),
    }
}

fn mark(db: &Connection, name: &str) -> Result<Option<String>, StoreError> {
    let sql = "SELECT text FROM marks WHERE name = ?1";
    db.query_row(sql, [name], |row| row.get(0)).optional().map_err(unavailable)
}

fn table(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Audit => "audit",
        RecordKind::Grants => "grants",
        RecordKind::Requests => "requests",
        RecordKind::Policies => "policies",
        RecordKind::Agents => "agents",
        RecordKind::Tokens => "tokens",
    }
}

const KINDS: [RecordKind; 6] = [
    RecordKind::Audit,
    RecordKind::Grants,
    RecordKind::Requests,
    RecordKind::Policies,
    RecordKind::Agents,
    RecordKind::Tokens,
];

fn counts(db: &Connection) -> Result<Counts, StoreError> {
    KINDS
        .into_iter()
        .map(|kind| {
            let sql = format!("SELECT COUNT(*) FROM {}", table(kind));
            Ok((kind, db.query_row(&sql, [], |row| row.get(0)).map_err(unavailable)?))
        })
        .collect()
}

/// Returns the rows after `from`, as they are kept, each with its key.
fn rows(db: &Connection, kind: RecordKind, from: Option<&str>) -> Result<Vec<(String, Item)>, StoreError> {
    let from = from.unwrap_or_default();
    match kind {
        RecordKind::Audit => {
            let after: i64 = if from.is_empty() { 0 } else { from.parse().unwrap_or(i64::MAX) };
            let sql = "SELECT seq, line FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2";
            let lines = audit_lines(db, sql, params![after, PAGE])?;
            Ok(lines.into_iter().map(|(seq, line)| (seq.to_string(), Item::Audit { seq, line })).collect())
        }
        RecordKind::Grants => {
            let sql = "SELECT id, version, body FROM grants WHERE id > ?1 ORDER BY id LIMIT ?2";
            let rows: Vec<(String, u64, String)> =
                query(db, sql, from, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.into_iter()
                .map(|(id, version, body)| {
                    let grant = Box::new(from_body("grant", &body)?);
                    Ok((id, Item::Grant { grant, version, body }))
                })
                .collect()
        }
        RecordKind::Requests => {
            // No name has a space in it.
            let (name, key) = from.split_once(' ').unwrap_or_default();
            let sql = "SELECT principal, key, id FROM requests WHERE (principal, key) > (?1, ?2) \
                       ORDER BY principal, key LIMIT ?3";
            let mut statement = db.prepare_cached(sql).map_err(unavailable)?;
            let rows = statement
                .query_map(params![name, key, PAGE], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .map_err(unavailable)?;
            let rows: Vec<(String, String, String)> = rows.collect::<Result<_, _>>().map_err(unavailable)?;
            rows.into_iter()
                .map(|(name, key, grant)| {
                    let principal = name.parse().map_err(|source| corrupt("request", source))?;
                    Ok((format!("{name} {key}"), Item::Request { principal, key, grant }))
                })
                .collect()
        }
        RecordKind::Policies => {
            let sql = "SELECT name, version, body FROM policies WHERE name > ?1 ORDER BY name LIMIT ?2";
            query(db, sql, from, |row| {
                let name: String = row.get(0)?;
                Ok((name.clone(), Item::Policy { name, version: row.get(1)?, body: row.get(2)? }))
            })
        }
        RecordKind::Agents => {
            let sql = "SELECT target, version, body FROM agents WHERE target > ?1 ORDER BY target LIMIT ?2";
            query(db, sql, from, |row| {
                let target: String = row.get(0)?;
                Ok((target.clone(), Item::Agent { target, version: row.get(1)?, body: row.get(2)? }))
            })
        }
        RecordKind::Tokens => {
            let sql = "SELECT hash, body FROM tokens WHERE lower(hex(hash)) > ?1 ORDER BY hash LIMIT ?2";
            query(db, sql, from, |row| {
                let hash: [u8; 32] = row.get(0)?;
                let key = data_encoding::HEXLOWER.encode(&hash);
                Ok((key, Item::Token { hash: TokenHash(hash), body: row.get(1)? }))
            })
        }
    }
}

fn query<T>(
    db: &Connection,
    sql: &str,
    from: &str,
    row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = db.prepare_cached(sql).map_err(unavailable)?;
    let rows = statement.query_map(params![from, PAGE], row).map_err(unavailable)?;
    rows.collect::<Result<_, _>>().map_err(unavailable)
}

fn keep(db: &Connection, item: Item) -> rusqlite::Result<()> {
    let put = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        db.prepare_cached(sql).and_then(|mut statement| statement.execute(values)).map(drop)
    };
    match item {
        Item::Audit { seq, line } => put("INSERT INTO audit (seq, line) VALUES (?1, ?2)", &[&seq, &line]),
        Item::Grant { grant, version, body } => {
            let (id, open) = (grant.id.to_string(), !grant.state.is_final());
            put(
                "INSERT OR REPLACE INTO grants (id, version, state, open, principal, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                &[&id, &version, &grant.state.word(), &open, &grant.principal.name.as_str(), &body],
            )?;
            for target in grant.targets() {
                let sql = "INSERT OR IGNORE INTO grant_targets (target, open, id) VALUES (?1, ?2, ?3)";
                put(sql, &[&target.to_string(), &open, &id])?;
            }
            Ok(())
        }
        Item::Request { principal, key, grant } => put(
            "INSERT OR REPLACE INTO requests (principal, key, id) VALUES (?1, ?2, ?3)",
            &[&principal.as_str(), &key, &grant],
        ),
        Item::Policy { name, version, body } => put(
            "INSERT OR REPLACE INTO policies (name, version, body) VALUES (?1, ?2, ?3)",
            &[&name, &version, &body],
        ),
        Item::Agent { target, version, body } => put(
            "INSERT OR REPLACE INTO agents (target, version, body) VALUES (?1, ?2, ?3)",
            &[&target, &version, &body],
        ),
        Item::Token { hash, body } => {
            put("INSERT OR REPLACE INTO tokens (hash, body) VALUES (?1, ?2)", &[&hash.0, &body])
        }
    }
}

#[async_trait]
impl Source for Transfer {
    async fn head(&mut self) -> Result<Head, StoreError> {
        read_head(&self.connection)
    }

    async fn counts(&mut self) -> Result<Counts, StoreError> {
        counts(&self.connection)
    }

    async fn page(&mut self, kind: RecordKind, from: Option<&str>) -> Result<Page, StoreError> {
        let rows = rows(&self.connection, kind, from)?;
        let next = (rows.len() == PAGE).then(|| rows.last().map(|(key, _)| key.clone())).flatten();
        Ok(Page { items: rows.into_iter().map(|(_, item)| item).collect(), next })
    }

    async fn mark_moved(&mut self, to: &str, head: &Head) -> Result<(), StoreError> {
        if read_head(&self.connection)? != *head {
            return Err(MigrationError::Changed.into());
        }
        let sql = "INSERT OR REPLACE INTO marks (name, text) VALUES (?1, ?2)";
        self.connection.execute(sql, params![MOVED, to]).map(drop).map_err(unavailable)
    }
}

#[async_trait]
impl Target for Transfer {
    async fn begin(&mut self, from: &str, overwrite: bool) -> Result<(), StoreError> {
        let transaction = self.connection.transaction().map_err(unavailable)?;
        match mark(&transaction, INCOMPLETE)? {
            Some(from) if !overwrite => return Err(MigrationError::Incomplete { from }.into()),
            Some(_) => {
                for table in KINDS.into_iter().map(table).chain(["grant_targets"]) {
                    transaction.execute(&format!("DELETE FROM {table}"), []).map_err(unavailable)?;
                }
            }
            None if counts(&transaction)?.values().any(|count| *count > 0) => {
                return Err(MigrationError::NotEmpty.into());
            }
            None => {}
        }
        let sql = "INSERT OR REPLACE INTO marks (name, text) VALUES (?1, ?2)";
        transaction.execute(sql, params![INCOMPLETE, from]).map_err(unavailable)?;
        transaction.commit().map_err(unavailable)
    }

    async fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        let transaction = self.connection.transaction().map_err(unavailable)?;
        for item in items {
            keep(&transaction, item).map_err(unavailable)?;
        }
        transaction.commit().map_err(unavailable)
    }

    async fn arrived(&mut self) -> Result<Counts, StoreError> {
        counts(&self.connection)
    }

    async fn settle(&mut self) -> Result<(), StoreError> {
        // Every transaction was synced.
        Ok(())
    }

    async fn finish(&mut self, last: &AuditRecord) -> Result<(), StoreError> {
        let transaction = self.connection.transaction().map_err(unavailable)?;
        keep(&transaction, Item::Audit { seq: last.seq, line: last.to_line() }).map_err(unavailable)?;
        transaction.execute("DELETE FROM marks", []).map_err(unavailable)?;
        transaction.commit().map_err(unavailable)
    }
}
