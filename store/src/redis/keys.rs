//! The version of the keys, and the texts of a head and a document.

use postern_core::audit::Head;

use super::error::message;
use crate::body::corrupt;
use crate::error::StoreError;
use crate::kind::{MAX_VERSION, Version};

/// The version of the keys.
pub(super) const SCHEMA: u32 = 4;

/// The most lines of the audit log that one read asks for, and the greatest number of a record: Lua counts no further.
pub(super) const MOST_LINES: u64 = 1 << 52;

/// Returns alternating keys and texts of documents as pairs. Another program may have written some that are no text.
pub(super) fn pairs(texts: Vec<Vec<u8>>) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    let mut texts = texts.into_iter();
    std::iter::from_fn(move || texts.next().zip(texts.next()))
}

/// Reads the version and the body of a document as it is kept; a deleted one has no body. None: no broker has written it.
pub(super) fn parse_document(text: &[u8]) -> Option<(Version, &str)> {
    let (version, body) = str::from_utf8(text).ok()?.split_once(' ')?;
    // As `commit.lua` reads it.
    let is_number = version.bytes().all(|byte| byte.is_ascii_digit());
    let version = version.parse().ok().filter(|version| is_number && *version <= MAX_VERSION)?;
    Some((version, body))
}

/// Returns a head as the store keeps it; the head of an empty log is an empty text.
pub(super) fn text_of(head: &Head) -> String {
    if *head == Head::EMPTY { String::new() } else { format!("{} {}", head.seq, head.hash) }
}

/// Reads a head as it is kept.
pub(super) fn head_of(text: &str) -> Result<Head, StoreError> {
    if text.is_empty() {
        return Ok(Head::EMPTY);
    }
    let parts = text.split_once(' ').and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.parse().ok()?)));
    let Some((seq, hash)) = parts else {
        return Err(corrupt("head", message("it is not a number and a hash")));
    };
    Ok(Head { seq, hash })
}
