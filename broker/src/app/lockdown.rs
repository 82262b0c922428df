//! Lockdown and release: the one use case that acts on a layer itself, because an administrator waits for the outcome.
//!
//! I9 is kept here: the audit log has a line on what is about to be done before a cloud is touched, and another on how it
//! ended. A dry run touches nothing and leaves no line. If the broker dies while the cloud works, the next sweep or a
//! repeated call finishes the work.

mod job;
mod outcome;

use std::collections::{BTreeMap, BTreeSet};

use postern_core::policy::protection;
use postern_core::{Grant, Policy, ProtectedPort, TargetId};
use postern_provider::{Consent, LockdownOrder};

use super::{App, Caller, Error};
use job::{LockdownJob, Work};
pub use outcome::{TargetError, TargetOutcome};

/// Puts targets under lockdown, or only plans the changes. A target that may not be locked down, or that has a concern that
/// the caller does not accept, stays as it is; the others may not shut rules that they share with it.
///
/// # Errors
/// The store failed before anything was planned.
pub async fn lockdown(
    app: &App,
    caller: &Caller,
    targets: &[TargetId],
    consent: &Consent,
    dry_run: bool,
) -> Result<Vec<TargetOutcome>, Error> {
    let policies: Vec<Policy> = app.store.policies().await?.into_iter().map(|policy| policy.record).collect();
    let job = |target: &TargetId| {
        let ports = ports(app, target, &policies);
        let (ports, error) = ports.map_or_else(|error| (BTreeSet::new(), Some(error)), |ports| (ports, None));
        let order =
            LockdownOrder { target: target.clone(), ports, consent: consent.clone(), together: [].into() };
        LockdownJob::new(Work::Lockdown(order), error)
    };
    let mut jobs: Vec<LockdownJob> = targets.iter().map(job).collect();
    plan(app, &mut jobs).await;
    if !dry_run {
        for i in 0..jobs.len() {
            // Read again for each target: one that has failed meanwhile is not locked down together with this one.
            let partners = partners(&jobs);
            if let Some(job) = jobs.get_mut(i) {
                job.together(&partners);
                job.carry_out(app, caller).await;
            }
        }
    }
    Ok(jobs.into_iter().map(TargetOutcome::from).collect())
}

/// Releases targets from lockdown, or only plans the changes.
pub async fn release(app: &App, caller: &Caller, targets: &[TargetId], dry_run: bool) -> Vec<TargetOutcome> {
    let mut jobs = Vec::new();
    for target in targets {
        let error = match undriven(app, target) {
            Some(error) => Some(error),
            None => in_use(app, target).await,
        };
        let mut job = LockdownJob::new(Work::Release(target.clone()), error);
        if !dry_run {
            job.carry_out(app, caller).await;
        }
        jobs.push(job);
    }
    if dry_run {
        let mut planned: Vec<&mut LockdownJob> = jobs.iter_mut().filter(|job| job.takes_part()).collect();
        let targets: Vec<TargetId> = planned.iter().map(|job| job.target().clone()).collect();
        let answers = app.cloud.plan_releases(&targets).await;
        planned.iter_mut().zip(answers).for_each(|(job, answer)| job.take_answer(answer));
    }
    jobs.into_iter().map(TargetOutcome::from).collect()
}

/// Plans until the set of targets that take part is stable: a target that drops out may give a concern to others that share
/// rules with it.
async fn plan(app: &App, jobs: &mut [LockdownJob]) {
    loop {
        let partners = partners(jobs);
        let mut planned: Vec<&mut LockdownJob> = jobs.iter_mut().filter(|job| job.takes_part()).collect();
        planned.iter_mut().for_each(|job| job.together(&partners));
        let orders: Vec<LockdownOrder> = planned.iter().filter_map(|job| job.order().cloned()).collect();
        let answers = app.cloud.plan_lockdowns(&orders).await;
        planned.iter_mut().zip(answers).for_each(|(job, answer)| job.take_answer(answer));
        if self::partners(jobs) == partners {
            return;
        }
    }
}

fn partners(jobs: &[LockdownJob]) -> BTreeMap<TargetId, BTreeSet<ProtectedPort>> {
    let partner = |job: &LockdownJob| (job.target().clone(), job.ports());
    jobs.iter().filter(|job| job.takes_part()).map(partner).collect()
}

/// Returns the ports that the cloud shuts: those for which a window can open in the cloud again.
fn ports(app: &App, target: &TargetId, policies: &[Policy]) -> Result<BTreeSet<ProtectedPort>, TargetError> {
    if let Some(error) = undriven(app, target) {
        return Err(error);
    }
    let refused = |reason: String| Err(TargetError::Precondition { reason });
    let covering: Vec<&Policy> = policies.iter().filter(|policy| policy.covers(target)).collect();
    if covering.is_empty() {
        return refused(format!(
            "{target} is under no policy, so no port of it is protected; put it under one whose layers are cloud or both"
        ));
    }
    let cloud: Vec<Policy> =
        covering.iter().filter(|policy| policy.layers.cloud()).map(|&policy| policy.clone()).collect();
    if cloud.is_empty() {
        let names: Vec<_> = covering.iter().map(|policy| policy.name.to_string()).collect();
        return refused(format!(
            "no policy of {target} asks for the cloud layer; set layers to cloud or both in {}",
            names.join(" or ")
        ));
    }
    Ok(protection(target, &cloud).ports)
}

fn undriven(app: &App, target: &TargetId) -> Option<TargetError> {
    let reason = format!("this broker drives no cloud for {target}; configure its provider");
    (!app.cloud.drives(target)).then_some(TargetError::Precondition { reason })
}

/// Returns the reason why a target cannot be released: grants that have, or may still have, a window in its cloud.
async fn in_use(app: &App, target: &TargetId) -> Option<TargetError> {
    let grants = match app.store.open_grants().await {
        Ok(grants) => grants,
        Err(error) => return Some(error.into()),
    };
    let holds =
        |grant: &Grant| grant.windows.iter().any(|window| window.target == *target && window.layers.cloud());
    let holding = grants.iter().map(|grant| &grant.record).filter(|grant| holds(grant));
    let ids: Vec<_> = holding.map(|grant| grant.id.to_string()).collect();
    let reason = format!(
        "grants hold windows on {target}: {}; revoke them first, and wait until they are closed",
        ids.join(", ")
    );
    (!ids.is_empty()).then_some(TargetError::Precondition { reason })
}

#[cfg(test)]
mod tests;
