//! Policies: keeping them, listing them, and waking their targets.

use postern_core::audit::AuditEvent;
use postern_core::policy::PortRule;
use postern_core::target::TargetSelector;
use postern_core::{Invalid, Layers, Name, Policy, Principal, Role};
use postern_store::{ComparedPolicies, Durable, Expect, StoreError, Transaction, Version, Versioned};

use super::{App, Caller, Error};

/// Keeps a policy, and returns its version. A policy that is kept already stays as it is, so that a file that is applied every
/// minute does not fill the audit log.
///
/// # Errors
/// The kept version is not `replaces`, the policy uses a reserved part, or one of its selectors can match no target.
pub async fn put(
    app: &App,
    caller: &Caller,
    policy: Policy,
    replaces: Option<Version>,
) -> Result<Durable<Version>, Error> {
    if policy.approval_required {
        return Err(Error::Reserved { what: "approval_required" });
    }
    if let Some((at, selector)) = policy.targets.iter().enumerate().find(|(_, one)| !one.can_match()) {
        return Err(Error::Invalid(Invalid::new(
            format!("targets[{at}]"),
            format!("{selector} can match no target, so the policy would protect nothing"),
            "write a prefix of host:<name>, aws:<account>/<region>/<instance-id> or azure:/subscriptions/…",
        )));
    }
    let before = app.store.genuine::<Policy>(&policy.name).await?;
    let is_kept = |before: &Versioned<Policy>| {
        before.record == policy && replaces.is_none_or(|version| version == before.version)
    };
    // A store that lost a policy or went back needs a write, which raises the generation of the policies.
    let is_current = app.store.policies().await.is_ok() && !app.store.went_back_behind_agents().await?;
    if is_current && before.as_ref().is_some_and(is_kept) {
        let kept = app.store.durable_policy(&policy.name).await?.transpose();
        if let Some(kept) = kept.filter(|kept| is_kept(kept)) {
            return Ok(kept.map(|kept| kept.version));
        }
    }
    let expect = replaces.map_or(Expect::Any, Expect::Version);
    let body = serde_json::to_string(&policy).unwrap_or_default();
    let event = AuditEvent::done(app.clock.now(), &caller.principal, "policy.put")
        .with("policy", &policy.name)
        .with("body", body);
    let name = policy.name.clone();
    app.store.commit(Transaction::default().put_policy(policy, expect).audit(event)).await?;
    // The broker has logged a failure, and looks again soon.
    app.policies_seen.look(&app.store).await.ok();
    wake(app);
    let kept = app.store.durable_policy(&name).await?.transpose().ok_or_else(|| not_found(&name))?;
    Ok(kept.map(|kept| kept.version))
}

/// Returns one policy.
///
/// # Errors
/// The policy does not exist.
pub async fn get(app: &App, name: &Name) -> Result<Versioned<Policy>, Error> {
    app.store.policy(name).await?.ok_or_else(|| not_found(name))
}

/// A policy as its caller may see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyView {
    /// The whole policy, for administrators and readers.
    Whole(Versioned<Policy>),
    /// The limits of a policy under which the caller may request access, for requesters.
    Limits(RequestLimits),
}

/// The part of a policy that a requester needs to request access under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// The policy's name.
    pub name: Name,
    /// The targets that it covers.
    pub targets: Vec<TargetSelector>,
    /// The ports, each with its sources and its maximum duration.
    pub ports: Vec<PortRule>,
    /// The layers that must confirm.
    pub layers: Layers,
    /// Reports that a grant waits for an approval.
    pub approval_required: bool,
}

impl PolicyView {
    /// Returns the part of the policy that the caller may see; none if it may not request under it (I7).
    fn of(policy: Versioned<Policy>, caller: &Principal) -> Option<Self> {
        match caller.role() {
            Role::Administrator | Role::Reader => Some(Self::Whole(policy)),
            Role::Requester => policy.record.admits(caller).then(|| {
                let Policy { name, targets, ports, layers, approval_required, .. } = policy.record;
                Self::Limits(RequestLimits { name, targets, ports, layers, approval_required })
            }),
        }
    }

    /// Returns the policy's name.
    pub fn name(&self) -> &Name {
        match self {
            Self::Whole(policy) => &policy.record.name,
            Self::Limits(limits) => &limits.name,
        }
    }
}

/// A page of policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyPage {
    /// The policies, by name.
    pub views: Vec<PolicyView>,
    /// The start of the next page; none after the last one.
    pub next: Option<Name>,
    /// The trouble with the policies as a whole: some are missing from the list, forged, or older than those that were kept last.
    pub trouble: Option<String>,
}

/// Returns one page of the policies that the caller may see. A requester sees the limits of the policies under which it may request
/// access, and no other policy. Administrators and readers see those that are there also if a policy or the manifest is lost or forged.
///
/// # Errors
/// The store failed, or for a requester: the policies are not those that were kept last.
pub async fn list(app: &App, caller: &Caller, size: usize, after: Option<&str>) -> Result<PolicyPage, Error> {
    // Of a store that went back an administrator compares the policies; under them no request is granted.
    let ComparedPolicies { policies, trouble } = match caller.principal.role() {
        Role::Administrator | Role::Reader => app.store.policies_to_compare().await?,
        Role::Requester => ComparedPolicies { policies: app.store.policies().await?, trouble: None },
    };
    let policies = policies.into_iter();
    let mut views: Vec<PolicyView> = policies
        .filter(|policy| after.is_none_or(|after| policy.record.name.as_str() > after))
        .filter_map(|policy| PolicyView::of(policy, &caller.principal))
        .collect();
    let more = views.len() > size;
    views.truncate(size);
    let next = views.last().filter(|_| more).map(|view| view.name().clone());
    Ok(PolicyPage { views, next, trouble })
}

/// Deletes a policy. Open grants run on to their end.
///
/// # Errors
/// The policy does not exist.
pub async fn delete(app: &App, caller: &Caller, name: &Name) -> Result<Durable<()>, Error> {
    match app.store.policy(name).await {
        // A forged policy has to go, too.
        Ok(Some(_)) | Err(StoreError::Forged { .. }) => {}
        // It may be gone by a delete that was not answered.
        Ok(None) if app.store.has_lost_policy(name).await? => {}
        Ok(None) => {
            app.store.durable_policy(name).await?.into_inner().ok_or_else(|| not_found(name))?;
        }
        Err(error) => return Err(error.into()),
    }
    let event = AuditEvent::done(app.clock.now(), &caller.principal, "policy.deleted").with("policy", name);
    let change = Transaction::default().delete_policy(name).audit(event);
    let deleted = Durable::commit(&app.store, change, ()).await?;
    // The broker has logged a failure, and looks again soon.
    app.policies_seen.look(&app.store).await.ok();
    wake(app);
    Ok(deleted)
}

fn not_found(name: &Name) -> Error {
    Error::NotFound { what: format!("the policy {name}") }
}

/// Wakes every target of this broker: each agent gets the new generation of the policies, and of a forged policy the targets are not known.
/// The other brokers wake their own targets when they follow the change. The change is made by then, so this must not fail.
fn wake(app: &App) {
    app.cluster.wake_own_targets(&app.wakeups, &app.sessions, &app.cloud);
}

/// Reports whether one of the policies asks for the host layer of its targets.
pub(super) fn wants_host(policies: &[&Policy]) -> bool {
    policies.iter().any(|policy| policy.layers != Layers::Cloud)
}

#[cfg(test)]
mod tests;
