//! `WatchGrants`: a stream of all grants that the filter admits, then of each grant whenever it changes.
//!
//! The signals carry ids alone ([`crate::signals`]); the watchers share one read of each grant that changed, and of what the other
//! brokers report of it ([`GrantFeed`]), so that none sends a grant that is not durable, and a change costs one read however many watch. A watcher that falls behind reads
//! everything again. A grant that leaves the filter is sent once more, so that the client sees why it is gone.
//!
//! A watcher is lazy: it holds one page of grants, and reads the next one when the client has taken the last. A client that does
//! not read thus holds up its own stream alone, and costs a page and what HTTP/2 buffers. The pages of a listing are expensive
//! reads ([`crate::limits`]).

mod feed;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures_util::stream;
use postern_core::GrantId;
use postern_proto::v1;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

pub(in crate::api) use self::feed::GrantFeed;
use self::feed::ReadGrant;
use super::grant_view::{peers, show_with};
use super::reads::Reads;
use crate::api::error::to_status;
use crate::api::proof_end::Answers;
use crate::app::access::{self, GrantFilter};
use crate::app::{App, Caller, Error};
use crate::signals::grant_changes::{GrantChange, GrantWatcher};

pub(super) type WatchStream = Answers<v1::WatchGrantsResponse>;

/// The grants that a watcher holds at most.
const PAGE_SIZE: usize = 32;

/// Returns the stream of the grants that the filter admits and the caller may see (I7).
pub(super) fn grants(
    app: Arc<App>,
    (feed, reads): (GrantFeed, Reads),
    caller: Caller,
    filter: GrantFilter,
) -> WatchStream {
    let changes = app.grant_changes.watch();
    let position = Position::Listing { before: None, left: HashSet::new() };
    let (queue, inside) = (VecDeque::new(), HashSet::new());
    let watch = Watch { app, feed, reads, caller, filter, changes, queue, inside, position };
    Box::pin(stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(Some(item)) => Some((Ok(item), Some(watch))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    }))
}

struct Watch {
    app: Arc<App>,
    feed: GrantFeed,
    reads: Reads,
    caller: Caller,
    filter: GrantFilter,
    changes: GrantWatcher,
    /// The grants of the page that are still to be sent.
    queue: VecDeque<ReadGrant>,
    /// The grants that the filter admitted when they were last sent. Each is sent once more when it leaves the filter. Empty where
    /// the filter names no state: nothing else of a grant that a filter reads ever changes.
    inside: HashSet<GrantId>,
    position: Position,
}

/// The part of the stream that a watcher is in.
enum Position {
    /// The listing: all grants, page by page.
    Listing {
        /// The end of the last page.
        before: Option<GrantId>,
        /// The grants of an earlier listing that this one has not shown yet.
        left: HashSet<GrantId>,
    },
    /// The catching up: the grants that have left the filter since an earlier listing.
    Leaving(HashSet<GrantId>),
    /// The following: each grant that changes.
    Following,
}

impl Watch {
    async fn next(&mut self) -> Result<Option<v1::WatchGrantsResponse>, Status> {
        loop {
            if let Some(ReadGrant { grant, peers }) = self.queue.pop_front() {
                let grant = Some(show_with(&self.app, &self.caller, &grant, &peers));
                return Ok(Some(v1::WatchGrantsResponse { grant }));
            }
            match std::mem::replace(&mut self.position, Position::Following) {
                Position::Listing { before, left } => self.list(before, left).await?,
                Position::Leaving(mut left) => {
                    let Some(id) = left.iter().next().copied() else {
                        return Ok(Some(v1::WatchGrantsResponse { grant: None }));
                    };
                    left.remove(&id);
                    self.inside.insert(id);
                    let newest = self.app.grant_changes.newest();
                    self.queue_changed(id, newest).await.map_err(to_status)?;
                    self.position = Position::Leaving(left);
                }
                Position::Following => match self.changes.recv_numbered().await {
                    Ok((number, GrantChange::Of(id))) => {
                        self.queue_changed(id, number).await.map_err(to_status)?;
                    }
                    // Fallen behind: everything is sent again.
                    Ok((_, GrantChange::Missed)) | Err(RecvError::Lagged(_)) => {
                        let left = std::mem::take(&mut self.inside);
                        self.position = Position::Listing { before: None, left };
                    }
                    Err(RecvError::Closed) => return Ok(None),
                },
            }
        }
    }

    /// Queues the next page of the listing.
    async fn list(&mut self, before: Option<GrantId>, mut left: HashSet<GrantId>) -> Result<(), Status> {
        let place = self.reads.enter_page().await;
        let page = access::list_grants(&self.app, &self.caller, &self.filter, PAGE_SIZE, before).await;
        let (grants, next) = page.map_err(to_status)?;
        let peers = Arc::new(peers(&self.app, &grants).await);
        drop(place);
        for grant in grants {
            left.remove(&grant.id);
            self.note_inside(grant.id);
            self.queue.push_back(ReadGrant { grant: Arc::new(grant), peers: Arc::clone(&peers) });
        }
        self.position = match next {
            Some(before) => Position::Listing { before: Some(before), left },
            None => Position::Leaving(left),
        };
        Ok(())
    }

    async fn queue_changed(&mut self, id: GrantId, change: u64) -> Result<(), Error> {
        let grant = self.feed.read(&self.app, id, change).await?;
        let Some(read) = grant.filter(|read| self.caller.may_see(&read.grant)) else { return Ok(()) };
        if self.filter.admits(&read.grant) {
            self.note_inside(id);
            self.queue.push_back(read);
        } else if self.inside.remove(&id) {
            self.queue.push_back(read);
        }
        Ok(())
    }

    fn note_inside(&mut self, id: GrantId) {
        if !self.filter.states.is_empty() {
            self.inside.insert(id);
        }
    }
}

#[cfg(test)]
mod tests;
