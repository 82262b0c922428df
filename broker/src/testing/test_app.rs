//! The use cases over a store in memory and a fake cloud, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use postern_core::audit::{AuditEvent, AuditRecord, Outcome};
use postern_core::target::CloudKind;
use postern_core::{Policy, Principal, Role, TargetId};
use postern_pki::authority::Authority;
use postern_pki::identity::TrustDomain;
use postern_provider::Provider;
use postern_provider::fake::FakeCloud;
use postern_store::testing::fake_peer::FakePeer;
use postern_store::testing::memory::Memory;
use postern_store::{Expect, Transaction};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::app::access::{Deciding, RequestQuotas};
use crate::app::caller_address::AddressProofs;
use crate::app::denials::Denials;
use crate::app::{About, App, Caller, CloneAttempts, StoreKind};
use crate::authority::Standing;
use crate::clock::{Clock, wall};
use crate::cluster::Cluster;
use crate::layers::cloud::CloudLayer;
use crate::layers::host::sessions::AgentSessions;
use crate::layers::observer::Observer;
use crate::limits::{Limits, Quotas};
use crate::policies_seen::PoliciesSeen;
use crate::principals::Issuance;
use crate::readiness::Readiness;
use crate::retention::RetentionSettings;
use crate::signals::{GrantChanges, ShutdownPhase, Wakeups};
use crate::testing::builders::name;

/// An app of its own for each test. It drives the AWS cloud.
pub(crate) struct TestApp {
    pub(crate) app: Arc<App>,
    pub(crate) store: Memory,
    pub(crate) cloud: Arc<FakeCloud>,
    _dir: TempDir,
}

impl TestApp {
    pub(crate) fn new() -> Self {
        Self::within(&Quotas::default())
    }

    /// An app with these quotas.
    pub(crate) fn within(quotas: &Quotas) -> Self {
        Self::of(quotas, &Cluster::alone())
    }

    /// An app beside another broker.
    pub(crate) fn beside(peer: &Arc<FakePeer>) -> Self {
        Self::of(&Quotas::default(), &Cluster::of(Arc::clone(peer) as _))
    }

    fn of(quotas: &Quotas, cluster: &Arc<Cluster>) -> Self {
        let (clock, wakeups) = (Clock::start(jiff::Timestamp::UNIX_EPOCH), Arc::new(Wakeups::default()));
        let (store, cloud): (Memory, Arc<FakeCloud>) = (Memory::default(), Arc::default());
        let (dir, trust_domain) = (tempfile::tempdir().unwrap(), TrustDomain::new("postern").unwrap());
        let observer = observer_over(&cloud, clock, &wakeups, cluster);
        let app = App {
            store: store.store(),
            sessions: Arc::clone(&observer.sessions),
            cloud: Arc::clone(&observer.cloud),
            observer,
            cluster: Arc::clone(cluster),
            clone_attempts: CloneAttempts::default(),
            wakeups,
            grant_changes: GrantChanges::default(),
            revocations: Arc::default(),
            readiness: Readiness::default(),
            rounds: Arc::default(),
            about: About { name: "broker-1".into(), store: StoreKind::Embedded },
            address_proofs: AddressProofs::default(),
            deciding: Deciding::default(),
            denials: Denials::new(&Limits::default()),
            quotas: RequestQuotas::new(quotas),
            retention: RetentionSettings::default(),
            shutdown: watch::channel(ShutdownPhase::Running).1,
            checkpoints: Arc::default(),
            policies_seen: Arc::new(PoliciesSeen::load(dir.path()).unwrap()),
            verifications: Default::default(),
            clock,
            authority: Arc::new(Authority::init(&dir.path().join("ca"), &trust_domain, clock.now()).unwrap()),
            standing: Arc::new(Standing::at(dir.path().join("ca/root.key"))),
            trust_domain,
            management_ports: crate::config::default_management_ports(),
        };
        Self { app: Arc::new(app), store, cloud, _dir: dir }
    }

    /// An app with these policies.
    pub(crate) async fn under(policies: impl IntoIterator<Item = Policy>) -> Self {
        Self::new().with_policies(policies).await
    }

    /// The app with these policies besides.
    pub(crate) async fn with_policies(self, policies: impl IntoIterator<Item = Policy>) -> Self {
        let test = self;
        for policy in policies {
            let event = AuditEvent::done(test.app.clock.now(), "a test", "policy.put");
            test.store
                .commit(Transaction::default().put_policy(policy, Expect::Absent).audit(event))
                .await
                .unwrap();
        }
        test
    }

    /// Returns the actor, the outcome and the reason of each audit record of one action, in order.
    pub(crate) async fn audited(&self, action: &str) -> Vec<(String, Outcome, String)> {
        let events = self.events().await;
        let of_action = events.into_iter().filter(|event| event.action == action);
        of_action
            .map(|event| {
                (event.actor, event.outcome, event.details.get("reason").cloned().unwrap_or_default())
            })
            .collect()
    }

    /// Returns every event of the audit log, in order.
    pub(crate) async fn events(&self) -> Vec<AuditEvent> {
        let lines = self.store.audit_lines(0, 1000).await.unwrap();
        let record = |line: &str| serde_json::from_str::<AuditRecord>(line).unwrap();
        lines.iter().map(|(_, line)| record(line).event).collect()
    }

    /// Returns the targets that were woken since the last call.
    pub(crate) async fn woken(&self) -> Vec<TargetId> {
        let woken = tokio::time::timeout(std::time::Duration::from_millis(20), self.app.wakeups.take()).await;
        woken.unwrap_or_default().into_iter().collect()
    }
}

/// A caller of this name.
pub(crate) fn caller(role: Role, who: &str) -> Caller {
    let issuance = Issuance { at: wall(), serial: None };
    Caller {
        principal: Principal::local(role, name(who)),
        issuance,
        address: None,
        other_address: None,
        token: None,
    }
}

/// Both layers of a broker that drives a fake cloud, with no agent yet.
pub(crate) fn observer_over(
    cloud: &Arc<FakeCloud>,
    clock: Clock,
    wakeups: &Arc<Wakeups>,
    cluster: &Cluster,
) -> Observer {
    let aws: Arc<dyn Provider> = Arc::clone(cloud) as _;
    let (providers, leases) = (BTreeMap::from([(CloudKind::Aws, aws)]), Arc::clone(&cluster.leases));
    Observer {
        sessions: AgentSessions::new(clock, Arc::clone(wakeups)),
        cloud: CloudLayer::new(providers, clock, Arc::clone(wakeups), Arc::clone(&leases)),
        leases,
    }
}
