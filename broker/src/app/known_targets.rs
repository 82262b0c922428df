//! The targets that this broker knows.

use std::collections::BTreeSet;

use postern_core::target::TargetSelector;
use postern_core::{Policy, TargetId};
use postern_store::{StoreError, Versioned};

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
    for policy in readable_policies(app).await? {
        targets.extend(policy.record.targets.into_iter().filter_map(|selector| match selector {
            TargetSelector::One(target) => Some(target),
            TargetSelector::Prefix(_) => None,
        }));
    }
    targets.extend(
        app.store.open_grants().await?.into_iter().flat_map(|grant| grant.record.windows).map(|w| w.target),
    );
    targets.extend(app.cloud.existing_targets());
    Ok(targets)
}

/// Returns every policy, or none while they cannot be read because one is forged or lost: an operator sees the targets all the same.
///
/// # Errors
/// The store failed.
pub(super) async fn readable_policies(app: &App) -> Result<Vec<Versioned<Policy>>, Error> {
    match app.store.policies().await {
        Err(StoreError::Forged { .. } | StoreError::PoliciesLost { .. }) => Ok(Vec::new()),
        policies => Ok(policies?),
    }
}
