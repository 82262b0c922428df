//! Principals with an issued certificate, by their keys, with the newest certificate of each role.

use std::collections::BTreeMap;

use jiff::Timestamp;
use postern_core::{CertificateSerial, PrincipalKey, Role};
use serde::{Deserialize, Serialize};

use crate::batch::Expect;
use crate::error::StoreError;
use crate::kind::Kind;
use crate::record::{Record, Versioned};
use crate::store::Store;
use crate::transaction::Transaction;

/// A principal with an issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedPrincipal {
    /// The principal.
    pub principal: PrincipalKey,
    /// The newest certificate of each role.
    pub certificates: BTreeMap<Role, IssuedCertificate>,
}

/// A certificate that was issued for a principal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedCertificate {
    /// The serial number.
    pub serial: CertificateSerial,
    /// The time at which it was signed, by the wall clock of the signer, in whole seconds.
    pub issued_at: Timestamp,
    /// The end.
    pub not_after: Timestamp,
}

impl IssuedPrincipal {
    /// Makes the record of a principal without a certificate.
    pub fn new(principal: PrincipalKey) -> Self {
        Self { principal, certificates: BTreeMap::new() }
    }

    /// Adds a certificate, unless a newer one of the same role is there. Returns false if the record has this certificate already.
    pub fn add(&mut self, role: Role, certificate: IssuedCertificate) -> bool {
        let newest = self.certificates.get(&role);
        if newest.is_some_and(|newest| newest.serial == certificate.serial) {
            return false;
        }
        if newest.is_none_or(|newest| newest.issued_at <= certificate.issued_at) {
            self.certificates.insert(role, certificate);
        }
        true
    }
}

impl Record for IssuedPrincipal {
    const KIND: Kind = Kind::new("principals", "principal").sealed().announced();
    type Key = PrincipalKey;
}

impl Transaction {
    /// Writes a principal with an issued certificate.
    #[must_use]
    pub fn put_issued_principal(self, principal: IssuedPrincipal, expect: Expect) -> Self {
        self.put(&principal.principal.clone(), principal, expect)
    }
}

impl Store {
    /// Returns a principal with an issued certificate.
    ///
    /// # Errors
    /// The store failed, or the record cannot be read.
    pub async fn issued_principal(
        &self,
        principal: &PrincipalKey,
    ) -> Result<Option<Versioned<IssuedPrincipal>>, StoreError> {
        self.get(principal).await
    }

    /// Returns every principal with an issued certificate.
    ///
    /// # Errors
    /// The store failed, or a record cannot be read.
    pub async fn issued_principals(&self) -> Result<Vec<Versioned<IssuedPrincipal>>, StoreError> {
        self.list().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::builders::{at, key};

    fn certificate(serial: &str, second: i64) -> IssuedCertificate {
        let serial = CertificateSerial::new(serial).unwrap();
        IssuedCertificate { serial, issued_at: at(second), not_after: at(second + 60) }
    }

    #[test]
    fn the_newest_certificate_of_each_role_is_kept_in_whatever_order_they_come() {
        let mut alice = IssuedPrincipal::new(key("alice"));
        assert!(alice.add(Role::Requester, certificate("02", 20)));
        assert!(!alice.add(Role::Requester, certificate("02", 20)), "a repeated record is known");
        assert!(alice.add(Role::Requester, certificate("01", 10)));
        assert!(alice.add(Role::Reader, certificate("03", 5)));
        let text = serde_json::to_string(&alice).unwrap();
        assert_eq!(serde_json::from_str::<IssuedPrincipal>(&text).unwrap(), alice);
        let kept: Vec<_> = alice.certificates.into_iter().collect();
        assert_eq!(kept, [(Role::Requester, certificate("02", 20)), (Role::Reader, certificate("03", 5))]);
    }
}
