//! A store on Redis with its side of the cluster, as a broker opens it.

use std::ops::Deref;
use std::sync::Arc;

use postern_store::redis::{Redis, RedisSettings};
use postern_store::testing::test_sealing;
use postern_store::{Store, StoreError};

/// A broker's store, without the broker.
#[derive(Debug)]
pub(crate) struct StoreBroker {
    store: Store,
    pub(crate) redis: Arc<Redis>,
}

impl StoreBroker {
    pub(crate) async fn open(settings: &RedisSettings) -> Result<Self, StoreError> {
        let redis = Arc::new(Redis::open(settings, &test_sealing()).await?);
        Ok(Self { store: redis.store(), redis })
    }
}

impl Deref for StoreBroker {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}
