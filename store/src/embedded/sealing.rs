//! The seals of a database: the name of its key, and the one time at which records without seals are sealed.

use rusqlite::{Connection, params};

use super::documents::{self, bounds, place, rows};
use super::marks;
use super::rows::unavailable;
use super::writes::execute;
use crate::error::StoreError;
use crate::records::{SEALED, SealedKind};
use crate::seal::{Sealed, Sealing, has_seal};

/// The schema from which records are sealed.
pub(super) const SEALS: u32 = 4;
/// The tenant in the seals of an embedded store, which has only one.
pub(super) const TENANT: &str = "";
/// The mark with the name of the key.
pub(super) const MARK: &str = "sealed";

/// Refuses a database that was sealed with another key, before anything in it is touched.
pub(super) fn check(db: &Connection, schema: u32, sealing: &Sealing) -> Result<(), StoreError> {
    // The table of marks is of schema 2.
    if schema < 2 {
        return Ok(());
    }
    let is_other = match marks::read(db, MARK)? {
        Some(key) => key != sealing.sealer(TENANT).key_id(),
        // A data directory without a key cannot have sealed these records.
        None => schema >= SEALS && sealing.is_first() && has_records(db)?,
    };
    if is_other { Err(StoreError::OtherKey) } else { Ok(()) }
}

/// Seals the records of a schema without seals, and names the key, in the transaction that raises the schema.
pub(super) fn upgrade(db: &Connection, sealing: &Sealing) -> Result<(), StoreError> {
    let sealer = sealing.sealer(TENANT);
    for SealedKind { kind, reads } in SEALED.iter().filter(|_| sealing.is_first()) {
        let (from, to) = bounds(kind.name);
        let sql =
            "SELECT version, body, place FROM documents WHERE place > ?1 AND place < ?2 AND body IS NOT NULL";
        // What cannot be read stays as it is, and is forged from then on.
        let all = rows(db, sql, params![from, to], |row| {
            let text = |column| row.get::<_, String>(column).ok();
            let read =
                || Some((documents::version(row, 0), text(1)?, text(2)?.get(from.len()..)?.to_owned()));
            Ok(read())
        })?;
        // Those that have a seal already are of a data directory that was sealed before, and the seal has to fit.
        for (version, body, key) in
            all.into_iter().flatten().filter(|(_, body, _)| !has_seal(body) && reads(body))
        {
            let sealed = sealer.seal(Sealed { kind: kind.name, key: &key, version }, &body);
            let sql = "UPDATE documents SET body = ?2 WHERE place = ?1";
            execute(db, sql, params![place(kind.name, &key), sealed])?;
        }
    }
    name_key(db, sealing)
}

/// Names the key in the database, if no key is named there.
pub(super) fn name_key(db: &Connection, sealing: &Sealing) -> Result<(), StoreError> {
    let sql = "INSERT OR IGNORE INTO marks (name, text) VALUES (?1, ?2)";
    execute(db, sql, params![MARK, sealing.sealer(TENANT).key_id()]).map(drop)
}

fn has_records(db: &Connection) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM documents WHERE place > ?1 AND place < ?2)";
    for SealedKind { kind, .. } in SEALED {
        let (from, to) = bounds(kind.name);
        if db.query_row(sql, [from, to], |row| row.get(0)).map_err(unavailable)? {
            return Ok(true);
        }
    }
    Ok(false)
}
