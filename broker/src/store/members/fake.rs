//! Members in memory, for tests of what a broker does with leases: who works on a target is what the test says.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::future::{self, BoxFuture, FutureExt as _};
use postern_core::TargetId;

use super::{Beat, Card, Claim, Lease, Members, News, Posted, Subscription, Taken};
use crate::store::StoreError;

/// Another broker beside the one under test.
#[derive(Debug, Default)]
pub(crate) struct Another {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    theirs: BTreeSet<TargetId>,
    token: u64,
    asked_to_look: Vec<TargetId>,
}

impl Another {
    /// The other works on the target from now on.
    pub(crate) fn takes(&self, target: &TargetId) {
        self.lock().theirs.insert(target.clone());
    }

    /// The other is gone.
    pub(crate) fn goes(&self) {
        self.lock().theirs.clear();
    }

    /// What the other was asked to look at since somebody last asked.
    pub(crate) fn asked_to_look(&self) -> Vec<TargetId> {
        std::mem::take(&mut self.lock().asked_to_look)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Members for Another {
    fn is_alone(&self) -> bool {
        false
    }

    fn membership(&self) -> String {
        "this".to_owned()
    }

    async fn beat(&self, _: &Card) -> Result<Beat, StoreError> {
        Ok(Beat::default())
    }

    async fn leave(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn take(&self, target: &TargetId, claim: Claim) -> Result<Option<Taken>, StoreError> {
        let mut state = self.lock();
        let inherits = state.theirs.contains(target);
        if inherits && claim == Claim::Free {
            return Ok(None);
        }
        state.theirs.remove(target);
        state.token += 1;
        let lease = Lease { target: target.clone(), token: state.token };
        Ok(Some(Taken { lease, inherits }))
    }

    async fn held(&self) -> Result<HashSet<TargetId>, StoreError> {
        Ok(HashSet::new())
    }

    async fn take_over(&self, _: &str) -> Result<Vec<Taken>, StoreError> {
        Ok(Vec::new())
    }

    async fn end_turn(&self, _: &Lease) -> Result<(), StoreError> {
        Ok(())
    }

    async fn give_back(&self, _: &Lease) -> Result<(), StoreError> {
        Ok(())
    }

    async fn begin_job(&self, _: &str) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn end_job(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn post(&self, _: Vec<Posted>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn views(&self, _: &[TargetId]) -> Result<Vec<(TargetId, String)>, StoreError> {
        Ok(Vec::new())
    }

    async fn ask_to_look(&self, target: &TargetId) -> Result<(), StoreError> {
        self.lock().asked_to_look.push(target.clone());
        Ok(())
    }

    async fn roll(&self) -> Result<Vec<Card>, StoreError> {
        Ok(Vec::new())
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        let silent: Box<dyn Subscription> = Box::new(Silent);
        future::ready(Ok(silent)).boxed()
    }
}

/// News of which every one is lost.
struct Silent;

#[async_trait]
impl Subscription for Silent {
    async fn next(&mut self) -> Option<News> {
        future::pending().await
    }
}
