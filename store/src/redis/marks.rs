//! The marks of a store that was moved away, or whose migration was not completed.

use super::connection::SharedConnection;
use super::error::redis_failed;
use super::server::Server;
use crate::document::shown;
use crate::error::{MigrationError, StoreError};

/// The marks that keep a store from being opened and from being written to.
pub(super) const MOVED: &str = "moved";
pub(super) const INCOMPLETE: &str = "incomplete";
/// The mark of a store whose upgrade was not completed.
pub(super) const UPGRADING: &str = "upgrading";
/// The text of that mark, and its text if the broker that began the upgrade seals the records: only such a broker completes it, as every
/// other would leave records without seals.
pub(super) const UPGRADE: &str = "1";
pub(super) const SEALS_ALL: &str = "seals";

/// Refuses a store with a mark.
pub(super) async fn check(server: &Server, shared: &mut SharedConnection) -> Result<(), StoreError> {
    let mut get = redis::cmd("MGET");
    get.arg(server.key(MOVED)).arg(server.key(INCOMPLETE));
    let marks: (Option<Vec<u8>>, Option<Vec<u8>>) = get.query_async(shared).await.map_err(redis_failed)?;
    match marks {
        (Some(to), _) => Err(MigrationError::Moved { to: shown(&String::from_utf8_lossy(&to)) }.into()),
        (None, Some(mark)) => Err(incomplete(&String::from_utf8_lossy(&mark))),
        (None, None) => Ok(()),
    }
}

/// Makes the error for a mark, which is a random word and the source's name.
pub(super) fn incomplete(mark: &str) -> StoreError {
    let from = mark.split_once(' ').map_or(mark, |(_, from)| from);
    MigrationError::Incomplete { from: shown(from) }.into()
}
