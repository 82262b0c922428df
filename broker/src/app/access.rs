//! Access: requesting, revoking, reading and watching grants.
//!
//! I4 begins here: a request is answered only after its grant, its idempotency key and its audit line are durable, and no
//! other part of the broker learns of it earlier.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use futures_util::future::try_join_all;
use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::policy::{Authorized, Denial, Opening, PolicyLimit, Requester, authorize};
use postern_core::text::Justification;
use postern_core::{
    AccessRequest, CloseReason, Event, Grant, GrantId, GrantState, Invalid, Name, Policy, PrincipalKey, Role,
    SourcePrefix, TargetId, Window,
};
use postern_provider::CloudError;
use postern_store::{
    Durable, Expect, GrantQuery, Revocation, RevokedProof, StoreError, Transaction, Version, Versioned,
};

mod deciding;
mod quotas;
mod request_quotas;

pub use deciding::Deciding;
use deciding::{Earlier, Entered};
pub use request_quotas::RequestQuotas;

use super::{App, Caller, Error, QuotaExceeded};
use crate::limits::log_due;
use crate::retention::in_days;
use crate::signals::ShutdownPhase;
use crate::signals::grant_changes::GrantChange;

/// The attempts at a change of a grant that another change overtakes each time.
const MAX_ATTEMPTS: usize = 5;

/// A request for access, with the idempotency key of its caller.
#[derive(Debug, Clone)]
pub struct KeyedRequest {
    /// The request.
    pub request: AccessRequest,
    /// The key, unique among the requests of one principal. A repeated key is answered with the grant that it made.
    pub idempotency_key: Option<String>,
    /// True if the request named no source, so that its sources are the caller's own addresses: one that the policies do not allow is
    /// left out if another is allowed.
    pub is_from_caller: bool,
}

/// The grants that a caller asks to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrantFilter {
    /// Only grants with a window on this target.
    pub target: Option<TargetId>,
    /// Only grants in these states, by word; empty: any.
    pub states: Vec<&'static str>,
    /// Only grants of the principal with this key.
    pub principal: Option<PrincipalKey>,
    /// Only this grant.
    pub grant: Option<GrantId>,
}

impl GrantFilter {
    /// Reports whether the filter admits the grant.
    pub fn admits(&self, grant: &Grant) -> bool {
        self.grant.is_none_or(|id| id == grant.id)
            && self.principal.as_ref().is_none_or(|key| key == grant.principal.key())
            && self
                .target
                .as_ref()
                .is_none_or(|target| grant.windows.iter().any(|window| window.target == *target))
            && (self.states.is_empty() || self.states.contains(&grant.state.word()))
    }
}

/// The grant of a request.
#[derive(Debug)]
pub struct Requested {
    /// The grant.
    pub grant: Durable<Grant>,
    /// Reports that an earlier request with this idempotency key made it.
    pub repeated: bool,
}

/// Requests access.
///
/// # Errors
/// The caller's proof is revoked, the policies, a quota or a cloud deny it (audited), this broker does not drive the target's cloud,
/// or another request had this idempotency key.
pub async fn request(app: &App, caller: &Caller, asked: KeyedRequest) -> Result<Requested, Error> {
    if let Err(exceeded) = app.quotas.count(caller) {
        let denied = Denied::by_quota(caller, &asked.request, exceeded, app.clock.now());
        return refuse(app, caller, &asked, denied).await;
    }
    let entered = app.deciding.enter(caller.principal.key(), &asked.request);
    let mut attempts = 0;
    loop {
        attempts += 1;
        // The commit before was perhaps overtaken by a revocation that another broker has made.
        if attempts > 1 {
            app.revocations.read(&app.store).await?;
        }
        let decided = match decide(app, caller, &asked, &entered).await? {
            Ok(decided) => decided,
            Err(denied) => return refuse(app, caller, &asked, *denied).await,
        };
        match commit(app, caller, &asked, decided).await {
            Err(Error::Store(StoreError::Conflict { .. })) if attempts < MAX_ATTEMPTS => {}
            outcome => return outcome,
        }
    }
}

/// Refuses a request. A repeated request gets its first answer, although the policies may deny it by now.
async fn refuse(
    app: &App,
    caller: &Caller,
    asked: &KeyedRequest,
    denied: Denied,
) -> Result<Requested, Error> {
    if let Some(earlier) = earlier(app, caller, asked).await? {
        return Ok(Requested { grant: earlier, repeated: true });
    }
    app.record_denial(caller, denied.event).await?;
    Err(denied.error)
}

/// Commits the grant of a decision, on the condition that the policies that allow it are as the decision read them, and that the
/// caller's revocation, or that there is none, is as it was then.
///
/// # Errors
/// A conflict, if one of them has changed since.
async fn commit(
    app: &App,
    caller: &Caller,
    asked: &KeyedRequest,
    decided: Decided,
) -> Result<Requested, Error> {
    let Decided { mut grant, policies, revocation } = decided;
    grant.idempotency_key = asked.idempotency_key.clone();
    let mut changes = Transaction::default().put_grant(grant.clone(), Expect::Absent);
    for (name, version) in &policies {
        changes = changes.require::<Policy>(name, Expect::Version(*version));
    }
    let principal = RevokedProof::Principal(caller.principal.key().clone());
    changes = changes.require::<Revocation>(&principal, revocation);
    if let Some(key) = &asked.idempotency_key {
        changes = changes.remember_request(caller.principal.key(), key, grant.id);
    }
    let changes = changes.audit(requested_event(&grant)).giving_way();
    let grant = match Durable::commit(&app.store, changes, grant).await {
        Ok(grant) => grant,
        // The key was used before. It is looked up only here, as most requests are new.
        Err(conflict @ StoreError::Conflict { .. }) => {
            let earlier = earlier(app, caller, asked).await?.ok_or(conflict)?;
            return Ok(Requested { grant: earlier, repeated: true });
        }
        Err(error) => return Err(error.into()),
    };
    tracing::info!(event = "grant.requested", grant = %grant.id, principal = %caller.principal, "access requested");
    app.grant_changes.changed(grant.id);
    app.wakeups.wake_all(grant.targets().into_iter().cloned());
    Ok(Requested { grant, repeated: false })
}

/// Returns the grant that an earlier request with this caller's idempotency key made. That request may have failed because its
/// records were not durable yet; the grant and the key are in one transaction.
async fn earlier(app: &App, caller: &Caller, asked: &KeyedRequest) -> Result<Option<Durable<Grant>>, Error> {
    let Some(key) = &asked.idempotency_key else { return Ok(None) };
    let Some(id) = app.store.grant_of_request(caller.principal.key(), key).await? else { return Ok(None) };
    let Some(grant) = app.store.durable_grant(id).await?.transpose() else { return Ok(None) };
    let grant = grant.map(|grant| grant.record);
    if !is_of_request(&grant, asked) {
        let remedy = "use a new key for a new request";
        return Err(Invalid::new("idempotency_key", "was used for another request", remedy).into());
    }
    // The first call may have failed between its commit and its wake-up.
    app.wakeups.wake_all(grant.targets().into_iter().cloned());
    Ok(Some(grant))
}

/// Reports whether a grant may be the one of an earlier call of the same request. A request that named no source may have been narrowed
/// to one of the caller's addresses, and its repetition may come from fewer or more of them: it is the same if they share an address.
fn is_of_request(grant: &Grant, asked: &KeyedRequest) -> bool {
    let request = &asked.request;
    let granted: BTreeSet<SourcePrefix> = grant.windows.iter().map(|window| window.source).collect();
    let is_asked = |source: &SourcePrefix| request.sources().contains(source);
    let are_its_sources = if asked.is_from_caller {
        granted.iter().any(is_asked)
    } else {
        granted.len() == request.sources().len() && granted.iter().all(is_asked)
    };
    are_its_sources
        && grant.duration == request.duration()
        && grant.justification == *request.justification()
        && grant.windows.len() == request.targets().len() * request.ports().len() * granted.len()
        && grant.windows.iter().all(|window| {
            request.targets().contains(&window.target) && request.ports().contains(&window.port)
        })
}

/// A request that is denied, with its audit line.
struct Denied {
    event: AuditEvent,
    error: Error,
}

impl Denied {
    fn by_quota(caller: &Caller, request: &AccessRequest, exceeded: QuotaExceeded, now: Timestamp) -> Self {
        let event = denied_event(caller, request, exceeded.reason, &exceeded, now);
        Self { event, error: exceeded.into() }
    }
}

/// A request that is allowed.
struct Decided {
    grant: Grant,
    /// The policies that the decision depends on, with the versions that it read: those that admit the caller to its targets.
    policies: Vec<(Name, Version)>,
    /// The condition that the caller's revocation, or that there is none, is as the decision knew it.
    revocation: Expect,
}

/// Authorizes the request into a grant.
async fn decide(
    app: &App,
    caller: &Caller,
    asked: &KeyedRequest,
    entered: &Entered<'_>,
) -> Result<Result<Decided, Box<Denied>>, Error> {
    let request = &asked.request;
    // Before the check: a revocation that comes between the two fits no more.
    let revocation = app.revocations.as_known(caller.principal.key());
    if app.revocations.cover(caller.principal.key(), &caller.issuance) {
        return Err(Error::Revoked);
    }
    let earlier = entered.earlier();
    let versioned = app.store.policies().await?;
    let policies: Vec<&Policy> = versioned.iter().map(|policy| &policy.record).collect();
    let now = app.clock.now();
    let held = held(app, caller, request, &policies, &earlier).await?;
    let requester = Requester {
        principal: &caller.principal,
        address: caller.address,
        other_address: caller.other_address,
        held: &held,
    };
    let (request, authorized) = match authorize_sources(asked, requester, &policies) {
        Ok(allowed) => allowed,
        Err(denial) => {
            let event = denied_event(caller, request, denial.limit.reason(), &denial, now);
            // A requester does not learn whether a target that it may not ask for is under a policy (I7).
            let shown = match caller.principal.role() {
                Role::Requester => denial.without_existence(caller.principal.key()),
                Role::Administrator | Role::Reader => denial,
            };
            return Ok(Err(Box::new(Denied { event, error: shown.into() })));
        }
    };
    let undriven = |window: &&Window| window.layers.cloud() && !app.cloud.drives(&window.target);
    if let Some(window) = authorized.windows.iter().find(undriven) {
        let reason = format!("this broker drives no cloud for {}; configure its provider", window.target);
        let event = denied_event(caller, &request, "CLOUD_NOT_DRIVEN", &reason, now);
        return Ok(Err(Box::new(Denied { event, error: Error::Precondition { reason } })));
    }
    let id = GrantId::from_parts(now, rand::random());
    let grant = Grant::new(id, caller.principal.clone(), &request, authorized, now);
    // A policy that allows no window of the request may still bound the grants on its targets.
    let judging = versioned.iter().filter(|policy| {
        let policy = &policy.record;
        policy.admits(&caller.principal) && request.targets().iter().any(|target| policy.covers(target))
    });
    let (judging, versions): (Vec<&Policy>, Vec<(Name, Version)>) =
        judging.map(|policy| (&policy.record, (policy.record.name.clone(), policy.version))).unzip();
    if let Err(exceeded) = quotas::judge(app, &grant, &judging, &earlier).await? {
        return Ok(Err(Box::new(Denied::by_quota(caller, &request, exceeded, now))));
    }
    if let Err((target, error)) = ask_clouds(app, caller, &grant.windows).await {
        let CloudError::Refused { reason } = error else {
            if caller.reads_cloud_errors() {
                return Err(Error::Unavailable { reason: format!("{target}: {error}") });
            }
            if let Some(omitted) = log_due("cloud asked about a caller") {
                tracing::warn!(%target, %error, omitted, "a cloud did not say whether a caller may request access");
            }
            let reason = format!("the cloud of {target} does not answer; try again, or ask an operator");
            return Err(Error::Unavailable { reason });
        };
        let reason = format!("{target}: {reason}");
        let event = denied_event(caller, &request, "NOT_ALLOWED_BY_CLOUD", &reason, now);
        return Ok(Err(Box::new(Denied { event, error: Error::Forbidden { reason } })));
    }
    let is_slow = is_translated(app, &grant.windows).await?;
    let timeout = if is_slow { Grant::FIREWALL_OPEN_TIMEOUT } else { Grant::OPEN_TIMEOUT };
    Ok(Ok(Decided { grant: grant.opening_within(timeout), policies: versions, revocation }))
}

/// Authorizes a request whole. One whose sources are the caller's own addresses may go on with the first of them that is allowed, and
/// on Azure with the one of IPv4: Azure refuses a source of a family in which the VM has no address, and every VM has one of IPv4.
///
/// # Errors
/// As [`authorize`], for the request as it came.
fn authorize_sources<'a>(
    asked: &'a KeyedRequest,
    requester: Requester<'_>,
    policies: &[&Policy],
) -> Result<(Cow<'a, AccessRequest>, Authorized), Denial> {
    let request = &asked.request;
    let whole = authorize(request, requester, policies);
    let may_choose = asked.is_from_caller && request.sources().len() > 1;
    let on_azure = |window: &Window| {
        window.layers.cloud() && window.target.cloud() == Some(postern_core::target::CloudKind::Azure)
    };
    let is_refused_whole = match &whole {
        Ok(authorized) => authorized.windows.iter().any(on_azure),
        Err(denial) => denial.limit == PolicyLimit::Source,
    };
    if may_choose && is_refused_whole {
        let four = request.sources().iter().filter(|source| source.is_ipv4());
        for source in four.chain(request.sources().iter().filter(|source| !source.is_ipv4())) {
            let single = request.from_source(*source);
            if let Ok(authorized) = authorize(&single, requester, policies) {
                return Ok((Cow::Owned(single), authorized));
            }
        }
    }
    whole.map(|authorized| (Cow::Borrowed(request), authorized))
}

/// Returns what the caller has open, or will have, on those targets of the request where a policy lets it choose its sources.
async fn held(
    app: &App,
    caller: &Caller,
    request: &AccessRequest,
    policies: &[&Policy],
    earlier: &Earlier,
) -> Result<Vec<Opening>, Error> {
    let lets_choose = |target: &&TargetId| {
        policies.iter().any(|policy| policy.covers(target) && policy.lets_choose_sources())
    };
    let targets: Vec<&TargetId> = request.targets().iter().filter(lets_choose).collect();
    let own = targets.iter().map(|target| app.store.open_grants_of(caller.principal.key(), target));
    let open = try_join_all(own).await?.into_iter().flatten().flat_map(|grant| grant.record.windows);
    let opening =
        |window: Window| Opening { target: window.target, port: window.port, source: window.source };
    let mut held: Vec<Opening> =
        open.filter(|window| targets.contains(&&window.target)).map(opening).collect();
    for request in &earlier.own {
        for target in targets.iter().filter(|target| request.targets().contains(target)) {
            for (&port, &source) in request
                .ports()
                .iter()
                .flat_map(|port| request.sources().iter().map(move |source| (port, source)))
            {
                held.push(Opening { target: (*target).clone(), port, source });
            }
        }
    }
    Ok(held)
}

/// Reports whether a window goes through a device that translates addresses: an Azure Firewall, whose writes take minutes.
async fn is_translated(app: &App, windows: &[Window]) -> Result<bool, Error> {
    let targets: BTreeSet<&TargetId> =
        windows.iter().filter(|window| window.layers.cloud()).map(|window| &window.target).collect();
    let peers = app.peer_status(targets.iter().copied()).await?;
    Ok(targets.into_iter().any(|target| {
        app.cloud.translation(target).is_some() || peers.of(target).is_some_and(|view| view.translated)
    }))
}

/// Asks the cloud of each target whether the caller may request access to it. Returns the first refusal.
async fn ask_clouds(app: &App, caller: &Caller, windows: &[Window]) -> Result<(), (TargetId, CloudError)> {
    let targets: BTreeSet<&TargetId> =
        windows.iter().filter(|window| window.layers.cloud()).map(|window| &window.target).collect();
    let asked = targets.into_iter().map(|target| async move {
        let answer = app.cloud.authorize(target, caller.token.as_ref()).await;
        answer.map_err(|error| (target.clone(), error))
    });
    try_join_all(asked).await.map(drop)
}

fn denied_event(
    caller: &Caller,
    request: &AccessRequest,
    reason: &str,
    message: impl Display,
    now: Timestamp,
) -> AuditEvent {
    AuditEvent::denied(now, &caller.principal, "grant.requested")
        .with("reason", reason)
        .with("message", message)
        .with("targets", list(request.targets()))
        .with("ports", list(request.ports()))
        .with("sources", list(request.sources()))
        .with("duration_s", request.duration().as_secs())
        .with("justification", request.justification())
}

fn requested_event(grant: &Grant) -> AuditEvent {
    let windows = grant.windows.iter();
    let targets: Vec<&TargetId> = grant.targets();
    let event = AuditEvent::done(grant.requested_at, &grant.principal, "grant.requested")
        .on_grant(grant.id)
        .with("windows", list(&windows.collect::<Vec<_>>()))
        .with("duration_s", grant.duration.as_secs())
        .with("not_after", grant.not_after)
        .with("justification", &grant.justification);
    match targets[..] {
        [one] => event.on_target(one),
        _ => event,
    }
}

/// Closes a grant before its end.
///
/// # Errors
/// The grant is not the caller's (audited), or it is closed already.
pub async fn revoke(
    app: &App,
    caller: &Caller,
    id: GrantId,
    reason: Option<Justification>,
) -> Result<Durable<Grant>, Error> {
    for _ in 0..MAX_ATTEMPTS {
        let Versioned { record, version } = app.store.grant(id).await?.ok_or_else(|| not_found(app, id))?;
        let now = app.clock.now();
        if !caller.may_see(&record) {
            let event = AuditEvent::denied(now, &caller.principal, "grant.revoked").on_grant(id);
            app.record_denial(caller, event.with("reason", "NOT_THE_CALLERS")).await?;
            return Err(not_found(app, id));
        }
        let is_over = |grant: &Grant| matches!(grant.state, GrantState::Closing(_)) || grant.state.is_final();
        if is_over(&record) {
            let durable = durable_grant(app, id).await?;
            app.wakeups.wake_all(durable.targets().into_iter().cloned());
            // Closing already: that is what the caller asks for, once the reconciler knows of it.
            if matches!(durable.state, GrantState::Closing(_)) {
                return Ok(durable);
            }
            // The store has lost the close that was read first.
            if !durable.state.is_final() {
                continue;
            }
        }
        let close = CloseReason::Revoked { by: caller.principal.clone(), reason: reason.clone() };
        let next = record.after(Event::Close(close), now)?;
        let mut event = AuditEvent::done(now, &caller.principal, "grant.revoked").on_grant(id);
        if let Some(reason) = &reason {
            event = event.with("reason", reason);
        }
        let changes = Transaction::default().put_grant(next.clone(), Expect::Version(version)).audit(event);
        match Durable::commit(&app.store, changes, next).await {
            Ok(next) => {
                tracing::info!(event = "grant.revoked", grant = %id, principal = %caller.principal, "grant revoked");
                app.grant_changes.changed(id);
                app.wakeups.wake_all(next.targets().into_iter().cloned());
                return Ok(next);
            }
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::Precondition { reason: format!("{id} changes too quickly; try again") })
}

/// Returns a grant that the caller may see.
///
/// # Errors
/// The grant does not exist, or the caller may not see it.
pub async fn visible(app: &App, caller: &Caller, id: GrantId) -> Result<Versioned<Grant>, Error> {
    let grant = app.store.grant(id).await?.filter(|grant| caller.may_see(&grant.record));
    grant.ok_or_else(|| not_found(app, id))
}

/// Waits, at most `wait`, until the grant is neither opening nor closing, and returns it as it stands then. A broker that
/// shuts down does not wait.
///
/// # Errors
/// The store failed.
pub async fn settled(app: &App, grant: Durable<Grant>, wait: Duration) -> Result<Durable<Grant>, Error> {
    let on_its_way = |grant: &Grant| matches!(grant.state, GrantState::Opening | GrantState::Closing(_));
    let id = grant.id;
    let follow = async {
        let mut changes = app.grant_changes.watch();
        loop {
            // Read after subscribing, so that no change falls between.
            let grant = app.store.grant(id).await?.ok_or_else(|| not_found(app, id))?.record;
            if !on_its_way(&grant) {
                return durable_grant(app, id).await;
            }
            // A watcher that has fallen behind reads the grant again too.
            while changes
                .recv()
                .await
                .is_ok_and(|changed| matches!(changed, GrantChange::Of(other) if other != id))
            {}
        }
    };
    let mut shutdown = app.shutdown.clone();
    let ended = async move {
        // A dropped sender sends no phase any more: wait forever.
        if shutdown.wait_for(|phase| *phase == ShutdownPhase::Stopping).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let until = async {
        tokio::time::timeout(wait, ended).await.ok();
    };
    tokio::select! {
        settled = follow => settled,
        () = until => durable_grant(app, id).await,
    }
}

/// Returns one page of the grants that the caller may see, the newest first, and the start of the next page.
///
/// # Errors
/// The store failed.
pub async fn list_grants(
    app: &App,
    caller: &Caller,
    filter: &GrantFilter,
    size: usize,
    before: Option<GrantId>,
) -> Result<(Vec<Grant>, Option<GrantId>), Error> {
    if let Some(id) = filter.grant {
        let grant = app.store.grant(id).await?.map(|grant| grant.record);
        return Ok((
            grant.filter(|grant| caller.may_see(grant) && filter.admits(grant)).into_iter().collect(),
            None,
        ));
    }
    let own = (caller.principal.role() == Role::Requester).then(|| caller.principal.key().clone());
    if let (Some(own), Some(wanted)) = (&own, &filter.principal)
        && own != wanted
    {
        return Ok((Vec::new(), None));
    }
    let query = GrantQuery {
        target: filter.target.clone(),
        states: filter.states.clone(),
        principal: own.or_else(|| filter.principal.clone()),
        before,
        limit: size + 1,
    };
    let mut grants: Vec<Grant> =
        app.store.grants(query).await?.into_iter().map(|grant| grant.record).collect();
    let more = grants.len() > size;
    grants.truncate(size);
    let next = grants.last().filter(|_| more).map(|grant| grant.id);
    Ok((grants, next))
}

/// Returns a grant as it stands in durable records.
async fn durable_grant(app: &App, id: GrantId) -> Result<Durable<Grant>, Error> {
    let grant = app.store.durable_grant(id).await?.transpose().ok_or_else(|| not_found(app, id))?;
    Ok(grant.map(|grant| grant.record))
}

fn not_found(app: &App, id: GrantId) -> Error {
    let what = format!("the grant {id}");
    let after = app.retention.grants;
    // By the id alone, so that the answer says nothing of grants that the caller may not see.
    let is_old = id.requested_at() < app.retention.cutoff(app.clock.now());
    if is_old { Error::NotFoundAnymore { what, after: in_days(after) } } else { Error::NotFound { what } }
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
