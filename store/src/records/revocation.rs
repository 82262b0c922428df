//! Revocations of principals and of single certificates, by what they revoke.
//!
//! A revocation of a principal holds for every proof that was issued up to its time: a person comes back with a proof that is issued
//! later. It is never deleted, and a later one of the same principal replaces it.

use std::fmt;

use jiff::Timestamp;
use postern_core::{CertificateSerial, Justification, Principal, PrincipalKey};
use serde::{Deserialize, Serialize};

use crate::batch::Expect;
use crate::durable::Durable;
use crate::error::StoreError;
use crate::kind::Kind;
use crate::record::{Record, Versioned};
use crate::store::Store;
use crate::transaction::Transaction;

/// A revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The proofs that are revoked.
    pub proof: RevokedProof,
    /// The administrator who revoked them.
    pub by: Principal,
    /// The time of the revocation, by the wall clock, as certificates have it.
    pub at: Timestamp,
    /// The administrator's reason, if given.
    pub reason: Option<Justification>,
}

/// The proofs that a revocation is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevokedProof {
    /// Every proof of a principal that was issued up to the revocation.
    Principal(PrincipalKey),
    /// The certificate with this serial number.
    Certificate(CertificateSerial),
}

impl fmt::Display for RevokedProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(key) => write!(f, "principal:{}", key.to_text()),
            Self::Certificate(serial) => write!(f, "certificate:{serial}"),
        }
    }
}

impl Record for Revocation {
    const KIND: Kind = Kind::new("revocations", "revocation").sealed().announced();
    type Key = RevokedProof;

    fn subject(key: &str) -> String {
        format!("the revocation of {key}")
    }
}

impl Transaction {
    /// Writes a revocation.
    #[must_use]
    pub fn put_revocation(self, revocation: Revocation, expect: Expect) -> Self {
        self.put(&revocation.proof.clone(), revocation, expect)
    }
}

impl Store {
    /// Returns the revocation of these proofs.
    ///
    /// # Errors
    /// The store failed, or the record cannot be read.
    pub async fn revocation(&self, of: &RevokedProof) -> Result<Option<Versioned<Revocation>>, StoreError> {
        self.get(of).await
    }

    /// Returns the revocation of these proofs, or that there is none, once that is as durable as an answered commit.
    ///
    /// # Errors
    /// It may be lost with the server that has it, or cannot be read.
    pub async fn durable_revocation(
        &self,
        of: &RevokedProof,
    ) -> Result<Durable<Option<Versioned<Revocation>>>, StoreError> {
        self.get_durable(of).await
    }

    /// Returns every revocation.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn revocations(&self) -> Result<Vec<Versioned<Revocation>>, StoreError> {
        self.list().await
    }
}
