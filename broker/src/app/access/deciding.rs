//! Requests that are being decided.
//!
//! A decision about `*` depends on everything that the principal has open, and one about a quota also on what others have open
//! on a target. A grant is in the store only some milliseconds after its decision, so two requests at once would not see each
//! other there. Each request therefore enters its openings here before it reads the store, and leaves them here until its grant
//! is in the store or refused. Of two requests at once the later one sees the earlier one, so that where there is room for one of
//! them, one is allowed. Requests through several brokers at the same moment do not see each other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use postern_core::policy::Opening;
use postern_core::{AccessRequest, PrincipalKey, TargetId};

/// The openings of the requests that are being decided, by principal.
#[derive(Debug, Default)]
pub struct Deciding {
    requests: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    /// The number of the next request: requests enter in order.
    next: u64,
    by_principal: HashMap<PrincipalKey, Vec<Numbered>>,
}

/// The openings of one request, and its number.
#[derive(Debug)]
struct Numbered {
    number: u64,
    openings: Vec<Opening>,
}

/// A request that is being decided, until it is dropped.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    deciding: &'a Deciding,
    principal: PrincipalKey,
    targets: Vec<TargetId>,
    number: u64,
}

/// The requests that entered before a request, and are still being decided.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// The openings of each request of the same principal.
    pub(super) own: Vec<Vec<Opening>>,
    /// The number of openings on each target of the request: of the same principal, and of all.
    pub(super) on: BTreeMap<TargetId, (usize, usize)>,
}

impl Deciding {
    /// Enters a request.
    pub(super) fn enter(&self, principal: &PrincipalKey, request: &AccessRequest) -> Entered<'_> {
        let mut requests = self.lock();
        let number = requests.next;
        requests.next += 1;
        let own = requests.by_principal.entry(principal.clone()).or_default();
        own.push(Numbered { number, openings: openings(request).collect() });
        Entered { deciding: self, principal: principal.clone(), targets: request.targets().to_vec(), number }
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered<'_> {
    /// Returns the requests of every principal that entered before this one. Call it before the store is read: a request that
    /// leaves in between is in the store then, and counts twice at the most.
    pub(super) fn earlier(&self) -> Earlier {
        let requests = self.deciding.lock();
        let mut earlier = Earlier::default();
        for (principal, of_principal) in &requests.by_principal {
            let is_own = *principal == self.principal;
            for Numbered { openings, .. } in
                of_principal.iter().filter(|request| request.number < self.number)
            {
                for opening in openings.iter().filter(|one| self.targets.contains(&one.target)) {
                    let (own, all) = earlier.on.entry(opening.target.clone()).or_default();
                    *own += usize::from(is_own);
                    *all += 1;
                }
                if is_own {
                    earlier.own.push(openings.clone());
                }
            }
        }
        earlier
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let requests = &mut self.deciding.lock().by_principal;
        if let Some(own) = requests.get_mut(&self.principal) {
            own.retain(|request| request.number != self.number);
            if own.is_empty() {
                requests.remove(&self.principal);
            }
        }
    }
}

fn openings(request: &AccessRequest) -> impl Iterator<Item = Opening> {
    request.targets().iter().flat_map(move |target| {
        request.ports().iter().flat_map(move |&port| {
            request.sources().iter().map(move |&source| Opening { target: target.clone(), port, source })
        })
    })
}
