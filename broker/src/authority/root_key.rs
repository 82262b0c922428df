//! The root's key, as the broker sees it.

use postern_pki::PkiError;

/// The place of the root's key, as the broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootKey {
    /// The key is in the configured file, and usable.
    AtHand,
    /// The configured file does not exist.
    Offline,
    /// The configured file exists, and its key is not usable.
    Unusable {
        /// The reason.
        reason: String,
    },
}

/// Returns an error with its causes on one line.
pub(super) fn in_a_line(error: PkiError) -> String {
    format!("{:#}", anyhow::Error::from(error)).replace('\n', " ")
}
