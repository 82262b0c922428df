//! Moving the embedded store, under the lock that a broker takes, so that no broker writes during the migration.

use std::path::Path;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use postern_core::audit::{AuditRecord, Head};
use rusqlite::{Connection, params};

use super::base;
use super::database::{Lock, audit_lines, connect, read_head};
use super::documents::{self, bounds, place, rows};
use super::marks;
use super::rows::{corrupt, unavailable};
use super::sealing::{self, TENANT};
use super::writes;
use crate::document::shown;
use crate::error::{MigrationError, StoreError};
use crate::indexes::Indexes;
use crate::kind::{Part, is_kind_name};
use crate::seal::{Sealer, Sealing};
use crate::transfer::{Counts, Item, PAGE, Page, Source, Target};

/// The marks that keep a store from being opened.
const MOVED: &str = "moved";
const INCOMPLETE: &str = "incomplete";

/// A database, as the source or the target of a migration.
#[derive(Debug)]
pub struct Transfer {
    connection: Connection,
    sealer: Sealer,
    _lock: Lock,
}

impl Transfer {
    /// Opens a database, to move it or to move another store into it.
    ///
    /// # Errors
    /// A broker has it open, it was written by a newer broker or sealed with another key, or it cannot be read.
    pub fn open(path: &Path, sealing: &Sealing) -> Result<Self, StoreError> {
        let (lock, connection) = connect(path, sealing)?;
        Ok(Self { connection, sealer: sealing.sealer(TENANT), _lock: lock })
    }
}

/// Refuses a store that was moved away, or whose migration was not completed.
pub(super) fn check(db: &Connection) -> Result<(), StoreError> {
    if let Some(to) = marks::read(db, MOVED)? {
        return Err(MigrationError::Moved { to: shown(&to) }.into());
    }
    match marks::read(db, INCOMPLETE)? {
        Some(from) => Err(MigrationError::Incomplete { from: shown(&from) }.into()),
        None => Ok(()),
    }
}

fn counts(db: &Connection) -> Result<Counts, StoreError> {
    let lines = db.query_row("SELECT COUNT(*) FROM audit", [], |row| row.get(0)).map_err(unavailable)?;
    let sql = "SELECT substr(place, 1, instr(place, '/') - 1) AS kind, COUNT(*) FROM documents GROUP BY kind";
    let kinds = rows(db, sql, [], |row| {
        let kind = row.get::<_, String>(0).ok().filter(|kind| is_kind_name(kind));
        Ok(kind.map(Part::Records).zip(row.get(1).ok()))
    })?;
    Ok(kinds.into_iter().flatten().chain([(Part::Audit, lines)]).collect())
}

/// Returns the documents of a kind after the key `from`, as they are kept. A page begins and ends with keys in hexadecimal, as another
/// program may have written keys that are no text.
fn documents(db: &Connection, kind: &str, from: &str) -> Result<Page, StoreError> {
    let sql = "SELECT place, version, body, indexes FROM documents \
               WHERE place > CAST(?1 AS TEXT) AND place < ?2 ORDER BY place LIMIT ?3";
    let (start, to) = bounds(kind);
    let from = HEXLOWER.decode(from.as_bytes()).map_err(|source| corrupt(kind, source))?;
    let from = [start.as_bytes(), &from].concat();
    let found = rows(db, sql, params![from, to, PAGE], |row| {
        let key = row.get_ref(0).map_err(unavailable)?.as_bytes().unwrap_or_default();
        let key = key.get(start.len()..).unwrap_or_default().to_vec();
        let read = || {
            let version = Some(documents::version(row, 1)).filter(|version| *version > 0)?;
            Some(Item::Document {
                kind: kind.to_owned(),
                key: String::from_utf8(key.clone()).ok()?,
                version,
                body: row.get(2).ok()?,
                indexes: Indexes::from_text(row.get(3).ok()?),
            })
        };
        let item = read();
        Ok((key, item))
    })?;
    let next = found.last().filter(|_| found.len() == PAGE).map(|(key, _)| HEXLOWER.encode(key));
    let (mut items, mut left_out) = (Vec::with_capacity(found.len()), Vec::new());
    for (key, item) in found {
        match item {
            Some(item) => items.push(item),
            None => left_out.push(key),
        }
    }
    Ok(Page { items, left_out, next })
}

fn keep(db: &Connection, item: Item) -> Result<(), StoreError> {
    let put = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        db.prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map(drop)
            .map_err(unavailable)
    };
    match item {
        Item::Audit { seq, line } => put("INSERT INTO audit (seq, line) VALUES (?1, ?2)", &[&seq, &line]),
        Item::Document { kind, key, version, body, indexes } => {
            let sql =
                "INSERT OR REPLACE INTO documents (place, version, indexes, body) VALUES (?1, ?2, ?3, ?4)";
            put(sql, &[&place(&kind, &key), &version, &indexes.text(), &body])?;
            indexes.names().try_for_each(|index| writes::enter(db, &kind, index, &key))
        }
    }
}

#[async_trait]
impl Source for Transfer {
    fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    async fn head(&mut self) -> Result<Head, StoreError> {
        read_head(&self.connection)
    }

    async fn base(&mut self) -> Result<Head, StoreError> {
        base::read(&self.connection)
    }

    async fn counts(&mut self) -> Result<Counts, StoreError> {
        counts(&self.connection)
    }

    async fn page(&mut self, part: &Part, from: Option<&str>) -> Result<Page, StoreError> {
        let (db, from) = (&self.connection, from.unwrap_or_default());
        match part {
            Part::Audit => {
                let after: i64 = if from.is_empty() { 0 } else { from.parse().unwrap_or(i64::MAX) };
                let sql = "SELECT seq, line FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2";
                let lines = audit_lines(db, sql, params![after, PAGE])?;
                let next = lines.last().filter(|_| lines.len() == PAGE).map(|(seq, _)| seq.to_string());
                let items = lines.into_iter().map(|(seq, line)| Item::Audit { seq, line }).collect();
                Ok(Page { items, left_out: Vec::new(), next })
            }
            Part::Records(kind) => documents(db, kind, from),
        }
    }

    async fn mark_moved(&mut self, to: &str, head: &Head) -> Result<(), StoreError> {
        if read_head(&self.connection)? != *head {
            return Err(MigrationError::Changed.into());
        }
        marks::write(&self.connection, MOVED, to)
    }
}

#[async_trait]
impl Target for Transfer {
    fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    async fn begin(&mut self, from: &str, overwrite: bool) -> Result<(), StoreError> {
        let transaction = self.connection.transaction().map_err(unavailable)?;
        match marks::read(&transaction, INCOMPLETE)? {
            Some(from) if !overwrite => {
                return Err(MigrationError::Incomplete { from: shown(&from) }.into());
            }
            Some(_) => {
                for table in ["audit", "documents", "entries"] {
                    transaction.execute(&format!("DELETE FROM {table}"), []).map_err(unavailable)?;
                }
                // The name of the key stays: the target is of this data directory.
                let marks = "DELETE FROM marks WHERE name <> ?1";
                transaction.execute(marks, [sealing::MARK]).map_err(unavailable)?;
            }
            None if counts(&transaction)?.values().any(|count| *count > 0) => {
                return Err(MigrationError::NotEmpty.into());
            }
            None => {}
        }
        marks::write(&transaction, INCOMPLETE, from)?;
        transaction.commit().map_err(unavailable)
    }

    async fn set_base(&mut self, base: Head) -> Result<(), StoreError> {
        base::write(&self.connection, base)
    }

    async fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        let transaction = self.connection.transaction().map_err(unavailable)?;
        for item in items {
            keep(&transaction, item)?;
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
        keep(&transaction, Item::Audit { seq: last.seq, line: last.to_line() })?;
        let marks = "DELETE FROM marks WHERE name IN (?1, ?2)";
        transaction.execute(marks, [MOVED, INCOMPLETE]).map_err(unavailable)?;
        transaction.commit().map_err(unavailable)
    }
}
