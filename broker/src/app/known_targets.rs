//! The targets that this broker knows.

use std::collections::BTreeSet;

use postern_core::target::TargetSelector;
use postern_core::{Grant, Policy, TargetId};
use postern_store::{AgentRecord, StoreError, Versioned};

use super::{App, Error};

/// The records from which the targets come, read once for one answer.
pub(super) struct TargetRecords {
    /// Every policy, or none while they cannot be read because one is forged or lost: an operator sees the targets all the same.
    pub(super) policies: Vec<Policy>,
    /// Every grant that is not over; those of one target, where the answer is about that one.
    pub(super) open_grants: Vec<Grant>,
}

impl TargetRecords {
    /// Reads them.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn read(app: &App) -> Result<Self, Error> {
        let policies = readable_policies(app).await?;
        let open_grants = app.store.open_grants().await?.into_iter().map(|grant| grant.record).collect();
        Ok(Self { policies, open_grants })
    }

    /// Reads those about one target.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn read_about(app: &App, target: &TargetId) -> Result<Self, Error> {
        let policies = readable_policies(app).await?;
        let open_grants = app.store.open_grants_on(target).await?;
        Ok(Self { policies, open_grants: open_grants.into_iter().map(|grant| grant.record).collect() })
    }

    /// Reports whether a target is known as [`Self::known_targets`] says, or a policy covers it.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn know(&self, app: &App, target: &TargetId) -> Result<bool, Error> {
        let is_open = self.open_grants.iter().flat_map(|grant| &grant.windows).any(|it| it.target == *target);
        if is_open || self.policies.iter().any(|policy| policy.covers(target)) {
            return Ok(true);
        }
        let agent: Option<Versioned<AgentRecord>> = app.store.genuine(target).await?;
        let has_agent = agent.is_some_and(|agent| agent.record.forgotten.is_none());
        Ok(has_agent || app.cloud.targets().contains(target))
    }

    /// Returns every target that has an agent, an open grant, a policy that names it alone, or a rule of Postern's in its cloud.
    ///
    /// # Errors
    /// The store failed.
    pub(super) async fn known_targets(&self, app: &App) -> Result<BTreeSet<TargetId>, Error> {
        let agents = app.store.agents().await?.into_iter().map(|agent| agent.record);
        let mut targets: BTreeSet<TargetId> =
            agents.filter(|agent| agent.forgotten.is_none()).map(|agent| agent.target).collect();
        for selector in self.policies.iter().flat_map(|policy| &policy.targets) {
            match selector {
                TargetSelector::One(target) => drop(targets.insert(target.clone())),
                TargetSelector::Prefix(_) => {}
            }
        }
        let windows = self.open_grants.iter().flat_map(|grant| &grant.windows);
        targets.extend(windows.map(|window| window.target.clone()));
        targets.extend(app.cloud.existing_targets());
        Ok(targets)
    }
}

async fn readable_policies(app: &App) -> Result<Vec<Policy>, Error> {
    match app.store.policies().await {
        Err(StoreError::Forged { .. } | StoreError::PoliciesLost { .. }) => Ok(Vec::new()),
        policies => Ok(policies?.into_iter().map(|policy| policy.record).collect()),
    }
}
