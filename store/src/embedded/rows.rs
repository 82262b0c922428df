//! SQLite's errors as the store's.

use rusqlite::ErrorCode;

use crate::StoreError;
pub(super) use crate::bodies::{corrupt, from_body, to_body};

/// Turns an error of SQLite into one of the store.
pub(super) fn unavailable(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => corrupt("database", error),
        Some(_) | None => StoreError::Unavailable { source: Box::new(error) },
    }
}
