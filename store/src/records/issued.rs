//! Principals with an issued certificate, by their keys, with the newest certificate of each role.

use std::collections::BTreeMap;

use jiff::Timestamp;
use postern_core::{CertificateSerial, PrincipalKey, Role};
use serde::{Deserialize, Serialize};

use crate::backend::Range;
use crate::batch::Expect;
use crate::error::StoreError;
use crate::indexes::Indexes;
use crate::kind::Kind;
use crate::record::{Record, Versioned};
use crate::store::Store;
use crate::transaction::Transaction;

/// The most superseded certificates that a record names: more than a broker records at once.
const MAX_SUPERSEDED: usize = 128;

/// A principal with an issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedPrincipal {
    /// The principal.
    pub principal: PrincipalKey,
    /// The newest certificate of each role.
    pub certificates: BTreeMap<Role, IssuedCertificate>,
    /// The serial numbers of the last certificates that others have superseded, at most 128, so that each is
    /// recorded once however often the broker meets it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub superseded: Vec<CertificateSerial>,
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
        Self { principal, certificates: BTreeMap::new(), superseded: Vec::new() }
    }

    /// Adds a certificate; of two of the same role the newer one stays. Returns false if the record has this certificate already.
    pub fn add(&mut self, role: Role, certificate: IssuedCertificate) -> bool {
        if self.knows(&certificate.serial) {
            return false;
        }
        let newest = self.certificates.get(&role);
        let superseded = if newest.is_none_or(|newest| newest.issued_at <= certificate.issued_at) {
            self.certificates.insert(role, certificate)
        } else {
            Some(certificate)
        };
        self.superseded.extend(superseded.map(|certificate| certificate.serial));
        if self.superseded.len() > MAX_SUPERSEDED {
            self.superseded.remove(0);
        }
        true
    }

    /// Reports whether the record has this certificate.
    pub fn knows(&self, serial: &CertificateSerial) -> bool {
        self.certificates.values().any(|own| own.serial == *serial) || self.superseded.contains(serial)
    }
}

fn with_certificate(serial: &CertificateSerial) -> String {
    format!("certificate:{serial}")
}

impl Record for IssuedPrincipal {
    const KIND: Kind = Kind::new("principals", "principal").sealed().announced();
    type Key = PrincipalKey;

    fn indexes(&self) -> Indexes {
        let newest = self.certificates.values().map(|certificate| &certificate.serial);
        let all = newest.chain(&self.superseded);
        all.fold(Indexes::default(), |indexes, serial| indexes.and(&with_certificate(serial)))
    }
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

    /// Returns the principal that was issued the certificate with this serial number.
    ///
    /// # Errors
    /// The store failed, or the record cannot be read.
    pub async fn principal_of_certificate(
        &self,
        serial: &CertificateSerial,
    ) -> Result<Option<Versioned<IssuedPrincipal>>, StoreError> {
        let index = with_certificate(serial);
        // More than one, as another program may have put a forged entry before it.
        Ok(self.range(Range { limit: 8, ..Range::all(&index) }).await?.into_iter().next())
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
        assert!(!alice.add(Role::Requester, certificate("01", 10)), "also one that is not the newest");
        let text = serde_json::to_string(&alice).unwrap();
        assert_eq!(serde_json::from_str::<IssuedPrincipal>(&text).unwrap(), alice);
        let indexes = alice.indexes();
        let names: Vec<&str> = indexes.names().collect();
        assert_eq!(names, ["certificate:02", "certificate:03", "certificate:01"]);
        (0..200).for_each(|n| assert!(alice.add(Role::Requester, certificate(&format!("f{n:02x}"), 1))));
        assert_eq!(alice.superseded.len(), MAX_SUPERSEDED);
        let kept: Vec<_> = alice.certificates.into_iter().collect();
        assert_eq!(kept, [(Role::Requester, certificate("02", 20)), (Role::Reader, certificate("03", 5))]);
    }
}
