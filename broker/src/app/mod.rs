//! The use cases, apart from the transport: each decides, persists the intent with its audit line, and wakes the
//! reconciler. None of them touches a layer, but for [`lockdown`].

pub mod access;
pub mod agents;
pub mod assess;
mod error;
pub mod lockdown;
pub mod policies;
pub mod status;
pub mod targets;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use postern_core::audit::AuditEvent;
use postern_core::plan::{Layer, Observed};
use postern_core::{Grant, Principal, ProtectedPort, Role, TargetId, Window};
use postern_pki::authority::Authority;
use postern_pki::identity::TrustDomain;
use postern_provider::CallerToken;
use tokio::sync::watch;

use crate::authority::Standing;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::peer_status::PeerStatus;
use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::layers::observer::Observer;
use crate::readiness::Readiness;
use crate::signals::{GrantChanges, ShutdownPhase, Wakeups};
use crate::store::{Store, Transaction};
pub use error::Error;

/// Everything that the use cases work with.
pub struct App {
    /// What must not be forgotten.
    pub store: Arc<dyn Store>,
    /// The host layer.
    pub sessions: Arc<AgentSessions>,
    /// The cloud layer.
    pub cloud: Arc<CloudLayer>,
    /// Answers how windows stand.
    pub observer: Observer,
    /// The other brokers.
    pub cluster: Arc<Cluster>,
    /// Wakes the reconciler.
    pub wakeups: Arc<Wakeups>,
    /// Tells watchers.
    pub grant_changes: GrantChanges,
    /// Whether this broker can do its work.
    pub readiness: Readiness,
    /// What this broker says of itself.
    pub about: status::About,
    /// How far the shutdown of the broker has come.
    pub shutdown: watch::Receiver<ShutdownPhase>,
    /// Time.
    pub clock: Clock,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// How the authority's life stands.
    pub standing: Arc<Standing>,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The ports for which an assessment looks, if it is not told.
    pub management_ports: BTreeSet<ProtectedPort>,
}

/// A principal that makes a call.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who, from the certificate.
    pub principal: Principal,
    /// From where the broker sees it.
    pub address: Option<IpAddr>,
    /// What proves the caller to a cloud, where it was sent along.
    pub token: Option<CallerToken>,
}

impl Caller {
    /// Whether the caller may see the grant: a requester sees its own.
    pub fn may_see(&self, grant: &Grant) -> bool {
        self.principal.role != Role::Requester || grant.principal.name == self.principal.name
    }
}

impl App {
    /// What the other brokers tell of those of these targets on which they work.
    ///
    /// # Errors
    /// The store failed.
    pub async fn peer_status(
        &self,
        targets: impl IntoIterator<Item = &TargetId>,
    ) -> Result<PeerStatus, Error> {
        let elsewhere = targets.into_iter().filter(|target| !self.cluster.leases.holds(target));
        let elsewhere: Vec<TargetId> = elsewhere.cloned().collect();
        Ok(self.cluster.peer_status.read(&elsewhere).await?)
    }

    /// Records that something was refused.
    ///
    /// # Errors
    /// The store failed.
    pub async fn record_denial(&self, event: AuditEvent) -> Result<(), Error> {
        self.store.commit(Transaction::default().audit(event)).await?;
        Ok(())
    }
}
