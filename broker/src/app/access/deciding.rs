//! Requests that are being decided.
//!
//! A decision about `*` depends on everything that the principal has open, and one about a quota also on what others have open
//! on a target. A grant is in the store only some milliseconds after its decision, so two requests at once would not see each
//! other there. Each request therefore enters its openings here before it reads the store, and leaves them here until its grant
//! is in the store or refused. Of two requests at once the later one sees the earlier one, so that where there is room for one of
//! them, one is allowed. Requests through several brokers at the same moment do not see each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use postern_core::{AccessRequest, PrincipalKey, TargetId};

/// The requests that are being decided, by principal.
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

/// A request, and its number.
#[derive(Debug)]
struct Numbered {
    number: u64,
    request: Arc<AccessRequest>,
}

/// A request that is being decided, until it is dropped.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    deciding: &'a Deciding,
    principal: PrincipalKey,
    request: Arc<AccessRequest>,
    number: u64,
}

/// The requests that entered before a request, and are still being decided.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// The requests of the same principal.
    pub(super) own: Vec<Arc<AccessRequest>>,
    /// The number of windows on each target of the request: of the same principal, and of all.
    pub(super) on: BTreeMap<TargetId, (usize, usize)>,
}

impl Deciding {
    /// Enters a request.
    pub(super) fn enter(&self, principal: &PrincipalKey, request: &AccessRequest) -> Entered<'_> {
        let mut requests = self.lock();
        let number = requests.next;
        requests.next += 1;
        let request = Arc::new(request.clone());
        let own = requests.by_principal.entry(principal.clone()).or_default();
        own.push(Numbered { number, request: Arc::clone(&request) });
        Entered { deciding: self, principal: principal.clone(), request, number }
    }

    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entered<'_> {
    /// Returns the requests of every principal that entered before this one. Call it before the store is read: a request that
    /// leaves in between is in the store then, and counts twice at the most.
    pub(super) fn earlier(&self) -> Earlier {
        let requests: Vec<(bool, Arc<AccessRequest>)> = {
            let requests = self.deciding.lock();
            let before = requests.by_principal.iter().flat_map(|(principal, of_principal)| {
                let before = of_principal.iter().filter(|other| other.number < self.number);
                before.map(move |other| (*principal == self.principal, Arc::clone(&other.request)))
            });
            before.collect()
        };
        let targets: BTreeSet<&TargetId> = self.request.targets().iter().collect();
        let mut earlier = Earlier::default();
        for (is_own, request) in requests {
            for target in request.targets().iter().filter(|target| targets.contains(target)) {
                let (own, all) = earlier.on.entry(target.clone()).or_default();
                *own += if is_own { request.windows_on_each_target() } else { 0 };
                *all += request.windows_on_each_target();
            }
            if is_own {
                earlier.own.push(request);
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
