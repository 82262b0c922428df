//! The database: the lock on it, a connection with the schema of this broker, and the lines of the audit log.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use postern_core::audit::{AuditRecord, Head};
use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::rows::{corrupt, from_body, unavailable};
use super::{schema, sealing};
use crate::error::StoreError;
use crate::seal::Sealing;

/// The longest wait of SQLite for a lock.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Locks the database, and opens it with the schema of this broker and the seals of this key.
pub(super) fn connect(path: &Path, seals: &Sealing) -> Result<(Lock, Connection), StoreError> {
    let lock = lock(path)?;
    // SQLite would make the file with the umask's permissions.
    private(path).map_err(|source| StoreError::Unavailable { source: Box::new(source) })?;
    let mut connection = Connection::open(path).map_err(unavailable)?;
    connection.busy_timeout(LOCK_TIMEOUT).map_err(unavailable)?;
    // The last connection that closes writes SQLite's log into the database. It must not if a newer broker left the log and
    // this broker refuses the database.
    keep_log(&connection, true)?;
    let found: u32 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(unavailable)?;
    schema::check(found)?;
    keep_log(&connection, false)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(unavailable)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(unavailable)?;
    // SQLite keeps what it may have to roll back in memory, not in a file beside the database.
    connection.pragma_update(None, "temp_store", "MEMORY").map_err(unavailable)?;
    sealing::check(&connection, found, seals)?;
    schema::migrate(&mut connection, found, seals)?;
    sealing::name_key(&connection, seals)?;
    Ok((lock, connection))
}

/// Sets whether closing the connection leaves SQLite's log as it is.
fn keep_log(connection: &Connection, keep: bool) -> Result<(), StoreError> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep).map(drop).map_err(unavailable)
}

/// The lock on a database. It is on a file beside the database, because SQLite has locks of its own on that.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file does not release the lock while a process that is being started has a copy of the descriptor.
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

pub(super) fn private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

pub(super) fn read_head(db: &Connection) -> Result<Head, StoreError> {
    let last = audit_lines(db, "SELECT seq, line FROM audit ORDER BY seq DESC LIMIT 1", [])?.pop();
    let record = last.map(|(seq, line)| from_body::<AuditRecord>(&audit_record(seq), &line)).transpose()?;
    Ok(record.map_or(Head::EMPTY, |record| record.head()))
}

/// Returns the lines that a query of (seq, line) finds. The error for a line that is no longer text names its number (I9).
pub(super) fn audit_lines(
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
