//! Requests that are being decided.
//!
//! A decision about `*` depends on everything that the principal has open. A grant is in the store only some milliseconds after its
//! decision, so two requests at once would not see each other there. Each request therefore enters its openings here before it reads
//! the store, and leaves them here until its grant is in the store or refused. Requests of one principal through several brokers
//! at the same moment do not see each other.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use postern_core::policy::Opening;
use postern_core::{AccessRequest, PrincipalKey};

/// The openings of the requests that are being decided, by principal.
#[derive(Debug, Default)]
pub struct Deciding {
    requests: Mutex<HashMap<PrincipalKey, Vec<Numbered>>>,
}

/// The openings of one request, and its number among those of its principal.
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
    number: u64,
}

impl Deciding {
    /// Enters a request.
    pub(super) fn enter(&self, principal: &PrincipalKey, request: &AccessRequest) -> Entered<'_> {
        let mut requests = self.lock();
        let own = requests.entry(principal.clone()).or_default();
        // Requests enter in order, and each leaves by its number.
        let number = own.last().map_or(0, |last| last.number + 1);
        own.push(Numbered { number, openings: openings(request).collect() });
        Entered { deciding: self, principal: principal.clone(), number }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PrincipalKey, Vec<Numbered>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered<'_> {
    /// Returns the openings of the principal's other requests that are being decided.
    pub(super) fn others(&self) -> Vec<Opening> {
        let requests = self.deciding.lock();
        let own = requests.get(&self.principal).into_iter().flatten();
        own.filter(|request| request.number != self.number)
            .flat_map(|request| &request.openings)
            .cloned()
            .collect()
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut requests = self.deciding.lock();
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
