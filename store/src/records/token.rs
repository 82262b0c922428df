//! Join tokens, by the hashes of their secrets.

use std::fmt;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use postern_core::TargetId;
use serde::{Deserialize, Serialize};

use crate::batch::Expect;
use crate::error::StoreError;
use crate::kind::Kind;
use crate::record::Record;
use crate::store::Store;
use crate::transaction::Transaction;

/// The SHA-256 of a join token's secret; the store does not keep the secret itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The target whose agent may enrol with it.
    pub target: TargetId,
    /// The time at which it was made.
    pub created_at: Timestamp,
    /// The time from which it is refused.
    pub expires_at: Timestamp,
}

impl Record for TokenRecord {
    const KIND: Kind = Kind::new("tokens", "join token").sealed();
    type Key = TokenHash;

    fn subject(_: &str) -> String {
        "the join token".to_owned()
    }
}

impl Transaction {
    /// Writes a join token.
    #[must_use]
    pub fn put_token(self, hash: TokenHash, token: TokenRecord) -> Self {
        self.put(&hash, token, Expect::Any)
    }

    /// Consumes a join token; conflicts if there is none. Of several callers at once, one succeeds.
    #[must_use]
    pub fn take_token(self, hash: &TokenHash) -> Self {
        self.delete::<TokenRecord>(hash, Expect::Any)
    }
}

impl Store {
    /// Returns the join token with this hash.
    ///
    /// # Errors
    /// The store failed, or the record cannot be read.
    pub async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        Ok(self.get(hash).await?.map(|token| token.record))
    }
}
