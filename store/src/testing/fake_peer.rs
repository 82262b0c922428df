//! A fake coordination in memory, for tests of a broker's use of leases: the test says which broker works on a target.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::future::{self, BoxFuture, FutureExt as _};
use postern_core::TargetId;

use crate::coordination::{
    Claim, ClusterEvent, Coordination, Lease, MemberInfo, RenewalReply, Subscription, TakenLease,
};
use crate::error::StoreError;

/// A broker beside the one under test.
#[derive(Debug, Default)]
pub struct FakePeer {
    state: Mutex<PeerState>,
}

#[derive(Debug, Default)]
struct PeerState {
    held_by_peer: BTreeSet<TargetId>,
    token: u64,
    asked_to_look: Vec<TargetId>,
    status_reads: usize,
}

impl FakePeer {
    /// Makes the peer work on the target from now on.
    pub fn takes(&self, target: &TargetId) {
        self.lock().held_by_peer.insert(target.clone());
    }

    /// Ends the peer.
    pub fn goes(&self) {
        self.lock().held_by_peer.clear();
    }

    /// Returns the targets that the peer was asked to look at since the last call.
    pub fn asked_to_look(&self) -> Vec<TargetId> {
        std::mem::take(&mut self.lock().asked_to_look)
    }

    /// Returns how often the statuses of other brokers were read.
    pub fn status_reads(&self) -> usize {
        self.lock().status_reads
    }

    fn lock(&self) -> MutexGuard<'_, PeerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Coordination for FakePeer {
    fn is_alone(&self) -> bool {
        false
    }

    fn membership(&self) -> String {
        "this".to_owned()
    }

    async fn renew(&self, _: &MemberInfo) -> Result<RenewalReply, StoreError> {
        Ok(RenewalReply::default())
    }

    async fn take(&self, target: &TargetId, claim: Claim) -> Result<Option<TakenLease>, StoreError> {
        let mut state = self.lock();
        let inherits = state.held_by_peer.contains(target);
        if inherits && claim == Claim::Free {
            return Ok(None);
        }
        state.held_by_peer.remove(target);
        state.token += 1;
        let lease = Lease { target: target.clone(), token: state.token };
        Ok(Some(TakenLease { lease, inherits }))
    }

    async fn ask_to_look(&self, target: &TargetId) -> Result<(), StoreError> {
        self.lock().asked_to_look.push(target.clone());
        Ok(())
    }

    async fn statuses(&self, _: &[TargetId]) -> Result<Vec<(TargetId, String)>, StoreError> {
        self.lock().status_reads += 1;
        Ok(Vec::new())
    }

    async fn list_members(&self) -> Result<Vec<MemberInfo>, StoreError> {
        Ok(Vec::new())
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        let silent: Box<dyn Subscription> = Box::new(SilentSubscription);
        future::ready(Ok(silent)).boxed()
    }
}

/// A subscription of which every event is lost.
struct SilentSubscription;

#[async_trait]
impl Subscription for SilentSubscription {
    async fn next(&mut self) -> Option<ClusterEvent> {
        future::pending().await
    }
}
