//! Principals: revoking their proofs, and listing them.
//!
//! A revocation is durable before its principal's grants close. If the broker fails between the two, the caller repeats the call.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use postern_core::audit::AuditEvent;
use postern_core::grant::IllegalTransition;
use postern_core::{CertificateSerial, Grant, GrantId, GrantState, Justification, PrincipalKey, Role};
use postern_store::{
    Durable, Expect, IssuedCertificate, IssuedPrincipal, Revocation, RevokedProof, StoreError, Transaction,
    Versioned,
};

use super::{App, Caller, Error, access};
use crate::clock::wall;
use crate::principals::Issuance;

/// The attempts at a revocation that another change overtakes each time.
const MAX_ATTEMPTS: usize = 5;
/// The grants that are closed at once.
const CLOSES_AT_ONCE: usize = 8;

/// A wish to revoke proofs.
#[derive(Debug, Clone)]
pub struct RevocationRequest {
    /// The proofs.
    pub proof: RevokedProof,
    /// The reason, if given.
    pub reason: Option<Justification>,
    /// Keeps the principal's open grants.
    pub keep_grants: bool,
    /// Lets the caller revoke its own proofs.
    pub allow_self: bool,
}

/// Proofs that were revoked.
#[derive(Debug)]
pub struct RevokedProofs {
    /// The revocation.
    pub revocation: Revocation,
    /// The principal, if the broker knows whose proofs they were.
    pub principal: Option<KnownPrincipal>,
    /// The grants that close.
    pub closed: Vec<GrantId>,
}

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
}

/// Revokes the proofs of a principal that were issued up to now, or one certificate, and closes the principal's open grants.
/// The broker need not know the principal: its certificate may be older than the journal, or of another machine.
///
/// # Errors
/// The caller would revoke its own proof and does not say so. After an error of the store the proofs may be revoked, and some grants
/// open: a repeated call does the rest.
pub async fn revoke(
    app: &App,
    caller: &Caller,
    asked: &RevocationRequest,
) -> Result<Durable<RevokedProofs>, Error> {
    if !asked.allow_self && is_own(caller, &asked.proof) {
        let reason = "this revokes your own certificate, so that your next call is refused; say so if you mean it \
                      (--allow-self)";
        return Err(Error::Precondition { reason: reason.to_owned() });
    }
    let revocation = match &asked.proof {
        RevokedProof::Principal(key) => revoke_principal(app, caller, asked, key).await?,
        RevokedProof::Certificate(serial) => revoke_certificate(app, caller, asked, serial).await?,
    };
    let closed = match &asked.proof {
        RevokedProof::Principal(key) if !asked.keep_grants => {
            close_grants(app, caller, key, asked.reason.as_ref()).await?
        }
        RevokedProof::Principal(_) | RevokedProof::Certificate(_) => Vec::new(),
    };
    let known = known(app).await?;
    let principal = known.into_values().find(|known| match &asked.proof {
        RevokedProof::Principal(key) => known.key == *key,
        RevokedProof::Certificate(serial) => {
            known.certificates.iter().any(|(_, own, _)| own.serial == *serial)
        }
    });
    Ok(revocation.map(|revocation| RevokedProofs { revocation, principal, closed }))
}

fn is_own(caller: &Caller, proof: &RevokedProof) -> bool {
    match proof {
        RevokedProof::Principal(key) => key == caller.principal.key(),
        RevokedProof::Certificate(serial) => caller.issuance.serial.as_ref() == Some(serial),
    }
}

async fn revoke_principal(
    app: &App,
    caller: &Caller,
    asked: &RevocationRequest,
    key: &PrincipalKey,
) -> Result<Durable<Revocation>, Error> {
    for _ in 0..MAX_ATTEMPTS {
        let (before, expect) = app.store.to_replace::<Revocation>(&asked.proof).await?;
        let issued = app.store.genuine::<IssuedPrincipal>(key).await?.map(|issued| issued.record);
        // A wall clock that was stepped back gives nothing back.
        let at = before.as_ref().map_or(wall(), |before| wall().max(before.record.at));
        // The clock that signed them was ahead: by their times they would count as later.
        let ahead = issued.into_iter().flat_map(|issued| issued.certificates.into_values());
        let ahead: Vec<_> = ahead.filter(|certificate| certificate.issued_at > at).collect();
        let revocation = revocation(caller, asked, asked.proof.clone(), at);
        let mut changes = Transaction::default().put_revocation(revocation.clone(), expect);
        let mut event =
            revoked_event(app, caller, asked).with("principal", key).with("keep_grants", asked.keep_grants);
        let mut learned = vec![Versioned { record: revocation.clone(), version: version_after(expect) }];
        for certificate in &ahead {
            let proof = RevokedProof::Certificate(certificate.serial.clone());
            let alone = self::revocation(caller, asked, proof, at);
            changes = changes.put_revocation(alone.clone(), Expect::Any);
            event = event.with("serial", &certificate.serial);
            learned.push(Versioned { record: alone, version: 1 });
        }
        match Durable::commit(&app.store, changes.audit(event), revocation).await {
            Ok(revocation) => {
                tracing::info!(event = "principal.revoked", principal = %key, by = %caller.principal, "principal revoked");
                app.revocations.learn(learned);
                return Ok(revocation);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Precondition { reason: format!("the revocation of {key} changes too quickly; try again") })
}

async fn revoke_certificate(
    app: &App,
    caller: &Caller,
    asked: &RevocationRequest,
    serial: &CertificateSerial,
) -> Result<Durable<Revocation>, Error> {
    for _ in 0..MAX_ATTEMPTS {
        let (before, expect) = match app.store.durable_revocation(&asked.proof).await {
            Ok(before) => (before.transpose(), Expect::Absent),
            Err(StoreError::Forged { .. }) => (None, Expect::Any),
            Err(error) => return Err(error.into()),
        };
        if let Some(before) = before {
            app.revocations.learn([(*before).clone()]);
            return Ok(before.map(|before| before.record));
        }
        let revocation = revocation(caller, asked, asked.proof.clone(), wall());
        let event = revoked_event(app, caller, asked).with("serial", serial);
        let changes = Transaction::default().put_revocation(revocation.clone(), expect).audit(event);
        match Durable::commit(&app.store, changes, revocation.clone()).await {
            Ok(durable) => {
                tracing::info!(event = "principal.revoked", %serial, by = %caller.principal, "certificate revoked");
                app.revocations.learn([Versioned { record: revocation, version: 1 }]);
                return Ok(durable);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Precondition { reason: format!("the revocation of {serial} changes too quickly; try again") })
}

fn revocation(
    caller: &Caller,
    asked: &RevocationRequest,
    proof: RevokedProof,
    at: jiff::Timestamp,
) -> Revocation {
    Revocation { proof, by: caller.principal.clone(), at, reason: asked.reason.clone() }
}

/// Returns the version of a record after a write under this condition.
fn version_after(expect: Expect) -> u64 {
    match expect {
        Expect::Version(version) => version + 1,
        Expect::AbsentAfter(version) => version + 1,
        Expect::Absent | Expect::Any => 1,
    }
}

fn revoked_event(app: &App, caller: &Caller, asked: &RevocationRequest) -> AuditEvent {
    let event = AuditEvent::done(app.clock.now(), &caller.principal, "principal.revoked");
    match &asked.reason {
        Some(reason) => event.with("reason", reason),
        None => event,
    }
}

/// Closes the open grants of a principal, and returns those that close from now on.
async fn close_grants(
    app: &App,
    caller: &Caller,
    key: &PrincipalKey,
    reason: Option<&Justification>,
) -> Result<Vec<GrantId>, Error> {
    let open = app.store.open_grants().await?.into_iter().map(|grant| grant.record);
    let open =
        open.filter(|grant| grant.principal.key() == key && !matches!(grant.state, GrantState::Closing(_)));
    let ids: Vec<GrantId> = open.map(|grant| grant.id).collect();
    let close = |id: GrantId| async move {
        match access::revoke(app, caller, id, reason.cloned()).await {
            Ok(_) => Ok(Some(id)),
            // It reached its end meanwhile.
            Err(Error::Illegal(IllegalTransition { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let closed: Vec<Option<GrantId>> =
        stream::iter(ids).map(close).buffer_unordered(CLOSES_AT_ONCE).try_collect().await?;
    let mut closed: Vec<GrantId> = closed.into_iter().flatten().collect();
    closed.sort_unstable();
    Ok(closed)
}

/// Returns one page of the principals that the broker knows, by the texts of their keys, and the start of the next page.
///
/// # Errors
/// The store failed.
pub async fn list(
    app: &App,
    size: usize,
    after: Option<&str>,
) -> Result<(Vec<KnownPrincipal>, Option<String>), Error> {
    let known = known(app).await?;
    let mut page: Vec<(String, KnownPrincipal)> =
        known.into_iter().filter(|(text, _)| after.is_none_or(|after| text.as_str() > after)).collect();
    let more = page.len() > size;
    page.truncate(size);
    let next = page.last().filter(|_| more).map(|(text, _)| text.clone());
    Ok((page.into_iter().map(|(_, known)| known).collect(), next))
}

/// Returns the certificates that were revoked alone, by their serial numbers.
///
/// # Errors
/// The store failed.
pub async fn revoked_certificates(app: &App) -> Result<Vec<(CertificateSerial, Revocation)>, Error> {
    let revocations = app.store.revocations().await?.into_iter().map(|revocation| revocation.record);
    let alone = revocations.filter_map(|revocation| match &revocation.proof {
        RevokedProof::Certificate(serial) => Some((serial.clone(), revocation)),
        RevokedProof::Principal(_) => None,
    });
    let mut alone: Vec<_> = alone.collect();
    alone.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(alone)
}

/// Returns every principal that was issued a certificate, has an open grant, or was revoked.
async fn known(app: &App) -> Result<BTreeMap<String, KnownPrincipal>, Error> {
    let mut known: BTreeMap<String, KnownPrincipal> = BTreeMap::new();
    let mut entry = |key: &PrincipalKey, change: &mut dyn FnMut(&mut KnownPrincipal)| {
        change(known.entry(key.to_text()).or_insert_with(|| KnownPrincipal::new(key.clone())));
    };
    let (issued, grants, revocations) =
        tokio::try_join!(app.store.issued_principals(), app.store.open_grants(), app.store.revocations())?;
    app.revocations.learn(revocations.iter().cloned());
    for IssuedPrincipal { principal, certificates } in issued.into_iter().map(|issued| issued.record) {
        for (role, certificate) in certificates {
            let issuance = Issuance { at: certificate.issued_at, serial: Some(certificate.serial.clone()) };
            let is_revoked = app.revocations.cover(&principal, &issuance);
            entry(&principal, &mut |known| {
                known.roles.insert(role);
                known.certificates.push((role, certificate.clone(), is_revoked));
            });
        }
    }
    for Grant { principal, .. } in grants.into_iter().map(|grant| grant.record) {
        entry(principal.key(), &mut |known| {
            known.roles.insert(principal.role());
            known.open_grants += 1;
        });
    }
    for revocation in revocations.into_iter().map(|revocation| revocation.record) {
        if let RevokedProof::Principal(key) = revocation.proof.clone() {
            entry(&key, &mut |known| known.revocation = Some(revocation.clone()));
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests;
