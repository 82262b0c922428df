//! The name and the store of this broker, for its status.

use crate::config::BrokerConfig;

/// A broker's name and store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub name: String,
    /// The kind of its store.
    pub store: StoreKind,
}

/// The kind of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A database of this broker alone.
    Embedded,
    /// A Redis that several brokers may share.
    Redis,
}

impl About {
    /// Reads them from the configuration.
    pub fn of(config: &BrokerConfig) -> Self {
        let store = if config.redis.is_some() { StoreKind::Redis } else { StoreKind::Embedded };
        Self { name: config.replica_name.clone(), store }
    }
}
