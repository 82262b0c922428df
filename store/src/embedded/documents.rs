//! Documents and indexes, as the readers find them in the database.

use rusqlite::{Connection, Params, Row, params};

use super::cache::CachedDocument;
use super::rows::unavailable;
use crate::backend::{DocumentPage, Order, Range};
use crate::document::Document;
use crate::error::StoreError;
use crate::indexes::{ALL, Indexes};
use crate::kind::{Kind, LastVersion, MAX_VERSION, Version};
use crate::paging::{PageBuilder, READ_ON, RawRow};

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
    let sql = "SELECT version, body FROM documents WHERE place = ?1 AND body IS NOT NULL";
    Ok(rows(db, sql, [&place(kind.name, key)], |row| document(row, key))?.pop())
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
    Ok(range(db, kind, Range::all(ALL))?.documents)
}

/// Returns the documents in a range of an index.
pub(super) fn range(db: &Connection, kind: Kind, range: Range<'_>) -> Result<DocumentPage, StoreError> {
    let (after, before) = (range.after.map(str::as_bytes), range.before.map(str::as_bytes));
    let mut page = PageBuilder::of(read_range(db, kind, range, (after, before))?, range.limit);
    while let Some(last) = page.read_after.take() {
        let bounds = match range.order {
            Order::Ascending => (Some(last.as_slice()), before),
            Order::Descending => (after, Some(last.as_slice())),
        };
        page.read_on(read_range(db, kind, Range { limit: READ_ON, ..range }, bounds)?);
    }
    Ok(page.page)
}

/// Reads the documents of an index between two keys, which are excluded and may be no text.
fn read_range(
    db: &Connection,
    kind: Kind,
    range: Range<'_>,
    (after, before): (Option<&[u8]>, Option<&[u8]>),
) -> Result<Vec<RawRow>, StoreError> {
    let (index, limit) = (range.index, range.limit());
    let order = match range.order {
        Order::Ascending => "ASC",
        Order::Descending => "DESC",
    };
    let bytes = |start: &str, key: &[u8]| [start.as_bytes(), key].concat();
    if index == ALL {
        let (start, end) = bounds(kind.name);
        let from = bytes(&start, after.unwrap_or_default());
        let to = before.map_or(end.into_bytes(), |before| bytes(&start, before));
        let sql = format!(
            "SELECT version, body, place FROM documents WHERE place > CAST(?1 AS TEXT) AND place < CAST(?2 AS TEXT) \
             AND body IS NOT NULL ORDER BY place {order} LIMIT ?3"
        );
        return rows(db, &sql, params![from, to, limit], |row| raw_row(row, &start));
    }
    let start = entry(kind.name, index, "");
    let key_at = start.chars().count() + 1;
    let from = bytes(&start, after.unwrap_or_default());
    // The vertical tab comes after the line break.
    let to =
        before.map_or_else(|| format!("{}/{index}\u{b}", kind.name).into_bytes(), |it| bytes(&start, it));
    let sql = format!("SELECT version, body, entry {IN_INDEX} ORDER BY entry {order} LIMIT ?5");
    let of_kind = place(kind.name, "");
    rows(db, &sql, params![from, to, of_kind, key_at, limit], |row| raw_row(row, &start))
}

/// The documents of the entries between two bounds. SQLite keeps the order of a cross join: it walks the index.
const IN_INDEX: &str = "FROM entries CROSS JOIN documents ON place = ?3 || substr(entry, ?4) \
                        WHERE entry > CAST(?1 AS TEXT) AND entry < CAST(?2 AS TEXT)";

/// Returns the documents of a kind after the key `from`, at most so many, and one more after keys that are no text.
pub(super) fn scan(
    db: &Connection,
    kind: Kind,
    from: &str,
    limit: usize,
) -> Result<DocumentPage, StoreError> {
    range(db, kind, Range { after: Some(from), limit, ..Range::all(ALL) })
}

/// Returns every document of a kind, each with its key and its indexes.
pub(super) fn with_indexes(db: &Connection, kind: Kind) -> Result<Vec<CachedDocument>, StoreError> {
    let (from, to) = bounds(kind.name);
    let sql = "SELECT version, body, place, indexes FROM documents \
               WHERE place > ?1 AND place < ?2 AND body IS NOT NULL";
    rows(db, sql, params![from, to], |row| cached(row, &from))
}

/// Returns every document of an index, each with its key and its indexes.
pub(super) fn of_index(db: &Connection, kind: Kind, index: &str) -> Result<Vec<CachedDocument>, StoreError> {
    let (from, to) = (entry(kind.name, index, ""), format!("{}/{index}\u{b}", kind.name));
    let sql = format!("SELECT version, body, entry, indexes {IN_INDEX}");
    let key_at = from.chars().count() + 1;
    rows(db, &sql, params![from.as_bytes(), to.as_bytes(), place(kind.name, ""), key_at], |row| {
        cached(row, &from)
    })
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

fn cached(row: &Row<'_>, start: &str) -> Result<CachedDocument, StoreError> {
    let indexes = Indexes::from_text(row.get(3).unwrap_or_default());
    Ok(CachedDocument { document: raw_row(row, start)?.document, indexes })
}

/// Reads a version, a text and a key after `start`.
fn raw_row(row: &Row<'_>, start: &str) -> Result<RawRow, StoreError> {
    let key = row.get_ref(2).map_err(unavailable)?.as_bytes().unwrap_or_default();
    let key = key.get(start.len()..).unwrap_or_default().to_vec();
    let document = match str::from_utf8(&key) {
        Ok(key) => document(row, key)?,
        Err(_) => Document::unreadable(&*String::from_utf8_lossy(&key)),
    };
    Ok(RawRow { key, document })
}

/// Reads a version and a text. What no broker can have written is unreadable, and must not keep others from being read.
fn document(row: &Row<'_>, key: &str) -> Result<Document, StoreError> {
    let body = row.get_ref(1).map_err(unavailable)?.as_str();
    Ok(match body {
        Ok(body) => Document::from_text(key, version(row, 0), body.to_owned()),
        Err(_) => Document::unreadable(key),
    })
}
