//! The text of records, the same in every store.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;

/// Returns a record as text.
pub(crate) fn to_body(record: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|source| corrupt("record", source))
}

/// Reads a record from its text.
pub(crate) fn from_body<T: DeserializeOwned>(what: &str, body: &str) -> Result<T, StoreError> {
    serde_json::from_str(body).map_err(|source| corrupt(what, source))
}

/// Makes the error for a record that cannot be read.
pub(crate) fn corrupt(what: &str, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
    StoreError::Corrupt { what: what.to_owned(), source: Box::new(source) }
}
