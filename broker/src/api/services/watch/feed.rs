//! The feed: reads each grant that changed once, for all watchers together, with what the other brokers report of it.

use std::collections::HashMap;
use std::sync::Arc;

use postern_core::{Grant, GrantId};
use tokio::sync::Mutex;

use crate::api::services::grant_view::peers;
use crate::app::{App, Error};
use crate::cluster::peer_status::PeerStatus;

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
    grant: Option<ReadGrant>,
}

/// A grant, with what the other brokers reported of its targets when it was read. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct ReadGrant {
    pub(super) grant: Arc<Grant>,
    pub(super) peers: Arc<PeerStatus>,
}

impl GrantFeed {
    /// Returns a grant as the change of this number left it, or as a later one did. The watchers of one change share one read.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn read(&self, app: &App, id: GrantId, change: u64) -> Result<Option<ReadGrant>, Error> {
        // Held while the store reads, so that watchers that ask meanwhile find the answer.
        let mut read = self.0.lock().await;
        if let Some(known) = read.get(&id).filter(|known| known.after >= change) {
            return Ok(known.grant.clone());
        }
        let after = app.grant_changes.newest();
        let grant = match app.store.grant(id).await? {
            Some(found) => {
                let peers = Arc::new(peers(app, [&found.record]).await);
                Some(ReadGrant { grant: Arc::new(found.record), peers })
            }
            None => None,
        };
        if read.len() >= MAX_GRANTS {
            read.clear();
        }
        read.insert(id, GrantRead { after, grant: grant.clone() });
        Ok(grant)
    }
}
