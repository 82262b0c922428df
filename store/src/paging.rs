//! Pages of an index whose keys another program may have written: a key that is no text cannot name the beginning of the next page.

use crate::backend::DocumentPage;
use crate::document::Document;

/// The rows that are read at once after a key that is no text.
pub(crate) const READ_ON: usize = 500;

/// A document with its key as the database has it.
#[derive(Debug)]
pub(crate) struct RawRow {
    pub(crate) key: Vec<u8>,
    pub(crate) document: Document,
}

/// A page that ends with a key that is text, so that the next one goes on there. The rows between are left out.
#[derive(Debug)]
pub(crate) struct PageBuilder {
    pub(crate) page: DocumentPage,
    /// The key after which the backend reads [`READ_ON`] rows more.
    pub(crate) read_after: Option<Vec<u8>>,
}

impl PageBuilder {
    /// Begins with the rows that a backend found for a page of `limit`.
    pub(crate) fn of(rows: Vec<RawRow>, limit: usize) -> Self {
        let last = rows.last().filter(|_| rows.len() >= limit);
        let next = last.filter(|last| is_text(last)).map(|last| last.document.key.to_string());
        let read_after = last.filter(|_| next.is_none()).map(|last| last.key.clone());
        let documents = rows.into_iter().map(|row| row.document).collect();
        Self { page: DocumentPage { documents, next }, read_after }
    }

    /// Adds the first row with a key that is text, of those that the backend found after [`Self::read_after`].
    pub(crate) fn read_on(&mut self, rows: Vec<RawRow>) {
        self.read_after = rows.last().filter(|_| rows.len() >= READ_ON).map(|last| last.key.clone());
        if let Some(found) = rows.into_iter().find(is_text) {
            self.read_after = None;
            self.page.next = Some(found.document.key.to_string());
            self.page.documents.push(found.document);
        }
    }
}

fn is_text(row: &RawRow) -> bool {
    str::from_utf8(&row.key).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &[u8]) -> RawRow {
        RawRow { key: key.to_vec(), document: Document::unreadable(&*String::from_utf8_lossy(key)) }
    }

    #[test]
    fn i10_a_page_ends_with_a_key_that_is_text() {
        let short = PageBuilder::of(vec![row(b"a"), row(b"\xff")], 3);
        assert_eq!((short.page.next, short.read_after), (None, None));
        let full = PageBuilder::of(vec![row(b"a"), row(b"b")], 2);
        assert_eq!((full.page.next.as_deref(), full.read_after), (Some("b"), None));
        let mut broken = PageBuilder::of(vec![row(b"a"), row(b"b\xff")], 2);
        assert_eq!((broken.page.next.as_deref(), broken.read_after.as_deref()), (None, Some(&b"b\xff"[..])));
        broken.read_on((0..READ_ON).map(|_| row(b"c\xff")).collect());
        assert_eq!((broken.page.documents.len(), broken.read_after.as_deref()), (2, Some(&b"c\xff"[..])));
        broken.read_on(vec![row(b"d\xff"), row(b"e"), row(b"f")]);
        assert_eq!((broken.page.next.as_deref(), broken.read_after), (Some("e"), None));
        assert_eq!(broken.page.documents.len(), 3);
        let mut ended = PageBuilder::of(vec![row(b"b\xff")], 1);
        ended.read_on(vec![row(b"c\xff")]);
        assert_eq!((ended.page.next, ended.read_after), (None, None));
    }
}
