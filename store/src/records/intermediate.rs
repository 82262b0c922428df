//! Intermediates of the authority whose keys were stolen, by the hashes of their public keys. A record is never deleted.

use jiff::Timestamp;
use postern_core::KeyHash;
use serde::{Deserialize, Serialize};

use crate::batch::Expect;
use crate::error::StoreError;
use crate::kind::Kind;
use crate::record::{Record, Versioned};
use crate::store::Store;
use crate::transaction::Transaction;

/// An intermediate whose certificates no broker accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedIntermediate {
    /// The hash of its public key.
    pub key: KeyHash,
    /// The time at which a broker recorded it.
    pub at: Timestamp,
}

impl Record for RevokedIntermediate {
    const KIND: Kind = Kind::new("intermediates", "revoked intermediate").sealed().announced();
    type Key = KeyHash;
}

impl Transaction {
    /// Writes a revoked intermediate.
    #[must_use]
    pub fn put_revoked_intermediate(self, revoked: RevokedIntermediate, expect: Expect) -> Self {
        self.put(&revoked.key.clone(), revoked, expect)
    }
}

impl Store {
    /// Returns every revoked intermediate.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn revoked_intermediates(&self) -> Result<Vec<Versioned<RevokedIntermediate>>, StoreError> {
        self.list().await
    }
}
