//! Documents and indexes, as the readers find them in the database.

use rusqlite::{Connection, Params, Row, params};

use super::cache::CachedDocument;
use super::rows::{corrupt, unavailable};
use crate::backend::{Order, Range};
use crate::document::Document;
use crate::error::StoreError;
use crate::indexes::{ALL, Indexes};
use crate::kind::Kind;

/// Returns the document with this key.
pub(super) fn get(db: &Connection, kind: Kind, key: &str) -> Result<Option<Document>, StoreError> {
    let sql = "SELECT key, version, body FROM documents WHERE kind = ?1 AND key = ?2 AND body IS NOT NULL";
    Ok(rows(db, sql, params![kind.name, key], |row| document(row, kind))?.pop())
}

/// Returns every document of a kind.
pub(super) fn list(db: &Connection, kind: Kind) -> Result<Vec<Document>, StoreError> {
    let sql = "SELECT key, version, body FROM documents WHERE kind = ?1 AND body IS NOT NULL ORDER BY key";
    rows(db, sql, params![kind.name], |row| document(row, kind))
}

/// Returns the documents in a range of an index.
pub(super) fn range(db: &Connection, kind: Kind, range: Range<'_>) -> Result<Vec<Document>, StoreError> {
    let order = match range.order {
        Order::Ascending => "ASC",
        Order::Descending => "DESC",
    };
    let before = if range.before.is_some() { "documents.key < ?3" } else { "?3 IS NULL" };
    let sql = if range.index == ALL {
        format!(
            "SELECT key, version, body FROM documents \
             WHERE kind = ?1 AND ?2 = '{ALL}' AND {before} AND body IS NOT NULL ORDER BY key {order} LIMIT ?4"
        )
    } else {
        // SQLite keeps the order of a cross join: it walks the index, and stops at the limit.
        let before = before.replace("documents.", "entries.");
        format!(
            "SELECT entries.key, version, body FROM entries CROSS JOIN documents USING (kind, key) \
             WHERE entries.kind = ?1 AND entries.name = ?2 AND {before} ORDER BY entries.key {order} LIMIT ?4"
        )
    };
    rows(db, &sql, params![kind.name, range.index, range.before, range.limit()], |row| document(row, kind))
}

/// Returns every document of a kind, each with its indexes.
pub(super) fn with_indexes(db: &Connection, kind: Kind) -> Result<Vec<CachedDocument>, StoreError> {
    let sql = "SELECT key, version, body, indexes FROM documents WHERE kind = ?1 AND body IS NOT NULL";
    rows(db, sql, params![kind.name], |row| indexed(row, kind))
}

/// Returns every document of an index, each with its indexes.
pub(super) fn of_index(db: &Connection, kind: Kind, index: &str) -> Result<Vec<CachedDocument>, StoreError> {
    let sql = "SELECT key, version, body, indexes FROM entries CROSS JOIN documents USING (kind, key) \
               WHERE entries.kind = ?1 AND entries.name = ?2";
    rows(db, sql, params![kind.name, index], |row| indexed(row, kind))
}

/// Returns each row that a query finds.
pub(super) fn rows<T>(
    db: &Connection,
    sql: &str,
    values: impl Params,
    mut read: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = db.prepare_cached(sql).map_err(unavailable)?;
    let mut rows = statement.query(values).map_err(unavailable)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(unavailable)? {
        found.push(read(row)?);
    }
    Ok(found)
}

fn indexed(row: &Row<'_>, kind: Kind) -> Result<CachedDocument, StoreError> {
    let (key, indexes): (String, String) =
        (row.get(0).map_err(unavailable)?, row.get(3).map_err(unavailable)?);
    let (document, indexes) = (document(row, kind)?, Indexes::from_text(&indexes));
    Ok(CachedDocument { key: key.into(), document, indexes })
}

fn document(row: &Row<'_>, kind: Kind) -> Result<Document, StoreError> {
    let body = row.get_ref(2).map_err(unavailable)?.as_str();
    let body = body.map_err(|source| corrupt(kind.noun, source))?.to_owned();
    Ok(Document::from_text(row.get(1).map_err(unavailable)?, body))
}
