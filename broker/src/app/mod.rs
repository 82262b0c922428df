//! The use cases, apart from the transport: each decides, persists the intent with its audit line, and wakes the
//! reconciler. None of them touches a layer, but for [`lockdown`].

pub mod access;
pub mod agents;
pub mod assess;
mod error;
pub mod feed;
pub mod lockdown;
pub mod policies;
#[cfg(test)]
pub(crate) mod rig;
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
use crate::cloud::Clouds;
use crate::ending::Ending;
use crate::hub::Hub;
use crate::layer::host_layer;
use crate::readiness::Readiness;
use crate::reconcile::Wakeups;
use crate::replica::{Replica, Sights};
use crate::store::{Store, Transaction};
pub use error::Error;
pub use feed::Feed;

/// Everything that the use cases work with.
pub struct App {
    /// What must not be forgotten.
    pub store: Arc<dyn Store>,
    /// The host layer.
    pub hub: Arc<Hub>,
    /// The cloud layer.
    pub clouds: Arc<Clouds>,
    /// The other brokers.
    pub replica: Arc<Replica>,
    /// Wakes the reconciler.
    pub wakeups: Arc<Wakeups>,
    /// Tells watchers.
    pub feed: Feed,
    /// Whether this broker can do its work.
    pub readiness: Readiness,
    /// What this broker says of itself.
    pub about: status::About,
    /// How far the end of the broker has come.
    pub ending: watch::Receiver<Ending>,
    /// Time.
    pub clock: Clock,
    /// Signs certificates.
    pub authority: Authority,
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
    pub async fn sights(&self, targets: impl IntoIterator<Item = &TargetId>) -> Result<Sights, Error> {
        let elsewhere = targets.into_iter().filter(|target| !self.replica.leases.holds(target));
        let elsewhere: Vec<TargetId> = elsewhere.cloned().collect();
        Ok(self.replica.views.read(&elsewhere).await?)
    }

    /// What is known of a window of a grant in a layer, from whoever works on its target.
    pub fn observe(&self, grant: &Grant, window: &Window, layer: Layer, sights: &Sights) -> Observed {
        match layer {
            _ if !self.replica.leases.holds(&window.target) => sights.observe(grant, window, layer),
            Layer::Host => host_layer(&self.hub, &self.clouds, grant, window),
            Layer::Cloud => self.clouds.observe(grant, window),
        }
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
