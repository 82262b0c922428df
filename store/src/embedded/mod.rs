//! The embedded store: SQLite in WAL mode with `synchronous = FULL`, so that an answered commit survives a power cut.
//! One broker uses it at a time.
//!
//! A commit goes through the one writer (`writer.rs`), which syncs once for all transactions that wait. Reads of open grants
//! and policies come from memory (`open_grant_cache.rs`), which follows a commit once it is durable; all other reads use
//! connections of their own (`reader.rs`) and wait for no writer.

mod changes;
mod database;
mod open_grant_cache;
mod reader;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
mod transfer;
mod writer;

use std::path::Path;

use async_trait::async_trait;
use postern_core::audit::Head;
use postern_core::{Grant, GrantId, Name, Policy, TargetId};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params, params_from_iter};
use serde::de::DeserializeOwned;

use super::{
    AgentRecord, Durable, GrantQuery, Lease, Store, StoreError, TargetSnapshot, TokenHash, TokenRecord,
    Transaction, Versioned,
};
use database::{Lock, audit_lines, connect, read_head};
use open_grant_cache::OpenGrantCache;
use reader::Readers;
use rows::{corrupt, from_body, unavailable};
pub use transfer::Transfer;
use writer::Writer;

/// The embedded store.
#[derive(Debug)]
pub struct Embedded {
    writer: Writer,
    cache: OpenGrantCache,
    readers: Readers,
    /// The lock on the database. It is the last field, so that the writer has ended when the lock is released.
    _lock: Lock,
}

impl Embedded {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// Another broker has it open, it was written by a newer broker, it was moved or is incomplete, or it cannot be read.
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
        let cache = OpenGrantCache::new(
            many(&connection, "grant", "SELECT version, body FROM grants WHERE open = 1", vec![])?,
            many(&connection, "policy", "SELECT version, body FROM policies WHERE body IS NOT NULL", vec![])?,
            read_head(&connection)?,
        );
        let writer = Writer::start(connection, cache.clone())?;
        Ok(Self { writer, cache, readers: Readers::new(path), _lock: lock })
    }
}

#[async_trait]
impl Store for Embedded {
    async fn commit(&self, transaction: Transaction) -> Result<Head, StoreError> {
        self.writer.commit(transaction).await
    }

    async fn grant(&self, id: GrantId) -> Result<Option<Versioned<Grant>>, StoreError> {
        if let Some(open) = self.cache.open_grant(id) {
            return Ok(Some(open));
        }
        let sql = "SELECT version, body FROM grants WHERE id = ?1";
        self.readers.one(move |db| one(db, "grant", sql, id.to_string()))
    }

    async fn durable_grant(&self, id: GrantId) -> Result<Durable<Option<Versioned<Grant>>>, StoreError> {
        // A reader sees a commit only after it is on the disk.
        self.grant(id).await.map(Durable::new)
    }

    async fn grants(&self, query: GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError> {
        self.readers.read(move |db| query_grants(db, &query)).await
    }

    async fn open_grants(&self) -> Result<Vec<Versioned<Grant>>, StoreError> {
        Ok(self.cache.open_grants())
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
        Ok(self.cache.snapshot(&lease.target))
    }

    async fn policies(&self) -> Result<Vec<Versioned<Policy>>, StoreError> {
        Ok(self.cache.policies())
    }

    async fn policy(&self, name: &Name) -> Result<Option<Versioned<Policy>>, StoreError> {
        Ok(self.cache.policy(name))
    }

    async fn durable_policy(&self, name: &Name) -> Result<Durable<Option<Versioned<Policy>>>, StoreError> {
        self.policy(name).await.map(Durable::new)
    }

    async fn agents(&self) -> Result<Vec<Versioned<AgentRecord>>, StoreError> {
        // Agents are sorted by target id, which is not the order of the ids' text.
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
        Ok(self.cache.head())
    }

    async fn ended(&self) -> String {
        self.writer.ended().await;
        "the thread that commits to the store has ended".to_owned()
    }
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

/// Returns every record that a query of (version, body) finds.
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
