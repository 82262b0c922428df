//! The embedded store: SQLite in WAL mode with `synchronous = FULL`, so that an answered commit survives a power cut.
//! One broker uses it at a time.
//!
//! A commit goes through the one writer (`writer.rs`), which syncs once for all transactions that wait. Reads of open grants
//! and policies come from memory (`cache.rs`), which follows a commit once it is durable; all other reads use
//! connections of their own (`reader.rs`) and wait for no writer.

mod base;
mod cache;
mod database;
mod documents;
mod marks;
mod reader;
mod rows;
mod schema;
mod sealing;
mod snapshot;
#[cfg(test)]
mod tests;
mod transfer;
mod writer;
mod writes;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use postern_core::audit::Head;
use postern_core::{Grant, Policy};
use rusqlite::{Connection, params};

use crate::backend::{Backend, DocumentPage, Range, Snapshot, SnapshotQuery};
use crate::batch::Batch;
use crate::coordination::Lease;
use crate::document::Document;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::kind::{Kind, LastVersion};
use crate::record::Record as _;
use crate::records::grant::OPEN;
use crate::records::manifest::PolicyManifest;
use crate::room::{Medium, Room};
use crate::seal::Sealing;
use crate::store::Store;
use cache::{Cache, CachedKind};
use database::{Lock, audit_lines, connect, read_head};
use reader::Readers;
use rows::unavailable;
use sealing::TENANT;
pub use snapshot::{Inspected, inspect, snapshot};
pub use transfer::Transfer;
use writer::Writer;

/// The space on the disk that SQLite's log may need, in bytes: four times the length at which SQLite begins it again.
const LOG_ROOM: u64 = 16 << 20;

/// The embedded store.
#[derive(Debug)]
pub struct Embedded {
    writer: Writer,
    cache: Cache,
    readers: Readers,
    path: PathBuf,
    /// The lock on the database. It is the last field, so that the writer has ended when the lock is released.
    _lock: Lock,
}

impl Embedded {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// Another broker has it open, it was written by a newer broker or sealed with another key, it was moved or is incomplete, or it
    /// cannot be read.
    pub fn open(path: &Path, sealing: &Sealing) -> Result<Store, StoreError> {
        Self::open_with(path, sealing, |_| Ok(()))
    }

    fn open_with(
        path: &Path,
        sealing: &Sealing,
        prepare: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<Store, StoreError> {
        let (lock, connection) = connect(path, sealing)?;
        let sealer = sealing.sealer(TENANT);
        transfer::check(&connection)?;
        prepare(&connection).map_err(unavailable)?;
        let cached = [
            CachedKind::indexed::<Grant>(OPEN),
            CachedKind::whole::<Policy>(),
            CachedKind::whole::<PolicyManifest>(),
        ];
        let cache = Cache::new(&cached, read_head(&connection)?);
        cache.fill(Grant::KIND, documents::of_index(&connection, Grant::KIND, OPEN)?, &sealer)?;
        cache.fill(Policy::KIND, documents::with_indexes(&connection, Policy::KIND)?, &sealer)?;
        let manifest = documents::with_indexes(&connection, PolicyManifest::KIND)?;
        cache.fill(PolicyManifest::KIND, manifest, &sealer)?;
        let writer = Writer::start(connection, cache.clone())?;
        let readers = Readers::new(path);
        Ok(Store::new(Arc::new(Self { writer, cache, readers, path: path.to_owned(), _lock: lock }), sealer))
    }
}

/// Returns the bytes of the database file that deleted records have left, which SQLite writes to before the file grows.
fn unused(db: &Connection) -> Result<u64, StoreError> {
    let read = |name| db.pragma_query_value(None, name, |row| row.get::<_, u64>(0)).map_err(unavailable);
    Ok(read("freelist_count")?.saturating_mul(read("page_size")?))
}

/// Returns the room for records: free space of the disk, and what the database has left unused as long as the disk has space for
/// SQLite's log, through which every write goes.
fn free(on_disk: u64, unused: u64) -> u64 {
    if on_disk < LOG_ROOM { on_disk } else { on_disk.saturating_add(unused) }
}

#[async_trait]
impl Backend for Embedded {
    async fn apply(&self, batch: Batch) -> Result<Head, StoreError> {
        self.writer.commit(batch).await
    }

    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Document>, StoreError> {
        if let Some(cached) = self.cache.get(kind, key) {
            return Ok(cached);
        }
        self.readers.one(|db| documents::get(db, kind, key))
    }

    async fn get_durable(&self, kind: Kind, key: &str) -> Result<Durable<Option<Document>>, StoreError> {
        // A reader sees a commit only after it is on the disk.
        self.get(kind, key).await.map(Durable::new)
    }

    async fn last_version(&self, kind: Kind, key: &str) -> Result<LastVersion, StoreError> {
        self.readers.one(|db| documents::last_version(db, kind, key))
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Document>, StoreError> {
        if let Some(cached) = self.cache.list(kind) {
            return Ok(cached);
        }
        self.readers.read(move |db| documents::list(db, kind)).await
    }

    async fn range(&self, kind: Kind, range: Range<'_>) -> Result<DocumentPage, StoreError> {
        if let Some(documents) = self.cache.range(kind, range) {
            let next = documents.last().filter(|_| documents.len() >= range.limit);
            return Ok(DocumentPage { next: next.map(|last| last.key.to_string()), documents });
        }
        let index = range.index.to_owned();
        let (after, before) = (range.after.map(str::to_owned), range.before.map(str::to_owned));
        let (order, limit) = (range.order, range.limit);
        self.readers
            .read(move |db| {
                let (after, before) = (after.as_deref(), before.as_deref());
                let range = Range { index: &index, after, before, order, limit };
                documents::range(db, kind, range)
            })
            .await
    }

    async fn scan(&self, kind: Kind, from: Option<&str>, limit: usize) -> Result<DocumentPage, StoreError> {
        let from = from.unwrap_or_default().to_owned();
        self.readers.read(move |db| documents::scan(db, kind, &from, limit)).await
    }

    async fn count(&self, kind: Kind, index: &str) -> Result<usize, StoreError> {
        match self.cache.count(kind, index) {
            Some(count) => Ok(count),
            None => Ok(self.range(kind, Range::all(index)).await?.documents.len()),
        }
    }

    async fn snapshot(&self, _: &Lease, wanted: SnapshotQuery<'_>) -> Result<Snapshot, StoreError> {
        if let Some(cached) = self.cache.snapshot(wanted) {
            return Ok(Snapshot { one: self.get(wanted.one.0, wanted.one.1).await?, ..cached });
        }
        let (kind, index, whole) = (wanted.kind, wanted.index.to_owned(), wanted.whole);
        let (of_one, key) = (wanted.one.0, wanted.one.1.to_owned());
        let (of_beside, key_beside) = (wanted.beside.0, wanted.beside.1.to_owned());
        self.readers
            .read(move |db| {
                Ok(Snapshot {
                    indexed: documents::range(db, kind, Range::all(&index))?.documents,
                    whole: documents::list(db, whole)?,
                    beside: documents::get(db, of_beside, &key_beside)?,
                    one: documents::get(db, of_one, &key)?,
                    seq: read_head(db)?.seq,
                })
            })
            .await
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

    async fn audit_base(&self) -> Result<Head, StoreError> {
        self.readers.one(base::read)
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        Ok(self.cache.head())
    }

    async fn room(&self) -> Result<Option<Room>, StoreError> {
        let found = rustix::fs::statvfs(&self.path)
            .map_err(|source| StoreError::Unavailable { source: Box::new(source) })?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let free = free(bytes(found.f_bavail), self.readers.one(unused)?);
        Ok(Some(Room { medium: Medium::Disk, free, size: bytes(found.f_blocks) }))
    }

    async fn ended(&self) -> String {
        self.writer.ended().await;
        "the thread that commits to the store has ended".to_owned()
    }
}
