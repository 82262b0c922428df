//! The text of a principal in keys and indexes.

use postern_core::PrincipalKey;

/// Returns the text by which records name a principal. It has no space in it.
pub(crate) fn principal_text(principal: &PrincipalKey) -> String {
    principal.to_text()
}
