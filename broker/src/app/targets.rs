//! Targets, with the state of both layers.

use std::collections::BTreeMap;

use postern_core::plan::Layer;
use postern_core::policy::{Protection, protection};
use postern_core::{Grant, Policy, Role, TargetId};

use super::known_targets::TargetRecords;
use super::{App, Caller, Error};
use crate::layers::report::{LayerReport, LayerStatus};

/// A target, as people see it.
#[derive(Debug)]
pub struct TargetView {
    /// The target.
    pub id: TargetId,
    /// Its protected ports and its mode.
    pub protection: Protection,
    /// The names of its policies.
    pub policies: Vec<String>,
    /// The number of windows that are open or opening on it.
    pub open_windows: usize,
    /// Its host layer.
    pub host: LayerReport,
    /// Its cloud layer.
    pub cloud: LayerReport,
}

/// The text in the place of a cloud's own for a requester.
pub const CLOUD_TEXT_WITHHELD: &str = "the cloud reports a problem; ask an operator for the cause";

/// Returns one page of the known targets that the caller may see, by id, and the start of the next page. A requester sees the
/// targets that it may ask for (I7).
///
/// # Errors
/// The store failed.
pub async fn list(
    app: &App,
    caller: &Caller,
    size: usize,
    after: Option<TargetId>,
) -> Result<(Vec<TargetView>, Option<TargetId>), Error> {
    let records = TargetRecords::read(app).await?;
    let visible = visible_policies(&records, caller);
    let known = records.known_targets(app).await?.into_iter();
    let mut targets: Vec<TargetId> = known
        .filter(|target| after.as_ref().is_none_or(|after| target > after))
        .filter(|target| may_see(caller, target, &visible))
        .collect();
    let more = targets.len() > size;
    targets.truncate(size);
    let next = targets.last().filter(|_| more).cloned();
    Ok((views(app, caller, &records, targets).await?, next))
}

/// Returns one target.
///
/// # Errors
/// The target is not known, or the caller may not see it: the answer is the same.
pub async fn get(app: &App, caller: &Caller, id: &TargetId) -> Result<TargetView, Error> {
    let missing = || Error::NotFound { what: format!("the target {id}") };
    let records = TargetRecords::read_about(app, id).await?;
    if !may_see(caller, id, &visible_policies(&records, caller)) || !records.know(app, id).await? {
        return Err(missing());
    }
    views(app, caller, &records, vec![id.clone()]).await?.pop().ok_or_else(missing)
}

/// Returns the policies that the caller may see: a requester, those under which it may request access.
fn visible_policies<'a>(records: &'a TargetRecords, caller: &Caller) -> Vec<&'a Policy> {
    let is_requester = caller.principal.role() == Role::Requester;
    let policies = records.policies.iter();
    policies.filter(|policy| !is_requester || policy.admits(&caller.principal)).collect()
}

/// Reports whether the caller may see a target. `visible` are the policies that it may see.
fn may_see(caller: &Caller, target: &TargetId, visible: &[&Policy]) -> bool {
    caller.principal.role() != Role::Requester || visible.iter().any(|policy| policy.covers(target))
}

async fn views(
    app: &App,
    caller: &Caller,
    TargetRecords { policies, open_grants }: &TargetRecords,
    targets: Vec<TargetId>,
) -> Result<Vec<TargetView>, Error> {
    let open = open_windows(open_grants.iter(), app.clock.now());
    let peers = app.peer_status(&targets).await?;
    let view = |id: TargetId| {
        let covering: Vec<&Policy> = policies.iter().filter(|policy| policy.covers(&id)).collect();
        let host = if super::policies::wants_host(&covering) || covering.is_empty() {
            app.observer.report(&id, Layer::Host, &peers)
        } else {
            LayerReport::of(LayerStatus::NotRequired, "")
        };
        let mut cloud = app.observer.report(&id, Layer::Cloud, &peers);
        if !caller.reads_cloud_errors() && !cloud.detail.is_empty() {
            CLOUD_TEXT_WITHHELD.clone_into(&mut cloud.detail);
        }
        let named = covering
            .iter()
            .filter(|policy| caller.principal.role() != Role::Requester || policy.admits(&caller.principal));
        TargetView {
            protection: protection(&id, policies),
            policies: named.map(|policy| policy.name.to_string()).collect(),
            open_windows: open.get(&id).copied().unwrap_or_default(),
            host,
            cloud,
            id,
        }
    };
    Ok(targets.into_iter().map(view).collect())
}

fn open_windows<'a>(
    grants: impl Iterator<Item = &'a Grant>,
    now: jiff::Timestamp,
) -> BTreeMap<TargetId, usize> {
    let mut open = BTreeMap::new();
    for window in grants.filter(|grant| grant.wants_open(now)).flat_map(|grant| &grant.windows) {
        *open.entry(window.target.clone()).or_default() += 1;
    }
    open
}

#[cfg(test)]
mod tests;
