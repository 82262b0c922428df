//! The marks of a store that was moved away, or whose migration was not completed.

use super::connection::SharedConnection;
use super::error::redis_failed;
use super::server::Server;
use crate::error::{MigrationError, StoreError};

/// The marks that keep a store from being opened and from being written to.
pub(super) const MOVED: &str = "moved";
pub(super) const INCOMPLETE: &str = "incomplete";
/// The mark of a store whose upgrade was not completed.
pub(super) const UPGRADING: &str = "upgrading";
/// The key of that mark, and its text.
pub(super) const UPGRADE: (&str, &str) = (UPGRADING, "1");

/// Refuses a store with a mark.
pub(super) async fn check(server: &Server, shared: &mut SharedConnection) -> Result<(), StoreError> {
    let mut get = redis::cmd("MGET");
    get.arg(server.key(MOVED)).arg(server.key(INCOMPLETE));
    match get.query_async::<(Option<String>, Option<String>)>(shared).await.map_err(redis_failed)? {
        (Some(to), _) => Err(MigrationError::Moved { to }.into()),
        (None, Some(mark)) => Err(incomplete(&mark)),
        (None, None) => Ok(()),
    }
}

/// Makes the error for a mark, which is a random word and the source's name.
pub(super) fn incomplete(mark: &str) -> StoreError {
    let from = mark.split_once(' ').map_or(mark, |(_, from)| from);
    MigrationError::Incomplete { from: from.to_owned() }.into()
}
