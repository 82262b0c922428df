//! Expensive reads: calls that go through many records share a few places, so that they leave the processor to the others.
//!
//! A read *enters*: it waits in the order of arrival until a place is free. There is a bound on the calls that wait, and one for
//! each caller; a call past them is refused at once. A stream that has begun waits for each of its pages. *Long* reads (the audit log's verification, an assessment of clouds) may take
//! minutes, so they leave one place to *pages* (a list, a piece of the audit log). Cheap reads, and every call that changes
//! something, never enter: a revocation waits for no read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::owner::Owner;
use super::table::{Limit, Limits};
use crate::telemetry;

/// The places for expensive reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ExpensiveReads(Arc<Places>);

#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    /// The places that long reads may have.
    long: Arc<Semaphore>,
    /// The most reads that wait or run, of all callers and of one.
    most: usize,
    per_caller: usize,
    entered: Mutex<Entered>,
}

/// The reads that wait or run.
#[derive(Debug, Default)]
struct Entered {
    all: usize,
    by_caller: HashMap<Owner, usize>,
}

/// The kind of an expensive read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadKind {
    /// A read that may take minutes.
    Long,
    /// A read of one page.
    Page,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct ReadPlace {
    _counted: Option<Counted>,
    _permits: (Option<OwnedSemaphorePermit>, Option<OwnedSemaphorePermit>),
}

/// A read that is counted until this is dropped.
#[derive(Debug)]
struct Counted {
    places: Arc<Places>,
    caller: Owner,
}

impl ExpensiveReads {
    /// Makes the places.
    pub fn new(limits: &Limits) -> Self {
        let places = limits.expensive_reads.max(2);
        Self(Arc::new(Places {
            all: Arc::new(Semaphore::new(places)),
            long: Arc::new(Semaphore::new(places - 1)),
            most: places + limits.expensive_reads_waiting,
            per_caller: limits.expensive_reads_per_caller,
            entered: Mutex::default(),
        }))
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// The limit on the reads that wait, or on those of the caller.
    pub async fn enter(&self, caller: impl Into<Owner>, kind: ReadKind) -> Result<ReadPlace, Limit> {
        let counted = self.count(caller.into()).inspect_err(|limit| telemetry::limited(*limit))?;
        let Places { all, long, .. } = &*self.0;
        let long = match kind {
            ReadKind::Long => Some(permit(long).await),
            ReadKind::Page => None,
        };
        Ok(ReadPlace { _counted: Some(counted), _permits: (permit(all).await, long.flatten()) })
    }

    /// Waits for a place for a page of a stream. A stream that has begun is not refused: the calls of its caller have a bound.
    pub async fn enter_page(&self) -> ReadPlace {
        ReadPlace { _counted: None, _permits: (permit(&self.0.all).await, None) }
    }

    fn count(&self, caller: Owner) -> Result<Counted, Limit> {
        let mut entered = self.0.lock();
        let own = entered.by_caller.get(&caller).copied().unwrap_or_default();
        if own >= self.0.per_caller {
            return Err(Limit::ExpensiveReadsPerCaller);
        }
        if entered.all >= self.0.most {
            return Err(Limit::ExpensiveReadsWaiting);
        }
        entered.all += 1;
        entered.by_caller.insert(caller.clone(), own + 1);
        Ok(Counted { places: Arc::clone(&self.0), caller })
    }
}

/// Takes a permit, and counts if it has to wait for it. The semaphores are never closed.
async fn permit(semaphore: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    if let Ok(permit) = Arc::clone(semaphore).try_acquire_owned() {
        return Some(permit);
    }
    telemetry::limited(Limit::ExpensiveReads);
    Arc::clone(semaphore).acquire_owned().await.ok()
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Entered> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut entered = self.places.lock();
        entered.all -= 1;
        if let Some(own) = entered.by_caller.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                entered.by_caller.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::testing::builders::key;
    use crate::testing::counted::Counted;

    fn owner(who: &str) -> Owner {
        Owner::Principal(key(who))
    }

    fn reads(waiting: usize, per_caller: usize) -> ExpensiveReads {
        ExpensiveReads::new(&Limits {
            expensive_reads: 2,
            expensive_reads_waiting: waiting,
            expensive_reads_per_caller: per_caller,
            ..Limits::default()
        })
    }

    #[tokio::test]
    async fn i10_long_reads_leave_a_place_to_pages_and_others_wait() {
        let (counted, reads) = (Counted::here(), reads(10, 10));
        let long = reads.enter(owner("a"), ReadKind::Long).await.unwrap();
        let mut second = Box::pin(reads.enter(owner("a"), ReadKind::Long));
        assert!((&mut second).now_or_never().is_none(), "one long read at a time");
        let page =
            reads.enter(owner("b"), ReadKind::Page).now_or_never().expect("a page has a place").unwrap();
        let mut waits = Box::pin(reads.enter(owner("c"), ReadKind::Page));
        assert!((&mut waits).now_or_never().is_none(), "both places are taken");
        assert_eq!(counted.of(Limit::ExpensiveReads), 2);
        drop(page);
        drop(waits.now_or_never().expect("it is its turn").unwrap());
        drop(long);
        assert!(second.now_or_never().is_some());
        let entered = reads.0.lock();
        assert_eq!((entered.all, entered.by_caller.len()), (0, 0), "all is given back");
    }

    #[tokio::test]
    async fn i10_reads_that_wait_are_bounded_in_all_and_for_each_caller() {
        let (counted, reads) = (Counted::here(), reads(3, 3));
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(reads.enter(owner("a"), ReadKind::Page).await.unwrap());
        }
        let mut waiting = Vec::new();
        let mut enter = |who: &str| {
            let mut read = Box::pin({
                let (reads, who) = (reads.clone(), owner(who));
                async move { reads.enter(who, ReadKind::Page).await }
            });
            let refused = (&mut read).now_or_never().map(|entered| entered.unwrap_err());
            if refused.is_none() {
                waiting.push(read);
            }
            refused
        };
        assert_eq!(enter("a"), None);
        assert_eq!(enter("a"), Some(Limit::ExpensiveReadsPerCaller));
        assert_eq!([enter("b"), enter("b")], [None, None]);
        assert_eq!(enter("c"), Some(Limit::ExpensiveReadsWaiting));
        let refused =
            [Limit::ExpensiveReadsPerCaller, Limit::ExpensiveReadsWaiting].map(|limit| counted.of(limit));
        assert_eq!(refused, [1, 1]);
        // A caller that hangs up leaves the queue.
        waiting.clear();
        drop(held);
        assert!(reads.enter(owner("c"), ReadKind::Page).now_or_never().is_some());
    }
}
