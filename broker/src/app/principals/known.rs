//! The principals that the broker knows, as administrators see them.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::{CertificateSerial, Grant, PrincipalKey, Role};
use postern_store::{IssuedCertificate, IssuedPrincipal, Revocation, RevokedProof};

use crate::app::{App, Error};
use crate::principals::Issuance;

/// The beginning of a page's token within the certificates. No text of a key has a space in it.
const IN_CERTIFICATES: &str = "certificate ";

/// A principal that the broker knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPrincipal {
    /// The principal.
    pub key: PrincipalKey,
    /// The roles in which it was issued a certificate or has an open grant.
    pub roles: BTreeSet<Role>,
    /// The newest certificate of each role, and whether it is revoked.
    pub certificates: Vec<(Role, IssuedCertificate, bool)>,
    /// The number of its grants that are not over.
    pub open_grants: usize,
    /// Its newest revocation, if there is one.
    pub revocation: Option<Revocation>,
}

impl KnownPrincipal {
    fn new(key: PrincipalKey) -> Self {
        let (roles, certificates) = (BTreeSet::new(), Vec::new());
        Self { key, roles, certificates, open_grants: 0, revocation: None }
    }

    /// Reports whether the principal is revoked, with every certificate that the broker knows of it.
    pub fn is_revoked(&self) -> bool {
        self.revocation.is_some() && self.certificates.iter().all(|(_, _, revoked)| *revoked)
    }

    fn add_issued(&mut self, app: &App, issued: IssuedPrincipal) {
        for (role, certificate) in issued.certificates {
            let issuance = Issuance { at: certificate.issued_at, serial: Some(certificate.serial.clone()) };
            let is_revoked = app.revocations.cover(&self.key, &issuance);
            self.roles.insert(role);
            self.certificates.push((role, certificate, is_revoked));
        }
    }

    fn add_open(&mut self, grant: &Grant) {
        self.roles.insert(grant.principal.role());
        self.open_grants += 1;
    }
}

/// Returns the principal of this proof; none if the broker knows no principal with the certificate.
///
/// # Errors
/// The store failed.
pub(super) async fn of_proof(app: &App, proof: &RevokedProof) -> Result<Option<KnownPrincipal>, Error> {
    let (key, issued) = match proof {
        RevokedProof::Principal(key) => (key.clone(), app.store.genuine::<IssuedPrincipal>(key).await?),
        RevokedProof::Certificate(serial) => match app.store.principal_of_certificate(serial).await? {
            Some(issued) => (issued.record.principal.clone(), Some(issued)),
            None => return Ok(None),
        },
    };
    let proof = RevokedProof::Principal(key.clone());
    let (grants, revocation) =
        tokio::try_join!(app.store.open_grants_by(&key), app.store.genuine::<Revocation>(&proof))?;
    let mut known = KnownPrincipal::new(key);
    if let Some(issued) = issued {
        known.add_issued(app, issued.record);
    }
    grants.iter().for_each(|grant| known.add_open(&grant.record));
    known.revocation = revocation.map(|revocation| revocation.record);
    Ok(Some(known))
}

/// A page of the principals, and after the last one of the certificates that were revoked alone.
#[derive(Debug, Default)]
pub struct PrincipalsPage {
    /// The principals, by the texts of their keys.
    pub principals: Vec<KnownPrincipal>,
    /// The certificates that were revoked alone, by their serial numbers.
    pub certificates: Vec<(CertificateSerial, Revocation)>,
    /// The start of the next page; none on the last one.
    pub next: Option<String>,
}

/// Returns one page of so many principals and revoked certificates.
///
/// # Errors
/// The store failed.
pub async fn list(app: &App, size: usize, after: Option<&str>) -> Result<PrincipalsPage, Error> {
    let (issued, grants, revocations) =
        tokio::try_join!(app.store.issued_principals(), app.store.open_grants(), app.store.revocations())?;
    app.revocations.learn(revocations.iter().cloned());
    let mut principals: BTreeMap<String, KnownPrincipal> = BTreeMap::new();
    let mut certificates: BTreeMap<CertificateSerial, Revocation> = BTreeMap::new();
    let mut entry = |key: &PrincipalKey, change: &mut dyn FnMut(&mut KnownPrincipal)| {
        change(principals.entry(key.to_text()).or_insert_with(|| KnownPrincipal::new(key.clone())));
    };
    for issued in issued.into_iter().map(|issued| issued.record) {
        entry(&issued.principal.clone(), &mut |known| known.add_issued(app, issued.clone()));
    }
    for grant in grants.iter().map(|grant| &grant.record) {
        entry(grant.principal.key(), &mut |known| known.add_open(grant));
    }
    for revocation in revocations.into_iter().map(|revocation| revocation.record) {
        match revocation.proof.clone() {
            RevokedProof::Principal(key) => {
                entry(&key, &mut |known| known.revocation = Some(revocation.clone()));
            }
            RevokedProof::Certificate(serial) => {
                certificates.insert(serial, revocation);
            }
        }
    }
    Ok(page(principals, certificates, size, after))
}

fn page(
    principals: BTreeMap<String, KnownPrincipal>,
    certificates: BTreeMap<CertificateSerial, Revocation>,
    size: usize,
    after: Option<&str>,
) -> PrincipalsPage {
    let in_certificates = after.and_then(|after| after.strip_prefix(IN_CERTIFICATES));
    let principals: Vec<_> = principals
        .into_iter()
        .filter(|(text, _)| in_certificates.is_none() && after.is_none_or(|after| text.as_str() > after))
        .collect();
    let certificates: Vec<_> = certificates
        .into_iter()
        .filter(|(serial, _)| in_certificates.is_none_or(|after| serial.to_string().as_str() > after))
        .collect();
    let is_more = principals.len() + certificates.len() > size;
    let (mut page, mut last) = (PrincipalsPage::default(), None);
    for (text, known) in principals.into_iter().take(size) {
        page.principals.push(known);
        last = Some(text);
    }
    let left = size.saturating_sub(page.principals.len());
    for (serial, revocation) in certificates.into_iter().take(left) {
        last = Some(format!("{IN_CERTIFICATES}{serial}"));
        page.certificates.push((serial, revocation));
    }
    page.next = last.filter(|_| is_more);
    page
}
