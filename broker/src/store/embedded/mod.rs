//! The embedded store: SQLite in WAL mode with `synchronous = FULL`, so that what was answered survives a power cut.
//! One broker uses it at a time.

mod changes;
mod reader;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod transfer;
mod view;
mod writer;

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use postern_core::audit::{AuditRecord, Head};
use postern_core::{Grant, GrantId, Name, Policy, TargetId};
use rusqlite::config::DbConfig;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};
use serde::de::DeserializeOwned;

use super::{
    AgentRecord, GrantQuery, Lease, Store, StoreError, TargetSnapshot, TokenHash, TokenRecord, Transaction,
    Versioned,
};
use reader::Readers;
use rows::{corrupt, from_body, unavailable};
pub use transfer::Transfer;
use view::View;
use writer::Writer;

/// How long SQLite waits for a lock before it gives up.
const BUSY: Duration = Duration::from_secs(5);

/// The embedded store.
#[derive(Debug)]
pub struct Embedded {
    writer: Writer,
    view: View,
    readers: Readers,
    /// Held as long as the store is open: the last field, so that the writer has ended when it goes.
    _lock: Lock,
}

impl Embedded {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// Another broker has it open, it was written by a newer broker, it was moved or is not there yet, or it cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, |_| Ok(()))
    }

    fn open_with(
        path: &Path,
        prepare: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<Self, StoreError> {
        let (lock, connection) = connect(path)?;
        transfer::check(&connection)?;
        prepare(&connection).map_err(unavailable)?;
        let view = View::new(
            many(&connection, "grant", "SELECT version, body FROM grants WHERE open = 1", vec![])?,
            many(&connection, "policy", "SELECT version, body FROM policies WHERE body IS NOT NULL", vec![])?,
            read_head(&connection)?,
        );
        let writer = Writer::start(connection, view.clone())?;
        Ok(Self { writer, view, readers: Readers::new(path), _lock: lock })
    }
}

/// Locks the database, and opens it with the schema of this broker.
fn connect(path: &Path) -> Result<(Lock, Connection), StoreError> {
    let lock = lock(path)?;
    // SQLite would make the file with the umask's permissions.
    private(path).map_err(|source| StoreError::Unavailable { source: Box::new(source) })?;
    let mut connection = Connection::open(path).map_err(unavailable)?;
    connection.busy_timeout(BUSY).map_err(unavailable)?;
    // The last connection that closes writes what is in the log into the database: not where a newer broker that was
    // killed left it, and this one refuses.
    keep_log(&connection, true)?;
    let found: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(unavailable)?;
    schema::check(found)?;
    keep_log(&connection, false)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(unavailable)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(unavailable)?;
    // What a transaction of a group may have to take back is kept in memory, not in a file beside the database.
    connection.pragma_update(None, "temp_store", "MEMORY").map_err(unavailable)?;
    schema::migrate(&mut connection, found)?;
    Ok((lock, connection))
}

/// Whether closing the connection leaves SQLite's log as it is.
fn keep_log(connection: &Connection, keep: bool) -> Result<(), StoreError> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop).map_err(unavailable)
}

/// The lock on a database. It is on a file beside it, because SQLite has locks of its own on the database.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file is not enough while a process that is being started has a copy of it.
        self.0.unlock().ok();
    }
}

fn lock(database: &Path) -> Result<Lock, StoreError> {
    let unavailable = |source| StoreError::Unavailable { source };
    let file = private(&database.with_extension("lock")).map_err(|source| unavailable(Box::new(source)))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => {
            Err(unavailable(format!("another broker has {} open; stop it first", database.display()).into()))
        }
        Err(TryLockError::Error(source)) => Err(unavailable(Box::new(source))),
    }
}

fn private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

#[async_trait]
impl Store for Embedded {
    async fn commit(&self, transaction: Transaction) -> Result<Head, StoreError> {
        self.writer.commit(transaction).await
    }

    async fn grant(&self, id: GrantId) -> Result<Option<Versioned<Grant>>, StoreError> {
        if let Some(open) = self.view.open_grant(id) {
            return Ok(Some(open));
        }
        let sql = "SELECT version, body FROM grants WHERE id = ?1";
        self.readers.one(move |db| one(db, "grant", sql, id.to_string()))
    }

    async fn grants(&self, query: GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError> {
        self.readers.read(move |db| query_grants(db, &query)).await
    }

    async fn open_grants(&self) -> Result<Vec<Versioned<Grant>>, StoreError> {
        Ok(self.view.open_grants())
    }

    async fn grant_of_request(&self, principal: &Name, key: &str) -> Result<Option<GrantId>, StoreError> {
        self.readers.one(|db| {
            let sql = "SELECT id FROM requests WHERE principal = ?1 AND key = ?2";
            let mut statement = db.prepare_cached(sql).map_err(unavailable)?;
            let id: Option<String> = statement
                .query_row(params![principal.as_str(), key], |row| row.get(0))
                .optional()
                .map_err(unavailable)?;
            id.map(|id| id.parse().map_err(|source| corrupt("grant id", source))).transpose()
        })
    }

    async fn snapshot(&self, lease: &Lease) -> Result<TargetSnapshot, StoreError> {
        Ok(self.view.snapshot(&lease.target))
    }

    async fn policies(&self) -> Result<Vec<Versioned<Policy>>, StoreError> {
        Ok(self.view.policies())
    }

    async fn policy(&self, name: &Name) -> Result<Option<Versioned<Policy>>, StoreError> {
        Ok(self.view.policy(name))
    }

    async fn agents(&self) -> Result<Vec<Versioned<AgentRecord>>, StoreError> {
        // The order of a list is the order of its ids, which is not that of their text.
        let sql = "SELECT version, body FROM agents";
        let mut agents: Vec<Versioned<AgentRecord>> =
            self.readers.read(move |db| many(db, "agent", sql, vec![])).await?;
        agents.sort_by(|a, b| a.record.target.cmp(&b.record.target));
        Ok(agents)
    }

    async fn agent(&self, target: &TargetId) -> Result<Option<Versioned<AgentRecord>>, StoreError> {
        let sql = "SELECT version, body FROM agents WHERE target = ?1";
        self.readers.one(|db| one(db, "agent", sql, target.to_string()))
    }

    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        self.readers.one(|db| {
            let mut statement =
                db.prepare_cached("SELECT body FROM tokens WHERE hash = ?1").map_err(unavailable)?;
            let body: Option<String> =
                statement.query_row(params![hash.0], |row| row.get(0)).optional().map_err(unavailable)?;
            body.map(|body| from_body("join token", &body)).transpose()
        })
    }

    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        self.readers
            .read(move |db| {
                let after = i64::try_from(after).unwrap_or(i64::MAX);
                let limit = i64::try_from(limit).unwrap_or(i64::MAX);
                audit_lines(
                    db,
                    "SELECT seq, line FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2",
                    params![after, limit],
                )
            })
            .await
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        Ok(self.view.head())
    }
}

fn read_head(db: &Connection) -> Result<Head, StoreError> {
    let last = audit_lines(db, "SELECT seq, line FROM audit ORDER BY seq DESC LIMIT 1", [])?.pop();
    let record = last.map(|(seq, line)| from_body::<AuditRecord>(&audit_record(seq), &line)).transpose()?;
    Ok(record.map_or(Head::EMPTY, |record| record.head()))
}

/// The lines that a query of (seq, line) finds. One that is no longer text is named by its place (I9).
fn audit_lines(
    db: &Connection,
    sql: &str,
    values: impl rusqlite::Params,
) -> Result<Vec<(u64, String)>, StoreError> {
    let mut statement = db.prepare_cached(sql).map_err(unavailable)?;
    let mut rows = statement.query(values).map_err(unavailable)?;
    let mut lines = Vec::new();
    while let Some(row) = rows.next().map_err(unavailable)? {
        let seq = row.get(0).map_err(unavailable)?;
        let line = row.get_ref(1).map_err(unavailable)?.as_str();
        lines.push((seq, line.map_err(|source| corrupt(&audit_record(seq), source))?.to_owned()));
    }
    Ok(lines)
}

fn audit_record(seq: u64) -> String {
    format!("audit record {seq}")
}

fn query_grants(db: &Connection, query: &GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError> {
    let mut sql = "SELECT version, body FROM grants WHERE 1".to_owned();
    let mut values: Vec<Value> = Vec::new();
    if let Some(target) = &query.target {
        sql += " AND id IN (SELECT id FROM grant_targets WHERE target = ?)";
        values.push(target.to_string().into());
    }
    if let Some(principal) = &query.principal {
        sql += " AND principal = ?";
        values.push(principal.to_string().into());
    }
    if let Some(before) = query.before {
        sql += " AND id < ?";
        values.push(before.to_string().into());
    }
    if !query.states.is_empty() {
        sql += &format!(" AND state IN ({})", vec!["?"; query.states.len()].join(", "));
        values.extend(query.states.iter().map(|state| Value::from((*state).to_owned())));
    }
    sql += " ORDER BY id DESC LIMIT ?";
    values.push(i64::try_from(query.limit).unwrap_or(i64::MAX).into());
    many(db, "grant", &sql, values)
}

fn one<T: DeserializeOwned>(
    db: &Connection,
    what: &str,
    sql: &str,
    key: String,
) -> Result<Option<Versioned<T>>, StoreError> {
    Ok(many(db, what, sql, vec![key.into()])?.pop())
}

/// Every record that a query of (version, body) finds.
fn many<T: DeserializeOwned>(
    db: &Connection,
    what: &str,
    sql: &str,
    values: Vec<Value>,
) -> Result<Vec<Versioned<T>>, StoreError> {
    let mut statement = db.prepare_cached(sql).map_err(unavailable)?;
    let mut rows = statement.query(params_from_iter(values)).map_err(unavailable)?;
    let mut records = Vec::new();
    while let Some(row) = rows.next().map_err(unavailable)? {
        let body = row.get_ref(1).map_err(unavailable)?.as_str().map_err(|source| corrupt(what, source))?;
        let record = from_body(what, body)?;
        records.push(Versioned { record, version: row.get(0).map_err(unavailable)? });
    }
    Ok(records)
}
