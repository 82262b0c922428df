//! Agents: joining, renewing, banning.
//!
//! A join token is random, kept as a hash, bound to one target, short-lived and consumed once. The certificate that an
//! agent earns names its target and nothing else, whatever its request asked for.

use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::{Invalid, TargetId};
use postern_pki::authority::{AGENT_LIFETIME, Issued};
use postern_pki::identity::Identity;
use postern_pki::join::JoinToken;

use super::{App, Caller, Error};
use crate::layers::host::sessions::Session;
use crate::store::{
    AgentRecord, Ban, Change, Expect, StoreError, TokenHash, TokenRecord, Transaction, Versioned,
};

/// Makes a join token for a target's agent.
///
/// # Errors
/// A validity past [`JoinToken::MAX_VALIDITY`].
pub async fn create_token(
    app: &App,
    caller: &Caller,
    target: TargetId,
    valid_for: Option<Duration>,
) -> Result<(JoinToken, Timestamp), Error> {
    let valid_for = valid_for.unwrap_or(JoinToken::MAX_VALIDITY);
    if valid_for < Duration::from_secs(1) || valid_for > JoinToken::MAX_VALIDITY {
        return Err(Invalid::new("valid_for", "is out of range", "use 1s to 10m").into());
    }
    let now = app.clock.now();
    let expires_at = now.checked_add(valid_for).unwrap_or(Timestamp::MAX);
    let token = JoinToken::generate(app.authority.fingerprint())?;
    let event = AuditEvent::done(now, &caller.principal, "agent.invited")
        .on_target(&target)
        .with("expires_at", expires_at);
    let change = Change::PutToken {
        hash: TokenHash(token.hash()),
        token: TokenRecord { target, created_at: now, expires_at },
    };
    app.store.commit(Transaction::default().change(change).audit(event)).await?;
    Ok((token, expires_at))
}

/// Exchanges a join token for a certificate.
///
/// # Errors
/// A token that is malformed, unknown, used or expired, or a malformed certificate request. Only a good exchange
/// consumes the token.
pub async fn enroll(app: &App, token: &str, csr: &[u8]) -> Result<(TargetId, Issued), Error> {
    let refused = Error::Unproven { reason: "the join token is unknown, used or expired; ask for a new one" };
    let Ok(token) = token.parse::<JoinToken>() else { return Err(refused) };
    let hash = TokenHash(token.hash());
    let now = app.clock.now();
    let Some(record) = app.store.token(&hash).await? else {
        tracing::warn!("an enrolment with an unknown join token was refused");
        return Err(refused);
    };
    let target = record.target;
    let known = app.store.agent(&target).await?;
    let banned = known.as_ref().and_then(|agent| agent.record.banned.as_ref());
    let reason = if now >= record.expires_at {
        Some("token expired")
    } else if banned.is_some_and(|ban| record.created_at <= ban.at) {
        // Whoever was banned may have had it already.
        Some("token is older than the ban")
    } else {
        None
    };
    if let Some(reason) = reason {
        let event =
            AuditEvent::denied(now, "broker", "agent.enrolled").on_target(&target).with("reason", reason);
        app.record_denial(event).await?;
        return Err(refused);
    }
    let issued = app.authority.issue(csr, &Identity::Agent(target.clone()), AGENT_LIFETIME, now)?;
    let agent = AgentRecord {
        target: target.clone(),
        enrolled_at: now,
        certificate_not_after: issued.not_after,
        banned: None,
    };
    let event = AuditEvent::done(now, format!("agent/{target}"), "agent.enrolled").on_target(&target);
    let transaction = Transaction::default()
        .change(Change::TakeToken { hash })
        .change(Change::PutAgent {
            agent,
            expect: known.map_or(Expect::Absent, |agent| Expect::Version(agent.version)),
        })
        .audit(event);
    match app.store.commit(transaction).await {
        Ok(_) => {}
        // Someone used it first; or the agent was changed meanwhile, by a ban for instance, and the token is left.
        Err(StoreError::Conflict { .. }) if app.store.token(&hash).await?.is_none() => return Err(refused),
        Err(error) => return Err(error.into()),
    }
    // Whoever held the target's identity before does not hold it any more.
    app.sessions.end(&target, "the target enrolled again");
    tracing::info!(%target, "agent enrolled");
    Ok((target, issued))
}

/// Exchanges an agent's certificate for a fresh one.
///
/// # Errors
/// Banned, not enrolled, or a malformed certificate request.
pub async fn renew(app: &App, target: &TargetId, csr: &[u8]) -> Result<Issued, Error> {
    let Versioned { record, version } = admitted(app, target).await?;
    let now = app.clock.now();
    let issued = app.authority.issue(csr, &Identity::Agent(target.clone()), AGENT_LIFETIME, now)?;
    let agent = AgentRecord { certificate_not_after: issued.not_after, ..record };
    let event = AuditEvent::done(now, format!("agent/{target}"), "agent.renewed").on_target(target);
    let change = Change::PutAgent { agent, expect: Expect::Version(version) };
    app.store.commit(Transaction::default().change(change).audit(event)).await?;
    Ok(issued)
}

/// Renews a certificate that has ended, at `ended`.
///
/// # Errors
/// As [`renew`], and where the certificate is older than the one that may have been lost on its way: its key may lie in
/// an old backup.
pub async fn renew_late(app: &App, target: &TargetId, csr: &[u8], ended: Timestamp) -> Result<Issued, Error> {
    let newest = admitted(app, target).await?.record.certificate_not_after;
    if newest.duration_since(ended) > AGENT_LIFETIME.try_into().unwrap_or_default() {
        let event = AuditEvent::denied(app.clock.now(), format!("agent/{target}"), "agent.renewed")
            .on_target(target)
            .with("reason", "OLD_CERTIFICATE")
            .with("ended", ended);
        app.record_denial(event).await?;
        let reason =
            format!("{target} has had newer certificates since this one; enrol it with a join token");
        return Err(Error::Forbidden { reason });
    }
    renew(app, target, csr).await
}

/// The record of an agent that may talk to the broker.
///
/// # Errors
/// Banned, or not enrolled.
pub async fn admitted(app: &App, target: &TargetId) -> Result<Versioned<AgentRecord>, Error> {
    may_talk(target, app.store.agent(target).await?)
}

fn may_talk(
    target: &TargetId,
    agent: Option<Versioned<AgentRecord>>,
) -> Result<Versioned<AgentRecord>, Error> {
    let forbidden = |reason: String| Error::Forbidden { reason };
    let agent =
        agent.ok_or_else(|| forbidden(format!("{target} is not enrolled; enrol it with a join token")))?;
    if agent.record.banned.is_some() {
        return Err(forbidden(format!("the agent of {target} is banned; enrol it anew with a join token")));
    }
    Ok(agent)
}

/// Whether this is an agent with a certificate and without a record, for the first time since this broker started: the store
/// has lost it. Its windows are of grants that nobody knows any more. Any other is one that may talk to the broker.
///
/// # Errors
/// Banned, or not enrolled and here before.
pub async fn is_unrecorded(app: &App, target: &TargetId) -> Result<bool, Error> {
    let agent = app.store.agent(target).await?;
    if agent.is_none() && app.sessions.meets_stranger(target) {
        return Ok(true);
    }
    may_talk(target, agent).map(|_| false)
}

/// Records that an agent came that nobody knows, and whether it has closed every window.
///
/// # Errors
/// The store failed.
pub async fn record_unknown(app: &App, target: &TargetId, closed: bool) -> Result<(), Error> {
    tracing::warn!(%target, closed, "an agent that the store does not know was told to close every window");
    let event = AuditEvent::denied(app.clock.now(), format!("agent/{target}"), "agent.unknown")
        .on_target(target)
        .with("windows_closed", closed)
        .with("remedy", "enrol it with a join token");
    app.store.commit(Transaction::default().audit(event)).await?;
    Ok(())
}

/// Starts the session of an agent that may talk to the broker.
///
/// # Errors
/// Banned, or not enrolled.
pub async fn connect(app: &App, target: &TargetId, version: String) -> Result<Session, Error> {
    let session = app.sessions.connect(target, version);
    // Looked at once the session is there: a ban that comes later finds it and ends it.
    admitted(app, target).await?;
    Ok(session)
}

/// Bans an agent and cuts its session.
///
/// # Errors
/// There is none for the target.
pub async fn ban(
    app: &App,
    caller: &Caller,
    target: &TargetId,
    reason: String,
) -> Result<AgentRecord, Error> {
    let missing = || Error::NotFound { what: format!("an agent of {target}") };
    let Versioned { record, version } = app.store.agent(target).await?.ok_or_else(missing)?;
    let now = app.clock.now();
    let event =
        AuditEvent::done(now, &caller.principal, "agent.banned").on_target(target).with("reason", &reason);
    let agent = AgentRecord { banned: Some(Ban { by: caller.principal.clone(), at: now, reason }), ..record };
    let change = Change::PutAgent { agent: agent.clone(), expect: Expect::Version(version) };
    app.store.commit(Transaction::default().change(change).audit(event)).await?;
    app.sessions.end(target, "the agent was banned");
    Ok(agent)
}

/// Records that someone else changed an agent's table.
///
/// # Errors
/// The store failed.
pub async fn record_tampering(app: &App, target: &TargetId, report: Tampering) -> Result<(), Error> {
    tracing::warn!(%target, what = %report.what, process = %report.process, pid = report.pid, "tampering");
    let event = AuditEvent::done(app.clock.now(), format!("agent/{target}"), "agent.tampering")
        .on_target(target)
        .with("what", report.what)
        .with("process", report.process)
        .with("pid", report.pid)
        .with("exposed_for_ms", report.exposed_for.as_millis());
    app.store.commit(Transaction::default().audit(event)).await?;
    Ok(())
}

/// What an agent reports when its table was changed.
#[derive(Debug)]
pub struct Tampering {
    /// What was changed.
    pub what: String,
    /// Who did it.
    pub process: String,
    /// Its process id.
    pub pid: u32,
    /// How long the table was not whole.
    pub exposed_for: Duration,
}

#[cfg(test)]
mod tests;
