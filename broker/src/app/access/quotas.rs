//! Quotas: what one principal may hold and ask for, and what one target may have (I10).
//!
//! **The problem.** A request that the policies allow costs a record, windows in the layers, and the time of every pass over
//! its target. A principal that asks without end would fill the store, and keep others from a target.
//!
//! **The rule.** A request is denied if its grant would take the principal or a target past a quota. What counts is every grant
//! that is not over, as its windows are still held, and every request that entered before this one and is still being decided
//! ([`super::deciding`]): requests that are decided at the same time cannot pass a quota together on one broker. One principal
//! may have half of a target's windows, so that it alone cannot keep others from it.
//!
//! **Cost.** The store counts the grants of an index without reading them. They are read only if so many grants of the largest
//! size would pass the quota.

use futures_util::future::try_join_all;
use postern_core::{AccessRequest, Grant, GrantState, Policy, PrincipalKey, TargetId};

use super::deciding::Earlier;
use crate::app::{App, Error, QuotaExceeded};

/// Judges the grant of a request. `policies` are all that admit the principal to one of its targets.
///
/// The outer error is the store's.
///
/// # Errors
/// The store failed.
pub(super) async fn judge(
    app: &App,
    grant: &Grant,
    policies: &[&Policy],
    earlier: &Earlier,
) -> Result<Result<(), QuotaExceeded>, Error> {
    if let Err(exceeded) = of_principal(app, grant, policies, earlier).await? {
        return Ok(Err(exceeded));
    }
    let targets = grant.targets().into_iter().map(|target| of_target(app, grant, target, earlier));
    Ok(try_join_all(targets).await?.into_iter().collect())
}

async fn of_principal(
    app: &App,
    grant: &Grant,
    policies: &[&Policy],
    earlier: &Earlier,
) -> Result<Result<(), QuotaExceeded>, Error> {
    let (key, quotas) = (grant.principal.key(), &app.quotas.quotas);
    let open = app.store.count_open_grants_of(key).await?;
    let limit = quotas.grants_per_principal;
    if open + earlier.own.len() >= limit {
        let message = format!("you have {limit} open grants ([quotas] grants_per_principal); {REVOKE}");
        return Ok(exceeded("QUOTA_OPEN_GRANTS", message));
    }
    let limit = quotas.windows_per_principal;
    let asked = grant.windows.len() + earlier.own.iter().map(|request| request.windows()).sum::<usize>();
    let is_capped = policies.iter().any(|policy| policy.max_open_grants.is_some());
    if !is_capped && asked + at_most(open) <= limit {
        return Ok(Ok(()));
    }
    let own: Vec<Grant> =
        app.store.open_grants_by(key).await?.into_iter().map(|grant| grant.record).collect();
    if asked + own.iter().map(|grant| grant.windows.len()).sum::<usize>() > limit {
        let message = format!(
            "you would have more than {limit} open windows ([quotas] windows_per_principal); {REVOKE}"
        );
        return Ok(exceeded("QUOTA_OPEN_WINDOWS", message));
    }
    Ok(policies.iter().try_for_each(|policy| of_policy(grant, policy, &own, earlier)))
}

/// Judges the bound of one policy: the principal's open grants on the targets that it covers. A grant that closes does not
/// count, nor does one that this grant extends.
fn of_policy(grant: &Grant, policy: &Policy, own: &[Grant], earlier: &Earlier) -> Result<(), QuotaExceeded> {
    let Some(limit) = policy.max_open_grants else { return Ok(()) };
    let counts = |held: &&Grant| {
        !matches!(held.state, GrantState::Closing(_))
            && !grant.supersedes(held)
            && held.windows.iter().any(|window| policy.covers(&window.target))
    };
    let deciding =
        earlier.own.iter().filter(|request| request.targets().iter().any(|target| policy.covers(target)));
    if own.iter().filter(counts).count() + deciding.count() < limit as usize {
        return Ok(());
    }
    exceeded(
        "QUOTA_POLICY_GRANTS",
        format!("you have {limit} open grants under the policy {} (max_open_grants); {REVOKE}", policy.name),
    )
}

async fn of_target(
    app: &App,
    grant: &Grant,
    target: &TargetId,
    earlier: &Earlier,
) -> Result<Result<(), QuotaExceeded>, Error> {
    let limit = app.quotas.quotas.windows_per_target;
    let asked = on(grant, target);
    let (mine, all) = earlier.on.get(target).copied().unwrap_or_default();
    if asked + all + at_most(app.store.count_open_grants_on(target).await?) <= limit / 2 {
        return Ok(Ok(()));
    }
    let open = app.store.open_grants_on(target).await?;
    let windows = |key: Option<&PrincipalKey>| -> usize {
        let of_key = open.iter().filter(|open| key.is_none_or(|key| key == open.record.principal.key()));
        of_key.map(|open| on(&open.record, target)).sum()
    };
    if asked + mine + windows(Some(grant.principal.key())) > limit / 2 {
        let message = format!(
            "you would have more than {} open windows on {target}, half of [quotas] windows_per_target; {REVOKE}",
            limit / 2
        );
        return Ok(exceeded("QUOTA_TARGET_WINDOWS", message));
    }
    if asked + all + windows(None) > limit {
        let message = format!(
            "{target} would have more than {limit} open windows ([quotas] windows_per_target); {WAIT}"
        );
        return Ok(exceeded("QUOTA_TARGET_WINDOWS", message));
    }
    Ok(Ok(()))
}

const REVOKE: &str = "revoke some, wait for their end, or ask an operator to raise it";
const WAIT: &str = "wait until some have closed, or ask an operator to raise it";

/// Returns the windows of a grant on one target.
fn on(grant: &Grant, target: &TargetId) -> usize {
    grant.windows.iter().filter(|window| window.target == *target).count()
}

/// Returns the most windows that so many grants have.
fn at_most(grants: usize) -> usize {
    grants.saturating_mul(AccessRequest::MAX_WINDOWS)
}

fn exceeded(reason: &'static str, message: String) -> Result<(), QuotaExceeded> {
    Err(QuotaExceeded { reason, message })
}

#[cfg(test)]
mod tests;
