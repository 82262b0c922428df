//! Principals: revoking their proofs, and listing them.
//!
//! A revocation is durable before its principal's grants close. If the broker fails between the two, the caller repeats the call.

mod known;

use futures_util::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use postern_core::audit::AuditEvent;
use postern_core::grant::IllegalTransition;
use postern_core::{CertificateSerial, GrantId, GrantState, Justification, PrincipalKey};
use postern_store::{
    Durable, Expect, IssuedPrincipal, Record as _, Revocation, RevokedProof, StoreError, Transaction,
    Versioned,
};

use super::{App, Caller, Error, access};
use crate::clock::wall;
pub use known::{KnownPrincipal, PrincipalsPage, list};

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

/// Revokes the proofs of a principal that were issued up to now, or one certificate, and closes the principal's open grants. If the
/// broker knows a certificate of the principal that is dated later, because a clock was ahead, it revokes up to that time.
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
    let principal = known::of_proof(app, &asked.proof).await?;
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
        // A wall clock that was stepped back gives nothing back, and a certificate of a clock that was ahead is revoked as well.
        let issued = issued.into_iter().flat_map(|issued| issued.certificates.into_values());
        // Nor does a store that has lost the revocation which this broker knows: the new one is later, so that every broker takes it up.
        let known = match before {
            Some(before) => Some(before.record.at),
            None => app.revocations.revoked_up_to(key).map(just_after),
        };
        let at = issued.map(|certificate| certificate.issued_at).chain(known).fold(wall(), Ord::max);
        let revocation = revocation(caller, asked, at);
        let changes = Transaction::default().put_revocation(revocation.clone(), expect);
        let event =
            revoked_event(app, caller, asked).with("principal", key).with("keep_grants", asked.keep_grants);
        let version = expect.version_after(Revocation::KIND).unwrap_or(1);
        let learned = Versioned { record: revocation.clone(), version };
        match Durable::commit(&app.store, changes.audit(event), revocation).await {
            Ok(revocation) => {
                tracing::info!(event = "principal.revoked", principal = %key, by = %caller.principal, "principal revoked");
                app.revocations.learn_written(learned);
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
            Err(StoreError::Forged { .. }) => {
                app.store.to_replace::<Revocation>(&asked.proof).await.map(|(_, expect)| (None, expect))?
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(before) = before {
            app.revocations.learn([(*before).clone()]);
            return Ok(before.map(|before| before.record));
        }
        let revocation = revocation(caller, asked, wall());
        let event = revoked_event(app, caller, asked).with("serial", serial);
        let changes = Transaction::default().put_revocation(revocation.clone(), expect).audit(event);
        match Durable::commit(&app.store, changes, revocation.clone()).await {
            Ok(durable) => {
                tracing::info!(event = "principal.revoked", %serial, by = %caller.principal, "certificate revoked");
                let version = expect.version_after(Revocation::KIND).unwrap_or(1);
                app.revocations.learn_written(Versioned { record: revocation, version });
                return Ok(durable);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Precondition { reason: format!("the revocation of {serial} changes too quickly; try again") })
}

fn revocation(caller: &Caller, asked: &RevocationRequest, at: Timestamp) -> Revocation {
    Revocation { proof: asked.proof.clone(), by: caller.principal.clone(), at, reason: asked.reason.clone() }
}

fn just_after(at: Timestamp) -> Timestamp {
    at.checked_add(SignedDuration::from_nanos(1)).unwrap_or(at)
}

fn revoked_event(app: &App, caller: &Caller, asked: &RevocationRequest) -> AuditEvent {
    let event = AuditEvent::done(app.clock.now(), &caller.principal, "principal.revoked");
    match &asked.reason {
        Some(reason) => event.with("reason", reason),
        None => event,
    }
}

/// Closes the open grants of a principal, and returns those that close from now on.
///
/// # Errors
/// A grant could not be closed: the first such error, after an attempt at each grant.
async fn close_grants(
    app: &App,
    caller: &Caller,
    key: &PrincipalKey,
    reason: Option<&Justification>,
) -> Result<Vec<GrantId>, Error> {
    let open = app.store.open_grants_by(key).await?.into_iter().map(|grant| grant.record);
    let open = open.filter(|grant| !matches!(grant.state, GrantState::Closing(_)));
    let ids: Vec<GrantId> = open.map(|grant| grant.id).collect();
    let close = |id: GrantId| async move {
        match access::revoke(app, caller, id, reason.cloned()).await {
            Ok(_) => Ok(Some(id)),
            // It reached its end meanwhile.
            Err(Error::Illegal(IllegalTransition { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    };
    // One grant that cannot close keeps no other one open.
    let outcomes: Vec<Result<Option<GrantId>, Error>> =
        stream::iter(ids).map(close).buffer_unordered(CLOSES_AT_ONCE).collect().await;
    let closed: Result<Vec<Option<GrantId>>, Error> = outcomes.into_iter().collect();
    let mut closed: Vec<GrantId> = closed?.into_iter().flatten().collect();
    closed.sort_unstable();
    Ok(closed)
}

#[cfg(test)]
mod tests;
