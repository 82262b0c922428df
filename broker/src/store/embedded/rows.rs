//! Rows to records and back, and SQLite's errors as the store's.

use rusqlite::ErrorCode;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::StoreError;

/// A record as its column.
pub(super) fn to_body(record: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|source| corrupt("record", source))
}

/// A column as its record.
pub(super) fn from_body<T: DeserializeOwned>(what: &str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|source| corrupt(what, source))
}

/// SQLite's error as the store's.
pub(super) fn unavailable(error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => corrupt("database", error),
        Some(_) | None => StoreError::Unavailable { source: Box::new(error) },
    }
}

pub(super) fn corrupt(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Corrupt { what: what.to_owned(), source: Box::new(source) }
}
