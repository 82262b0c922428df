//! The only member of a store that one broker has to itself: everything is its own.

use std::collections::HashSet;

use async_trait::async_trait;
use futures_util::future::{self, BoxFuture, FutureExt as _};
use postern_core::TargetId;

use super::StoreError;
use super::members::{Beat, Card, Claim, Lease, Members, Posted, Subscription, Taken};

/// One broker alone.
#[derive(Debug, Default)]
pub struct Alone {
    card: std::sync::Mutex<Card>,
}

#[async_trait]
impl Members for Alone {
    fn is_alone(&self) -> bool {
        true
    }

    fn membership(&self) -> String {
        String::new()
    }

    async fn beat(&self, card: &Card) -> Result<Beat, StoreError> {
        *self.card.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = card.clone();
        Ok(Beat::default())
    }

    async fn leave(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn take(&self, target: &TargetId, _: Claim) -> Result<Option<Taken>, StoreError> {
        Ok(Some(Taken { lease: Lease { target: target.clone(), token: 0 }, inherits: false }))
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

    async fn ask_to_look(&self, _: &TargetId) -> Result<(), StoreError> {
        Ok(())
    }

    async fn roll(&self) -> Result<Vec<Card>, StoreError> {
        Ok(vec![self.card.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()])
    }

    fn subscribe(&self) -> BoxFuture<'_, Result<Box<dyn Subscription>, StoreError>> {
        // Nothing ever comes: nobody else is there.
        future::pending().boxed()
    }
}
