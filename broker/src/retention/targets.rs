//! Leases and published reports of targets that are gone.
//!
//! A target is gone once no record names it: no agent is enrolled for it, or its agent was forgotten before the cutoff; the store has no
//! grant on it any more; and the cloud layer has no state of it, or its cloud says that there is no such target. If it comes back, a broker
//! takes a new lease.

use std::collections::BTreeSet;

use jiff::Timestamp;
use postern_core::TargetId;
use postern_store::{AgentRecord, Store};

use crate::cluster::leases::Leases;
use crate::layers::cloud::CloudLayer;

/// Forgets targets that are gone: the states of the cloud layer, and the leases that this broker holds.
///
/// # Errors
/// The store failed.
pub(super) async fn forget(
    store: &Store,
    leases: &Leases,
    cloud: &CloudLayer,
    cutoff: Timestamp,
) -> anyhow::Result<()> {
    let in_cloud: BTreeSet<TargetId> = cloud.targets().into_iter().collect();
    let elsewhere = leases.targets().into_iter().filter(|target| !in_cloud.contains(target));
    for target in elsewhere.chain(in_cloud.iter().filter(|target| cloud.is_gone(target)).cloned()) {
        if is_gone(store, &target, cutoff).await? {
            cloud.let_go(&target);
            leases.forget_target(&target).await?;
            tracing::info!(event = "retention.target_forgotten", %target, "a target that is gone was forgotten");
        }
    }
    Ok(())
}

async fn is_gone(store: &Store, target: &TargetId, cutoff: Timestamp) -> anyhow::Result<bool> {
    let agent = store.genuine::<AgentRecord>(target).await?.map(|agent| agent.record);
    let is_there = agent.is_some_and(|agent| agent.forgotten.is_none_or(|forgotten| forgotten.at >= cutoff));
    Ok(!is_there && !store.has_grant_on(target).await?)
}
