//! Documents and indexes, as the readers find them in the database.

use rusqlite::{Connection, Params, Row, params};

use super::cache::CachedDocument;
use super::rows::unavailable;
use crate::backend::{DocumentPage, Order, Range};
use crate::document::Document;
use crate::error::StoreError;
use crate::indexes::{ALL, Indexes};
use crate::kind::{Kind, LastVersion, MAX_VERSION, Version};

/// Returns the primary key of a document.
pub(super) fn place(kind: &str, key: &str) -> String {
    format!("{kind}/{key}")
}

/// Returns the primary key of a document's entry in an index.
pub(super) fn entry(kind: &str, index: &str, key: &str) -> String {
    format!("{kind}/{index}\n{key}")
}

/// Returns the bounds of the places of a kind. Both are excluded: no key is empty.
pub(super) fn bounds(kind: &str) -> (String, String) {
    // The slash comes before the zero.
    (place(kind, ""), format!("{kind}0"))
}

/// Returns the document with this key.
pub(super) fn get(db: &Connection, kind: Kind, key: &str) -> Result<Option<Document>, StoreError> {
    let sql = "SELECT version, body, ?2 FROM documents WHERE place = ?1 AND body IS NOT NULL";
    Ok(rows(db, sql, [&place(kind.name, key), key], document)?.pop())
}

/// Returns the last version of a document, which may have been deleted.
pub(super) fn last_version(db: &Connection, kind: Kind, key: &str) -> Result<LastVersion, StoreError> {
    let sql = "SELECT version, body IS NOT NULL FROM documents WHERE place = ?1";
    let found = rows(db, sql, [place(kind.name, key)], |row| {
        Ok(LastVersion { version: version(row, 0), is_there: row.get(1).map_err(unavailable)? })
    })?;
    Ok(found.first().copied().unwrap_or_default())
}

/// Returns the version in a column; 0 if no broker can have written it.
pub(super) fn version(row: &Row<'_>, column: usize) -> Version {
    row.get(column).ok().filter(|version| *version <= MAX_VERSION).unwrap_or(0)
}

/// Returns every document of a kind.
pub(super) fn list(db: &Connection, kind: Kind) -> Result<Vec<Document>, StoreError> {
    range(db, kind, Range::all(ALL))
}

/// Returns the documents in a range of an index.
pub(super) fn range(db: &Connection, kind: Kind, range: Range<'_>) -> Result<Vec<Document>, StoreError> {
    let order = match range.order {
        Order::Ascending => "ASC",
        Order::Descending => "DESC",
    };
    if range.index == ALL {
        let (start, end) = bounds(kind.name);
        let key_at = start.chars().count() + 1;
        let from = range.after.map_or(start, |after| place(kind.name, after));
        let to = range.before.map_or(end, |before| place(kind.name, before));
        let sql = format!(
            "SELECT version, body, substr(place, ?4) FROM documents \
             WHERE place > ?1 AND place < ?2 AND body IS NOT NULL ORDER BY place {order} LIMIT ?3"
        );
        return rows(db, &sql, params![from, to, range.limit(), key_at], document);
    }
    let start = entry(kind.name, range.index, "");
    let key_at = start.chars().count() + 1;
    let from = range.after.map_or(start, |after| entry(kind.name, range.index, after));
    let to = match range.before {
        Some(before) => entry(kind.name, range.index, before),
        // The vertical tab comes after the line break.
        None => format!("{}/{}\u{b}", kind.name, range.index),
    };
    let sql = format!("SELECT version, body, substr(entry, ?4) {IN_INDEX} ORDER BY entry {order} LIMIT ?5");
    let of_kind = place(kind.name, "");
    rows(db, &sql, params![from, to, of_kind, key_at, range.limit()], document)
}

/// The documents of the entries between two bounds. SQLite keeps the order of a cross join: it walks the index.
const IN_INDEX: &str = "FROM entries CROSS JOIN documents ON place = ?3 || substr(entry, ?4) \
                        WHERE entry > ?1 AND entry < ?2";

/// Returns the documents of a kind after the key `from`, at most so many.
pub(super) fn scan(
    db: &Connection,
    kind: Kind,
    from: &str,
    limit: usize,
) -> Result<DocumentPage, StoreError> {
    let sql = "SELECT version, body, substr(place, ?4) FROM documents \
               WHERE place > ?1 AND place < ?2 AND body IS NOT NULL ORDER BY place LIMIT ?3";
    let (start, to) = bounds(kind.name);
    let (from, key_at) = (place(kind.name, from), start.chars().count() + 1);
    let documents = rows(db, sql, params![from, to, limit, key_at], document)?;
    let next = documents.last().filter(|_| documents.len() == limit).map(|last| last.key.to_string());
    Ok(DocumentPage { documents, next })
}

/// Returns every document of a kind, each with its key and its indexes.
pub(super) fn with_indexes(db: &Connection, kind: Kind) -> Result<Vec<CachedDocument>, StoreError> {
    let ((from, to), of_kind) = (bounds(kind.name), place(kind.name, ""));
    let sql = "SELECT version, body, substr(place, ?3), indexes FROM documents \
               WHERE place > ?1 AND place < ?2 AND body IS NOT NULL";
    rows(db, sql, params![from, to, of_kind.chars().count() + 1], cached)
}

/// Returns every document of an index, each with its key and its indexes.
pub(super) fn of_index(db: &Connection, kind: Kind, index: &str) -> Result<Vec<CachedDocument>, StoreError> {
    let (from, to) = (entry(kind.name, index, ""), format!("{}/{index}\u{b}", kind.name));
    let sql = format!("SELECT version, body, substr(entry, ?4), indexes {IN_INDEX}");
    let key_at = from.chars().count() + 1;
    rows(db, &sql, params![from, to, place(kind.name, ""), key_at], cached)
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

fn cached(row: &Row<'_>) -> Result<CachedDocument, StoreError> {
    let indexes = Indexes::from_text(row.get(3).unwrap_or_default());
    Ok(CachedDocument { document: document(row)?, indexes })
}

/// Reads a version, a text and a key. What no broker can have written is unreadable, and must not keep others from being read.
fn document(row: &Row<'_>) -> Result<Document, StoreError> {
    let key = row.get_ref(2).map_err(unavailable)?;
    let key = String::from_utf8_lossy(key.as_bytes().unwrap_or_default()).into_owned();
    let body = row.get_ref(1).map_err(unavailable)?.as_str();
    Ok(match body {
        Ok(body) => Document::from_text(key, version(row, 0), body.to_owned()),
        Err(_) => Document::unreadable(key),
    })
}
