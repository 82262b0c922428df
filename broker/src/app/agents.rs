//! Agents: joining, renewing, banning, forgetting.
//!
//! A join token is random, kept as a hash, bound to one target, short-lived and consumed once. The certificate of an agent
//! names its target and nothing else, regardless of its certificate request. Its key must be one that the record of the agent
//! knows ([`clones`]).

mod agent_caller;
mod clones;
mod contradiction;
mod forget;
mod renewal;

use std::time::Duration;

use jiff::Timestamp;
use postern_core::agent_keys::{AgentKeys, Cloned, FirstUse, KeyHash};
use postern_core::audit::AuditEvent;
use postern_core::plan::Layer;
use postern_core::{Invalid, TargetId};
use postern_pki::PkiError;
use postern_pki::authority::{AGENT_LIFETIME, Issued};
use postern_pki::identity::{SpiffeId, key_hash};
use postern_pki::join::JoinToken;
use postern_store::{AgentRecord, Ban, Expect, StoreError, TokenHash, TokenRecord, Transaction, Versioned};

use super::{App, Caller, Error};
use crate::clock::wall;
use crate::cluster::peer_status::PeerStatus;
use crate::layers::host::session_state::SessionOrigin;
use crate::layers::host::sessions::{AgentSession, Rival};
use crate::layers::report::LayerReport;
use crate::limits::log_due;
pub use agent_caller::AgentCaller;
pub use contradiction::{record_contradiction, take_kept_checkpoint};
pub use forget::{HeldWindows, forget};
pub use renewal::{AgentRoots, is_renewal_wanted, record_roots};

/// Makes a join token for a target's agent.
///
/// # Errors
/// The validity is past [`JoinToken::MAX_VALIDITY`].
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
    let record = TokenRecord { target, created_at: now, expires_at };
    let change = Transaction::default().put_token(TokenHash(token.hash()), record);
    app.store.commit(change.audit(event)).await?;
    Ok((token, expires_at))
}

/// Exchanges a join token for a certificate.
///
/// # Errors
/// The token is malformed, unknown, used or expired, or the certificate request is malformed. Only a good exchange consumes
/// the token.
pub async fn enroll(app: &App, token: &str, csr: &[u8]) -> Result<(TargetId, Issued), Error> {
    let refused = Error::Unproven { reason: "the join token is unknown, used or expired; ask for a new one" };
    let Ok(token) = token.parse::<JoinToken>() else { return Err(refused) };
    let hash = TokenHash(token.hash());
    let now = app.clock.now();
    let Some(record) = app.store.token(&hash).await? else {
        if let Some(omitted) = log_due("unknown join token") {
            tracing::warn!(
                event = "enrolment.refused",
                omitted,
                "refused an enrolment with an unknown join token"
            );
        }
        return Err(refused);
    };
    let target = record.target;
    let (known, expect) = app.store.to_replace::<AgentRecord>(&target).await?;
    let banned = known.as_ref().and_then(|agent| agent.record.banned.as_ref());
    let forgotten = known.as_ref().and_then(|agent| agent.record.forgotten.as_ref());
    let reason = if now >= record.expires_at {
        Some("token expired")
    } else if banned.is_some_and(|ban| record.created_at <= ban.at) {
        // The banned agent may already have had this token.
        Some("token is older than the ban")
    } else if forgotten.is_some_and(|forgotten| record.created_at <= forgotten.at) {
        Some("token is older than the end of the agent")
    } else {
        None
    };
    if let Some(reason) = reason {
        let event =
            AuditEvent::denied(now, "broker", "agent.enrolled").on_target(&target).with("reason", reason);
        // The token goes with its first refusal, so that it makes one record, however often it is shown.
        let transaction = Transaction::default().take_token(&hash).audit(event);
        return match app.store.commit(transaction).await {
            Ok(_) | Err(StoreError::Conflict { .. }) => Err(refused),
            Err(error) => Err(error.into()),
        };
    }
    let issued = app.authority.issue(csr, &SpiffeId::Agent(target.clone()), AGENT_LIFETIME, wall())?;
    let keys = AgentKeys::enrolled(key_of(&issued)?);
    // A certificate of the former agent may end later, and must not count as one that the store has lost.
    let newest_end = known.as_ref().map_or(issued.not_after, |agent| agent.record.certificate_not_after);
    let agent = AgentRecord::enrolled(target.clone(), now, newest_end.max(issued.not_after), keys);
    let agent = AgentRecord { certificate_root: Some(issued.root), ..agent };
    let event = AuditEvent::done(now, format!("agent/{target}"), "agent.enrolled").on_target(&target);
    let transaction = Transaction::default().take_token(&hash).put_agent(agent, expect).audit(event);
    match app.store.commit(transaction).await {
        Ok(_) => {}
        // Another enrolment used the token first. If the token is still there, the agent has changed, for example by a ban.
        Err(StoreError::Conflict { .. }) if app.store.token(&hash).await?.is_none() => return Err(refused),
        Err(error) => return Err(error.into()),
    }
    // The agent that had this identity before loses its session.
    app.sessions.end(&target, "the target enrolled again");
    app.sessions.set_forgotten(&target, None);
    app.clone_attempts.forget(&target);
    tracing::info!(%target, "agent enrolled");
    Ok((target, issued))
}

/// Exchanges an agent's certificate for a fresh one. The repeat of a renewal whose answer was lost works as the first.
///
/// # Errors
/// The agent is banned or not enrolled, its key is a clone's, it renews too often, or the certificate request is malformed.
pub async fn renew(app: &App, caller: &AgentCaller, csr: &[u8]) -> Result<Issued, Error> {
    let agent = admitted(app, &caller.target).await?;
    renew_of(app, caller, agent, csr).await
}

async fn renew_of(
    app: &App,
    caller: &AgentCaller,
    agent: Versioned<AgentRecord>,
    csr: &[u8],
) -> Result<Issued, Error> {
    let (target, record) = (&caller.target, &agent.record);
    check_recorded(app, caller, record)?;
    if let Err(cloned) = AgentKeys::check(record.keys, caller.shown_to(record, &app.revocations)) {
        return Err(clones::refuse(app, caller, agent, cloned).await);
    }
    if let Err(exceeded) = app.quotas.count_renewal(target) {
        let event = AuditEvent::denied(app.clock.now(), format!("agent/{target}"), "agent.renewed")
            .on_target(target)
            .with("reason", exceeded.reason);
        app.record_denial(target, event).await?;
        return Err(exceeded.into());
    }
    let issued = app.authority.issue(csr, &SpiffeId::Agent(target.clone()), AGENT_LIFETIME, wall())?;
    let keys = AgentKeys::renewed(caller.key, key_of(&issued)?);
    let Versioned { record, version } = agent;
    let certificate_not_after = record.certificate_not_after.max(issued.not_after);
    let certificate_root = Some(issued.root);
    let agent = AgentRecord { certificate_not_after, keys: Some(keys), certificate_root, ..record };
    let event =
        AuditEvent::done(app.clock.now(), format!("agent/{target}"), "agent.renewed").on_target(target);
    app.store.commit(Transaction::default().put_agent(agent, Expect::Version(version)).audit(event)).await?;
    Ok(issued)
}

fn key_of(issued: &Issued) -> Result<KeyHash, Error> {
    let leaf = issued.chain.first().map(Vec::as_slice).unwrap_or_default();
    let unreadable = |_| PkiError::Crypto { problem: "the new certificate cannot be read".to_owned() };
    Ok(key_hash(leaf).map_err(unreadable)?)
}

/// Renews a certificate that has ended.
///
/// # Errors
/// As [`renew`]. Where the record knows no keys, also if the certificate is older than the last one, which alone may have been
/// lost on its way: the key of an older one may lie in a backup.
pub async fn renew_late(app: &App, caller: &AgentCaller, csr: &[u8]) -> Result<Issued, Error> {
    let (target, ended) = (&caller.target, caller.certificate_not_after);
    let agent = admitted(app, target).await?;
    let newest = agent.record.certificate_not_after;
    let is_old = newest.duration_since(ended) > AGENT_LIFETIME.try_into().unwrap_or_default();
    if agent.record.keys.is_none() && is_old {
        let event = AuditEvent::denied(app.clock.now(), format!("agent/{target}"), "agent.renewed")
            .on_target(target)
            .with("reason", "OLD_CERTIFICATE")
            .with("ended", ended);
        app.record_denial(target, event).await?;
        let reason =
            format!("{target} has had newer certificates since this one; enrol it with a join token");
        return Err(Error::Forbidden { reason });
    }
    renew_of(app, caller, agent, csr).await
}

/// Returns the record of an agent that may talk to the broker, whatever its key.
///
/// # Errors
/// The agent is banned, forgotten or not enrolled.
pub async fn admitted(app: &App, target: &TargetId) -> Result<Versioned<AgentRecord>, Error> {
    may_talk(target, app.store.genuine(target).await?)
}

fn may_talk(
    target: &TargetId,
    agent: Option<Versioned<AgentRecord>>,
) -> Result<Versioned<AgentRecord>, Error> {
    let forbidden = |reason: String| Error::Forbidden { reason };
    let agent = agent
        .filter(|agent| agent.record.forgotten.is_none())
        .ok_or_else(|| forbidden(format!("{target} is not enrolled; enrol it with a join token")))?;
    if agent.record.banned.is_some() {
        return Err(forbidden(format!("the agent of {target} is banned; enrol it again with a join token")));
    }
    Ok(agent)
}

/// Refuses an agent whose intermediate is revoked and whose record knows no key: nothing but the key proves such an agent, because the
/// thief of the intermediate's key can sign a certificate for any target.
fn check_recorded(app: &App, caller: &AgentCaller, record: &AgentRecord) -> Result<(), Error> {
    if record.keys.is_some() || !caller.is_signer_revoked(&app.revocations) {
        return Ok(());
    }
    let target = &caller.target;
    let reason = format!(
        "the intermediate that signed the certificate of {target} is revoked, and the broker knows no key of its agent; enrol it \
         with a join token"
    );
    Err(Error::Forbidden { reason })
}

/// The admission of an agent to a session.
#[derive(Debug)]
pub struct Admission {
    agent: Versioned<AgentRecord>,
    /// The change of its keys to record before the session starts.
    first_use: Option<FirstUse>,
}

impl Admission {
    /// Returns the root under which the caller's certificate was signed, if the record knows it.
    pub fn certificate_root(&self, caller: &AgentCaller) -> Option<KeyHash> {
        let record = &self.agent.record;
        record.certificate_root.filter(|_| record.keys.is_some_and(|keys| keys.is_newest(caller.key)))
    }
}

/// The standing of an agent that asks for a session.
#[derive(Debug)]
pub enum Arrival {
    /// It may have one.
    Admitted(Box<Admission>),
    /// It has a certificate and no record, and comes for the first time: the store has lost its record, and the grants of its
    /// windows with it, or an administrator has had it forgotten.
    Unrecorded,
}

/// Decides on an agent that asks for a session.
///
/// # Errors
/// The agent is banned, its key is a clone's, or it is not enrolled and has come before.
pub async fn arrive(app: &App, caller: &AgentCaller) -> Result<Arrival, Error> {
    let agent: Option<Versioned<AgentRecord>> = app.store.genuine(&caller.target).await?;
    let is_unknown = agent.as_ref().is_none_or(|agent| agent.record.forgotten.is_some());
    let is_stranger = is_unknown && !caller.is_signer_revoked(&app.revocations);
    if is_stranger && app.sessions.meets_stranger(&caller.target) {
        return Ok(Arrival::Unrecorded);
    }
    let admission = admit(app, caller, agent).await?;
    Ok(Arrival::Admitted(Box::new(admission)))
}

async fn admit(
    app: &App,
    caller: &AgentCaller,
    agent: Option<Versioned<AgentRecord>>,
) -> Result<Admission, Error> {
    let agent = may_talk(&caller.target, agent)?;
    check_recorded(app, caller, &agent.record)?;
    match AgentKeys::session(agent.record.keys, caller.shown_to(&agent.record, &app.revocations)) {
        Ok(first_use) => Ok(Admission { agent, first_use }),
        Err(cloned) => Err(clones::refuse(app, caller, agent, cloned).await),
    }
}

/// Records that an agent without a record, or a forgotten one, was told to close every window, and whether it did.
///
/// # Errors
/// The store failed.
pub async fn record_unknown(app: &App, target: &TargetId, closed: bool) -> Result<(), Error> {
    tracing::warn!(%target, closed, "asked an agent that the store does not know to close every window");
    let event = AuditEvent::denied(app.clock.now(), format!("agent/{target}"), "agent.unknown")
        .on_target(target)
        .with("windows_closed", closed)
        .with("remedy", "enrol it with a join token");
    app.record_denial(target, event).await?;
    Ok(())
}

/// Starts the session of an agent that was admitted a moment ago, with the version and the boot id of its hello.
///
/// # Errors
/// The agent was banned or enrolled again since, its key is a clone's by now, or another machine has a session with its key.
pub async fn connect(
    app: &App,
    caller: &AgentCaller,
    admission: Admission,
    version: String,
    boot_id: &str,
) -> Result<AgentSession, Error> {
    let target = &caller.target;
    let Admission { agent, first_use } = admission;
    let origin = SessionOrigin { boot_id: boot_id.to_owned(), address: caller.address };
    if has_rival(app, target, &origin).await? {
        return Err(clones::refuse(app, caller, agent, Cloned::SameKey).await);
    }
    if let Some(first_use) = first_use {
        record_key(app, caller, agent, first_use).await?;
    }
    let session = app.sessions.connect(target, version, origin);
    // Read again after the session is there: a later ban finds the session and ends it.
    admit(app, caller, app.store.genuine(target).await?).await?;
    Ok(session)
}

/// Reports whether another machine has a session of this agent that must not be displaced again.
async fn has_rival(app: &App, target: &TargetId, origin: &SessionOrigin) -> Result<bool, Error> {
    match app.sessions.rival(target, origin) {
        Rival::None => Ok(false),
        Rival::Here => Ok(true),
        Rival::Elsewhere => {
            let peers = app.peer_status([target]).await?;
            // The brokers may see one machine under several addresses.
            let is_other = |boot_id: &str| !boot_id.is_empty() && boot_id != origin.boot_id;
            let is_rival =
                peers.of(target).is_some_and(|status| status.host.online && is_other(&status.host.boot_id));
            if is_rival {
                app.sessions.note_rival(target);
            }
            Ok(is_rival)
        }
    }
}

/// Records that a session uses a key for the first time: the one before it is void.
async fn record_key(
    app: &App,
    caller: &AgentCaller,
    Versioned { record, version }: Versioned<AgentRecord>,
    FirstUse { keys, adopted }: FirstUse,
) -> Result<(), Error> {
    let target = &caller.target;
    let event = AuditEvent::done(app.clock.now(), format!("agent/{target}"), "agent.key_used")
        .on_target(target)
        .with("key", caller.key)
        .with("adopted", adopted);
    let certificate_not_after = record.certificate_not_after.max(caller.certificate_not_after);
    // Of a certificate that the store has lost the record knows no root.
    let certificate_root = record.certificate_root.filter(|_| !adopted);
    let agent = AgentRecord { certificate_not_after, keys: Some(keys), certificate_root, ..record };
    app.store.commit(Transaction::default().put_agent(agent, Expect::Version(version)).audit(event)).await?;
    Ok(())
}

/// An agent's record, with the report on its host layer.
#[derive(Debug)]
pub struct AgentView {
    /// The record.
    pub record: AgentRecord,
    /// The report on its host layer.
    pub host: LayerReport,
}

impl AgentView {
    fn of(app: &App, record: AgentRecord, peers: &PeerStatus) -> Self {
        let host = app.observer.report(&record.target, Layer::Host, peers);
        Self { record, host }
    }
}

/// Returns one page of the agents, by target, and the start of the next page.
///
/// # Errors
/// The store failed.
pub async fn list(
    app: &App,
    size: usize,
    after: Option<TargetId>,
) -> Result<(Vec<AgentView>, Option<TargetId>), Error> {
    let agents = app.store.agents().await?.into_iter().map(|agent| agent.record);
    let agents = agents.filter(|agent| agent.forgotten.is_none());
    let mut agents: Vec<AgentRecord> =
        agents.filter(|agent| after.as_ref().is_none_or(|after| agent.target > *after)).collect();
    let more = agents.len() > size;
    agents.truncate(size);
    let next = agents.last().filter(|_| more).map(|agent| agent.target.clone());
    let peers = app.peer_status(agents.iter().map(|agent| &agent.target)).await?;
    Ok((agents.into_iter().map(|agent| AgentView::of(app, agent, &peers)).collect(), next))
}

/// Bans an agent and ends its session.
///
/// # Errors
/// The target has no agent.
pub async fn ban(app: &App, caller: &Caller, target: &TargetId, reason: String) -> Result<AgentView, Error> {
    let missing = || Error::NotFound { what: format!("an agent of {target}") };
    let agent = app.store.agent(target).await?.filter(|agent| agent.record.forgotten.is_none());
    let Versioned { record, version } = agent.ok_or_else(missing)?;
    let now = app.clock.now();
    let event =
        AuditEvent::done(now, &caller.principal, "agent.banned").on_target(target).with("reason", &reason);
    let agent = AgentRecord {
        banned: Some(Ban { by: caller.principal.clone(), at: now, reason }),
        keys: Some(AgentKeys::none()),
        cloned: None,
        ..record
    };
    app.store
        .commit(Transaction::default().put_agent(agent.clone(), Expect::Version(version)).audit(event))
        .await?;
    app.sessions.end(target, "the agent was banned");
    app.clone_attempts.forget(target);
    Ok(AgentView::of(app, agent, &PeerStatus::default()))
}

/// Records that another process changed an agent's table, or counts it if the agent has reported much or the store has no room.
///
/// # Errors
/// The store failed for another reason; the agent reports it again.
pub async fn record_tampering(app: &App, target: &TargetId, report: TamperingReport) -> Result<(), Error> {
    if let Some(omitted) = log_due("tampering") {
        tracing::warn!(%target, what = %report.what, process = %report.process, pid = report.pid, omitted, "another process changed the table of an agent");
    }
    let event = AuditEvent::done(app.clock.now(), format!("agent/{target}"), "agent.tampering")
        .on_target(target)
        .with("what", report.what)
        .with("process", report.process)
        .with("pid", report.pid)
        .with("exposed_for_ms", report.exposed_for.as_millis());
    app.record_report(target, event).await?;
    Ok(())
}

/// An agent's report on a change of its table by another process.
#[derive(Debug)]
pub struct TamperingReport {
    /// The change.
    pub what: String,
    /// The process that made it.
    pub process: String,
    /// Its process id.
    pub pid: u32,
    /// The time for which the table was not whole.
    pub exposed_for: Duration,
}

#[cfg(test)]
mod tests;
