//! Numbers in the configuration, each within the range that its documentation names.

use std::fmt::Display;
use std::ops::RangeInclusive;

use postern_core::Invalid;

/// Returns a number that a key of a section has, or the usual one if the key is left out.
///
/// # Errors
/// The number is out of range; the error names the key and the range.
pub(super) fn number<N: PartialOrd + Display>(
    (section, key): (&str, &str),
    value: Option<N>,
    range: RangeInclusive<N>,
    usual: N,
) -> Result<N, Invalid> {
    let Some(value) = value else { return Ok(usual) };
    if range.contains(&value) {
        return Ok(value);
    }
    let remedy = format!("use {} to {}", range.start(), range.end());
    Err(Invalid::new(format!("{section}.{key}"), format!("{value} is out of range"), remedy))
}
