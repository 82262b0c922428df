//! The requests that made grants, by their principals and idempotency keys.

use std::fmt;

use postern_core::{GrantId, PrincipalKey};
use serde::{Deserialize, Serialize};

use crate::batch::Expect;
use crate::error::StoreError;
use crate::kind::Kind;
use crate::record::Record;
use crate::store::Store;
use crate::transaction::Transaction;

/// The grant that a request made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestRecord {
    /// The grant.
    pub grant: GrantId,
}

/// The key of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestKey {
    /// The text of the principal who sent the request. No such text has a space in it.
    principal: String,
    /// The request's idempotency key.
    key: String,
}

impl RequestKey {
    /// Makes the key of a request with this idempotency key.
    pub fn new(principal: &PrincipalKey, key: &str) -> Self {
        Self { principal: principal.to_text(), key: key.to_owned() }
    }
}

impl fmt::Display for RequestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.principal, self.key)
    }
}

impl Record for RequestRecord {
    const KIND: Kind = Kind::new("requests", "request").sealed();
    type Key = RequestKey;

    fn subject(key: &str) -> String {
        let (principal, key) = key.split_once(' ').unwrap_or_default();
        format!("the request {key:?} of {principal}")
    }
}

impl Transaction {
    /// Remembers the grant that a principal's request with this key made; conflicts if the key is known.
    #[must_use]
    pub fn remember_request(self, principal: &PrincipalKey, key: &str, grant: GrantId) -> Self {
        self.put(&RequestKey::new(principal, key), RequestRecord { grant }, Expect::Absent)
    }
}

impl Store {
    /// Returns the grant that the principal's request with this key made.
    ///
    /// # Errors
    /// The store failed, or the record cannot be read.
    pub async fn grant_of_request(
        &self,
        principal: &PrincipalKey,
        key: &str,
    ) -> Result<Option<GrantId>, StoreError> {
        let found = self.get::<RequestRecord>(&RequestKey::new(principal, key)).await?;
        Ok(found.map(|request| request.record.grant))
    }
}
