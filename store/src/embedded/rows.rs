//! SQLite's errors as the store's.

use rusqlite::ErrorCode;

pub(super) use crate::body::{corrupt, from_body};
use crate::error::StoreError;
use crate::room::Medium;

/// Turns an error of SQLite into one of the store.
pub(super) fn unavailable(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full(Medium::Disk),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => corrupt("database", error),
        Some(_) | None => StoreError::Unavailable { source: Box::new(error) },
    }
}
