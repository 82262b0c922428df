//! The base of the audit log: the head of the last record that has left the database.

use postern_core::audit::{AuditRecord, Head};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::marks;
use super::rows::{corrupt, from_body, unavailable};
use super::writes::execute;
use crate::batch::AuditCut;
use crate::error::StoreError;

/// The name under which the marks of the store have it.
const BASE: &str = "base";

/// Returns the base; the empty head if no record has left.
pub(super) fn read(db: &Connection) -> Result<Head, StoreError> {
    let Some(text) = marks::read(db, BASE)? else { return Ok(Head::EMPTY) };
    let parts = text.split_once(' ').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.parse().ok()?)));
    let (seq, hash) = parts.ok_or_else(|| corrupt("base of the audit log", NotAHead))?;
    Ok(Head { seq, hash })
}

/// Sets the base of an empty log.
pub(super) fn write(db: &Connection, base: Head) -> Result<(), StoreError> {
    marks::write(db, BASE, &format!("{} {}", base.seq, base.hash))
}

/// Removes the first records, inside the writer's transaction. `head` is the end of the log.
///
/// # Errors
/// A conflict, if the log does not begin and go on as the cut says, or would lose its last record.
pub(super) fn cut(db: &Connection, head: Head, cut: AuditCut) -> Result<(), StoreError> {
    let sql = "SELECT line FROM audit WHERE seq = ?1";
    let mut statement = db.prepare_cached(sql).map_err(unavailable)?;
    let line: Option<String> =
        statement.query_row([cut.upto.seq], |row| row.get(0)).optional().map_err(unavailable)?;
    let last = line.map(|line| from_body::<AuditRecord>("audit record", &line)).transpose()?;
    if read(db)? != cut.from || cut.upto.seq >= head.seq || last.map(|last| last.head()) != Some(cut.upto) {
        return Err(AuditCut::conflict());
    }
    execute(db, "DELETE FROM audit WHERE seq <= ?1", params![cut.upto.seq])?;
    write(db, cut.upto)
}

/// A base that is not a number and a hash.
#[derive(Debug, thiserror::Error)]
#[error("it is not a number and a hash")]
struct NotAHead;
