//! `WatchGrants`: a stream of all grants that the filter admits, then of each grant whenever it changes.
//!
//! The signals carry ids alone ([`crate::signals`]); the watcher reads each grant from the store, so that it never sends a
//! grant that is not durable. A watcher that falls behind reads everything again. A grant that leaves the filter is sent
//! once more, so that the client sees why it is gone.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use futures_util::stream;
use postern_core::{Grant, GrantId};
use postern_proto::v1;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::grant_view::show;
use crate::api::error::to_status;
use crate::api::proof_end::Answers;
use crate::app::access::{self, GrantFilter};
use crate::app::{App, Caller, Error};
use crate::signals::grant_changes::GrantChange;

pub(super) type WatchStream = Answers<v1::WatchGrantsResponse>;

/// The grants that one read of the store returns at most.
const PAGE_SIZE: usize = 500;

/// Returns the stream of the grants that the filter admits and the caller may see (I7).
pub(super) fn grants(app: Arc<App>, caller: Caller, filter: GrantFilter) -> WatchStream {
    let changes = app.grant_changes.watch();
    let watch =
        Watch { app, caller, filter, changes, queue: VecDeque::new(), inside: HashSet::new(), listed: false };
    Box::pin(stream::unfold(Some(watch), |watch| async move {
        let mut watch = watch?;
        match watch.next().await {
            Ok(Some(item)) => Some((Ok(item), Some(watch))),
            Ok(None) => None,
            Err(error) => Some((Err(to_status(error)), None)),
        }
    }))
}

struct Watch {
    app: Arc<App>,
    caller: Caller,
    filter: GrantFilter,
    changes: broadcast::Receiver<GrantChange>,
    queue: VecDeque<v1::WatchGrantsResponse>,
    /// The grants that the filter admitted when they were last sent. Each is sent once more when it leaves the filter.
    inside: HashSet<GrantId>,
    listed: bool,
}

impl Watch {
    async fn next(&mut self) -> Result<Option<v1::WatchGrantsResponse>, Error> {
        loop {
            if let Some(item) = self.queue.pop_front() {
                return Ok(Some(item));
            }
            if !self.listed {
                self.list().await?;
                continue;
            }
            match self.changes.recv().await {
                Ok(GrantChange::Of(id)) => self.send_changed(id).await?,
                // Fallen behind: everything is sent again.
                Ok(GrantChange::Missed) | Err(RecvError::Lagged(_)) => self.listed = false,
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }

    async fn list(&mut self) -> Result<(), Error> {
        let mut left = std::mem::take(&mut self.inside);
        let mut before = None;
        loop {
            let (grants, next) =
                access::list_grants(&self.app, &self.caller, &self.filter, PAGE_SIZE, before).await?;
            for grant in grants {
                left.remove(&grant.id);
                self.inside.insert(grant.id);
                self.push(&grant).await;
            }
            match next {
                Some(id) => before = Some(id),
                None => break,
            }
        }
        // Grants that left while changes were missed are sent once more too.
        for id in left {
            self.inside.insert(id);
            self.send_changed(id).await?;
        }
        self.listed = true;
        self.queue.push_back(v1::WatchGrantsResponse { grant: None });
        Ok(())
    }

    async fn send_changed(&mut self, id: GrantId) -> Result<(), Error> {
        let grant = self.app.store.grant(id).await?.map(|grant| grant.record);
        let Some(grant) = grant.filter(|grant| self.caller.may_see(grant)) else { return Ok(()) };
        if self.filter.admits(&grant) {
            self.inside.insert(id);
            self.push(&grant).await;
        } else if self.inside.remove(&id) {
            self.push(&grant).await;
        }
        Ok(())
    }

    async fn push(&mut self, grant: &Grant) {
        let grant = Some(show(&self.app, grant).await);
        self.queue.push_back(v1::WatchGrantsResponse { grant });
    }
}

#[cfg(test)]
mod tests;
