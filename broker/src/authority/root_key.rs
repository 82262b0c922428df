//! The root's key, as the broker sees it.

use postern_pki::PkiError;

/// Where the root's key is, as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootKey {
    /// In the configured file, and usable.
    AtHand,
    /// Not in that file.
    Offline,
    /// In that file, and not usable.
    Unusable {
        /// Why.
        reason: String,
    },
}

/// An error with its causes, in one line.
pub(super) fn in_a_line(error: PkiError) -> String {
    format!("{:#}", anyhow::Error::from(error)).replace('\n', " ")
}
