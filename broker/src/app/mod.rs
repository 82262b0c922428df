//! The use cases: what each call does, apart from the transport.
//!
//! A use case takes a [`Caller`] and core types, and returns core types or an [`Error`]. It knows no wire type: parsing a
//! message and writing an answer is the work of [`crate::api`].
//!
//! A use case that changes something goes three steps. It *decides* (policy, the caller's rights, the state of the record).
//! Then it *persists* the intent: one transaction of the [`Store`] holds the change and its audit line, so neither is there
//! without the other (I9). At last it *wakes* the reconciler for the targets that changed, and tells the watchers. A wake-up
//! carries no data: the reconciler reads the store.
//!
//! - No use case touches a layer, except [`lockdown`], whose caller waits for the outcome.
//! - I4: an answer to a change is a [`Durable`](postern_store::Durable) value: a commit gives one, and so does a read that waits
//!   until the records behind "it is so already" are as durable as an answered commit. A plain read is no such answer.
//! - I7: the table of [`crate::api`] says which role may call; which records of others the caller sees or changes is decided
//!   here, as in [`Caller::may_see`].
//! - A refusal is recorded in the audit log before it is returned, or counted if its caller has had many ([`denials`]). If
//!   the record fails, the caller gets the store's error, and nothing is granted.
//! - If the store fails, nothing has changed, or the answer to the change was lost. A repeated call finds which (I8).

mod about;
pub mod access;
pub mod agents;
pub mod assess;
pub mod audit;
mod caller;
pub mod caller_address;
mod clone_attempts;
pub mod denials;
mod error;
mod known_targets;
pub mod lockdown;
pub mod policies;
pub mod principals;
pub mod status;
pub mod targets;

use std::collections::BTreeSet;
use std::sync::Arc;

use postern_core::{ProtectedPort, TargetId};
use postern_pki::authority::Authority;
use postern_pki::identity::TrustDomain;
use postern_store::Store;
use tokio::sync::watch;

use crate::authority::Standing;
use crate::checkpoints::Checkpoints;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::cluster::peer_status::PeerStatus;
use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::layers::observer::Observer;
use crate::policies_seen::PoliciesSeen;
use crate::principals::Revocations;
use crate::readiness::Readiness;
use crate::retention::RetentionSettings;
use crate::signals::rounds::Rounds;
use crate::signals::{GrantChanges, ShutdownPhase, Wakeups};
pub use about::{About, StoreKind};
pub use caller::Caller;
pub use clone_attempts::CloneAttempts;
pub use error::{Error, QuotaExceeded};

/// Everything that the use cases work with.
pub struct App {
    /// The records.
    pub store: Store,
    /// The host layer.
    pub sessions: Arc<AgentSessions>,
    /// The cloud layer.
    pub cloud: Arc<CloudLayer>,
    /// Observes windows in both layers.
    pub observer: Observer,
    /// The other brokers.
    pub cluster: Arc<Cluster>,
    /// The attempts of agents' clones that this broker has refused.
    pub clone_attempts: CloneAttempts,
    /// The signals that wake the reconciler.
    pub wakeups: Arc<Wakeups>,
    /// The signals of grants that changed, for watchers.
    pub grant_changes: GrantChanges,
    /// The revocations that this broker knows.
    pub revocations: Arc<Revocations>,
    /// The reasons why this broker cannot do its work, if there are any.
    pub readiness: Readiness,
    /// The last round of each task of this broker.
    pub rounds: Arc<Rounds>,
    /// The name and the store of this broker.
    pub about: About,
    /// The proofs of callers' addresses.
    pub address_proofs: caller_address::AddressProofs,
    /// The requests that are being decided.
    pub deciding: access::Deciding,
    /// The quotas on grants and requests.
    pub quotas: access::RequestQuotas,
    /// The refusals that are recorded, and those that are counted.
    pub denials: denials::Denials,
    /// The time for which records that are over stay in the store.
    pub retention: RetentionSettings,
    /// The phase of the shutdown.
    pub shutdown: watch::Receiver<ShutdownPhase>,
    /// The checkpoints of the audit log.
    pub checkpoints: Arc<Checkpoints>,
    /// The newest policies that this broker has seen.
    pub policies_seen: Arc<PoliciesSeen>,
    /// The verifications of the audit log.
    pub verifications: audit::Verifications,
    /// The clock.
    pub clock: Clock,
    /// The authority that signs certificates.
    pub authority: Arc<Authority>,
    /// The state of the authority's certificates and of its root key.
    pub standing: Arc<Standing>,
    /// The trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// The ports that an assessment checks if its request names none.
    pub management_ports: BTreeSet<ProtectedPort>,
}

impl App {
    /// Reads what the other brokers have published of these targets, as far as they work on them.
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
}
