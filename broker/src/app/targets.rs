//! Targets, with the state of both layers.

use std::collections::BTreeMap;

use postern_core::plan::Layer;
use postern_core::policy::{Protection, protection};
use postern_core::{Grant, Policy, TargetId};

use super::known_targets::{known_targets, readable_policies};
use super::{App, Error};
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

/// Returns one page of the known targets, by id, and the start of the next page.
///
/// # Errors
/// The store failed.
pub async fn list(
    app: &App,
    size: usize,
    after: Option<TargetId>,
) -> Result<(Vec<TargetView>, Option<TargetId>), Error> {
    let mut targets: Vec<TargetId> = known_targets(app)
        .await?
        .into_iter()
        .filter(|target| after.as_ref().is_none_or(|after| target > after))
        .collect();
    let more = targets.len() > size;
    targets.truncate(size);
    let next = targets.last().filter(|_| more).cloned();
    Ok((views(app, targets).await?, next))
}

/// Returns one target.
///
/// # Errors
/// The target is not known.
pub async fn get(app: &App, id: &TargetId) -> Result<TargetView, Error> {
    let missing = || Error::NotFound { what: format!("the target {id}") };
    if !known_targets(app).await?.contains(id)
        && !readable_policies(app).await?.iter().any(|policy| policy.record.covers(id))
    {
        return Err(missing());
    }
    views(app, vec![id.clone()]).await?.pop().ok_or_else(missing)
}

async fn views(app: &App, targets: Vec<TargetId>) -> Result<Vec<TargetView>, Error> {
    let policies: Vec<Policy> =
        readable_policies(app).await?.into_iter().map(|policy| policy.record).collect();
    let grants = app.store.open_grants().await?;
    let open = open_windows(grants.iter().map(|grant| &grant.record), app.clock.now());
    let peers = app.peer_status(&targets).await?;
    let view = |id: TargetId| {
        let covering: Vec<&Policy> = policies.iter().filter(|policy| policy.covers(&id)).collect();
        let host = if super::policies::wants_host(&covering) || covering.is_empty() {
            app.observer.report(&id, Layer::Host, &peers)
        } else {
            LayerReport::of(LayerStatus::NotRequired, "")
        };
        TargetView {
            protection: protection(&id, &policies),
            policies: covering.iter().map(|policy| policy.name.to_string()).collect(),
            open_windows: open.get(&id).copied().unwrap_or_default(),
            host,
            cloud: app.observer.report(&id, Layer::Cloud, &peers),
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
