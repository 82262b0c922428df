//! The readers: a pool of connections that only read.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};

use super::database::LOCK_TIMEOUT;
use super::rows::unavailable;
use crate::error::StoreError;

/// Lends connections, and opens one if none is idle.
#[derive(Debug, Clone)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Arc<Mutex<Vec<Connection>>>,
}

impl Readers {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), idle: Arc::default() }
    }

    /// Reads one record by its key on the caller's thread: that takes less time than a change of threads.
    pub(super) fn one<T>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.read_now(query)
    }

    /// Runs a query off the runtime's threads, inside one read transaction, so that it sees one instant.
    #[expect(clippy::disallowed_methods, reason = "the caller waits for the query, and reads its panic")]
    pub(super) async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = self.clone();
        let outcome = tokio::task::spawn_blocking(move || readers.read_now(query)).await;
        outcome.unwrap_or_else(|panic| Err(StoreError::Unavailable { source: Box::new(panic) }))
    }

    fn read_now<T>(&self, query: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = idle.map_or_else(|| open(&self.path), Ok)?;
        let transaction = connection.unchecked_transaction().map_err(unavailable)?;
        let outcome = query(&transaction);
        transaction.finish().map_err(unavailable)?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        outcome
    }
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(unavailable)?;
    connection.busy_timeout(LOCK_TIMEOUT).map_err(unavailable)?;
    Ok(connection)
}
