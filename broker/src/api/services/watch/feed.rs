//! The feed: reads each grant that changed once, for all watchers together.

use std::collections::HashMap;
use std::sync::Arc;

use postern_core::{Grant, GrantId};
use tokio::sync::Mutex;

use crate::app::{App, Error};

/// The grants that the feed remembers. It forgets all of them when they are more: a watcher that needs one reads it again.
const MAX_GRANTS: usize = 256;

/// The grants that changed last, as they were read. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct GrantFeed(Arc<Mutex<HashMap<GrantId, GrantRead>>>);

/// A grant as it was read; none if it does not exist.
#[derive(Debug)]
struct GrantRead {
    /// The newest change before the read: the read shows it.
    after: u64,
    grant: Option<Arc<Grant>>,
}

impl GrantFeed {
    /// Returns a grant as the change of this number left it, or as a later one did. The watchers of one change share one read.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn read(
        &self,
        app: &App,
        id: GrantId,
        change: u64,
    ) -> Result<Option<Arc<Grant>>, Error> {
        // Held while the store reads, so that watchers that ask meanwhile find the answer.
        let mut read = self.0.lock().await;
        if let Some(known) = read.get(&id).filter(|known| known.after >= change) {
            return Ok(known.grant.clone());
        }
        let after = app.grant_changes.newest();
        let grant = app.store.grant(id).await?.map(|grant| Arc::new(grant.record));
        if read.len() >= MAX_GRANTS {
            read.clear();
        }
        read.insert(id, GrantRead { after, grant: grant.clone() });
        Ok(grant)
    }
}
