//! The coordination of a store with one broker: it holds every lease, and gets no events.

use std::collections::HashSet;

use async_trait::async_trait;
use futures_util::future::{self, BoxFuture, FutureExt as _};
use postern_core::TargetId;

use super::StoreError;
use super::coordination::{
    Claim, Coordination, Lease, MemberInfo, PublishedStatus, RenewalReply, Subscription, TakenLease,
};

/// The only broker on its store.
#[derive(Debug, Default)]
pub struct SingleBroker {
    info: std::sync::Mutex<MemberInfo>,
}

#[async_trait]
impl Coordination for SingleBroker {
    fn is_alone(&self) -> bool {
        true
    }

    fn membership(&self) -> String {
        String::new()
    }

    async fn renew(&self, info: &MemberInfo) -> Result<RenewalReply, StoreError> {
        *self.info.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = info.clone();
        Ok(RenewalReply::default())
    }

    async fn leave(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn take(&self, target: &TargetId, _: Claim) -> Result<Option<TakenLease>, StoreError> {
        Ok(Some(TakenLease { lease: Lease { target: target.clone(), token: 0 }, inherits: false }))
    }

    async fn held(&self) -> Result<HashSet<TargetId>, StoreError> {
        Ok(HashSet::new())
    }

    async fn take_over(&self, _: &str) -> Result<Vec<TakenLease>, StoreError> {
        Ok(Vec::new())
    }

    async fn end_exclusive(&self, _: &Lease) -> Result<(), StoreError> {
        Ok(())
    }

    async fn give_back(&self, _: &Lease) -> Result<(), StoreError> {
        Ok(())
    }

    async fn try_lock(&self, _: &str) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn unlock(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn publish(&self, _: Vec<PublishedStatus>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn statuses(&self, _: &[TargetId]) -> Result<Vec<(TargetId, String)>, StoreError> {
        Ok(Vec::new())
    }

    async fn ask_to_look(&self, _: &TargetId) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list_members(&self) -> Result<Vec<MemberInfo>, StoreError> {
        Ok(vec![self.info.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()])
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        // No event ever comes: there is no other member.
        future::pending().boxed()
    }
}
