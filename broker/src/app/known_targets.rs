//! The targets that this broker knows.

use std::collections::BTreeSet;

use postern_core::TargetId;
use postern_core::target::TargetSelector;
use postern_store::StoreError;

use super::{App, Error};

/// Returns every target that has an agent, an open grant, a policy that names it alone, or a rule of Postern's in its cloud.
///
/// # Errors
/// The store failed.
pub(super) async fn known_targets(app: &App) -> Result<BTreeSet<TargetId>, Error> {
    let mut targets: BTreeSet<TargetId> = app
        .store
        .agents()
        .await?
        .into_iter()
        .map(|agent| agent.record)
        .filter(|agent| agent.forgotten.is_none())
        .map(|agent| agent.target)
        .collect();
    let policies = match app.store.policies().await {
        // The other sources name nearly every target. A policy is written over with the help of this list.
        Err(StoreError::Forged { .. } | StoreError::PoliciesLost { .. }) => Vec::new(),
        policies => policies?,
    };
    for policy in policies {
        targets.extend(policy.record.targets.into_iter().filter_map(|selector| match selector {
            TargetSelector::One(target) => Some(target),
            TargetSelector::Prefix(_) => None,
        }));
    }
    targets.extend(
        app.store.open_grants().await?.into_iter().flat_map(|grant| grant.record.windows).map(|w| w.target),
    );
    targets.extend(app.cloud.targets());
    Ok(targets)
}
