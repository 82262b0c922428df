//! Redis's errors as the store's.

use redis::RedisError;

use crate::error::StoreError;

/// A text about the server or its answer, as the source of an error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct ServerMessage(String);

pub(super) fn message(text: &str) -> ServerMessage {
    ServerMessage(text.to_owned())
}

pub(super) fn failed(source: ServerMessage) -> StoreError {
    StoreError::Unavailable { source: Box::new(source) }
}

/// Turns an error of the client into one of the store.
pub(super) fn redis_failed(error: RedisError) -> StoreError {
    match error.code() {
        Some("OOM") => StoreError::Full,
        Some(_) | None => StoreError::Unavailable { source: Box::new(error) },
    }
}
