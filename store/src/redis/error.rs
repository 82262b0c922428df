//! Redis's errors as the store's.

use redis::{RedisError, RedisResult};

use crate::error::StoreError;
use crate::room::Medium;

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

/// Returns an answer; none if the server's access control forbids the command to this user.
pub(super) fn unless_refused<T>(answer: RedisResult<T>) -> RedisResult<Option<T>> {
    match answer {
        Err(error) if error.code() == Some("NOPERM") => Ok(None),
        answer => answer.map(Some),
    }
}

/// Reports whether the server does not run a command: it does not know it, has it renamed, or forbids it to this user.
pub(super) fn is_lacking(error: &RedisError) -> bool {
    matches!(error.code(), Some("NOPERM" | "ERR"))
}

/// Turns an error of the client into one of the store.
pub(super) fn redis_failed(error: RedisError) -> StoreError {
    match error.code() {
        Some("OOM") => StoreError::Full(Medium::Memory),
        Some(_) | None => StoreError::Unavailable { source: Box::new(error) },
    }
}
