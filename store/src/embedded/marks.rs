//! The marks of a database: single texts about it as a whole.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::rows::unavailable;
use super::writes::execute;
use crate::error::StoreError;

/// Returns the text of a mark; none if the database has no such mark.
pub(super) fn read(db: &Connection, name: &str) -> Result<Option<String>, StoreError> {
    let mut statement = db.prepare_cached("SELECT text FROM marks WHERE name = ?1").map_err(unavailable)?;
    let text =
        statement.query_row([name], |row| Ok(String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?).into()));
    text.optional().map_err(unavailable)
}

/// Sets the text of a mark.
pub(super) fn write(db: &Connection, name: &str, text: &str) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO marks (name, text) VALUES (?1, ?2)";
    execute(db, sql, params![name, text]).map(drop)
}
