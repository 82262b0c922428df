//! The coordination of a store with one broker: it holds every lease, and gets no events.

use async_trait::async_trait;
use futures_util::future::{self, BoxFuture, FutureExt as _};
use postern_core::TargetId;

use crate::coordination::{Claim, Coordination, Lease, MemberInfo, RenewalReply, Subscription, TakenLease};
use crate::error::StoreError;

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

    async fn take(&self, target: &TargetId, _: Claim) -> Result<Option<TakenLease>, StoreError> {
        Ok(Some(TakenLease { lease: Lease { target: target.clone(), token: 0 }, inherits: false }))
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
