//! The names of keys and fields, and the text of a head.

use data_encoding::HEXLOWER;
use postern_core::Name;
use postern_core::audit::Head;

use super::error::message;
use crate::bodies::corrupt;
use crate::{StoreError, TokenHash};

/// The version of the keys.
pub(super) const SCHEMA: u32 = 2;

/// Returns the field of a request. No name has a space in it.
pub(super) fn request_field(principal: &Name, key: &str) -> String {
    format!("{principal} {key}")
}

pub(super) fn token_field(hash: &TokenHash) -> String {
    HEXLOWER.encode(&hash.0)
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
