//! The use cases over a store in memory and a fake cloud, for tests.

use std::collections::BTreeMap;

use postern_core::audit::{AuditEvent, AuditRecord, Outcome};
use postern_core::target::CloudKind;
use postern_core::{Policy, TargetId};
use tempfile::TempDir;

use super::*;
use crate::replica::Replica;
use crate::samples::name;
use crate::store::memory::Memory;
use crate::store::{Change, Expect};
use postern_provider::Provider;
use postern_provider::fake::FakeCloud;

/// An app of its own for each test. It drives the AWS cloud.
pub(crate) struct Rig {
    pub(crate) app: Arc<App>,
    pub(crate) store: Arc<Memory>,
    pub(crate) cloud: Arc<FakeCloud>,
    _dir: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let (clock, wakeups) = (Clock::start(jiff::Timestamp::UNIX_EPOCH), Arc::new(Wakeups::default()));
        let (store, cloud): (Arc<Memory>, Arc<FakeCloud>) = (Arc::default(), Arc::default());
        let aws: Arc<dyn Provider> = Arc::clone(&cloud) as _;
        let replica = Replica::alone();
        let (dir, trust_domain) = (tempfile::tempdir().unwrap(), TrustDomain::new("postern").unwrap());
        let app = App {
            store: Arc::clone(&store) as _,
            hub: Hub::new(clock, Arc::clone(&wakeups)),
            clouds: Clouds::new(
                BTreeMap::from([(CloudKind::Aws, aws)]),
                clock,
                Arc::clone(&wakeups),
                Arc::clone(&replica),
            ),
            replica,
            wakeups,
            feed: Feed::default(),
            readiness: Readiness::default(),
            about: status::About { name: "broker-1".into(), store: status::StoreKind::Embedded },
            ending: watch::channel(Ending::NotYet).1,
            clock,
            authority: Authority::init(&dir.path().join("ca"), &trust_domain, clock.now()).unwrap(),
            standing: Arc::new(Standing::at(dir.path().join("ca/root.key"))),
            trust_domain,
            management_ports: crate::app::assess::default_management_ports(),
        };
        Self { app: Arc::new(app), store, cloud, _dir: dir }
    }

    /// An app with these policies.
    pub(crate) async fn under(policies: impl IntoIterator<Item = Policy>) -> Self {
        let rig = Self::new();
        for policy in policies {
            let change = Change::PutPolicy { policy, expect: Expect::Absent };
            let event = AuditEvent::done(rig.app.clock.now(), "a test", "policy.put");
            rig.store.commit(Transaction::default().change(change).audit(event)).await.unwrap();
        }
        rig
    }

    /// What the audit log says of one action, in order: who, whether it was done, and of which reason.
    pub(crate) async fn audited(&self, action: &str) -> Vec<(String, Outcome, String)> {
        let events = self.events().await;
        let of_action = events.into_iter().filter(|event| event.action == action);
        of_action
            .map(|event| {
                (event.actor, event.outcome, event.details.get("reason").cloned().unwrap_or_default())
            })
            .collect()
    }

    /// Every event of the audit log, in order.
    pub(crate) async fn events(&self) -> Vec<AuditEvent> {
        let lines = self.store.audit_lines(0, 1000).await.unwrap();
        let record = |line: &str| serde_json::from_str::<AuditRecord>(line).unwrap();
        lines.iter().map(|(_, line)| record(line).event).collect()
    }

    /// The targets that were woken since the last look.
    pub(crate) async fn woken(&self) -> Vec<TargetId> {
        let woken = tokio::time::timeout(std::time::Duration::from_millis(20), self.app.wakeups.take()).await;
        woken.unwrap_or_default().into_iter().collect()
    }
}

/// A caller of this name.
pub(crate) fn caller(role: Role, who: &str) -> Caller {
    Caller { principal: Principal { role, name: name(who) }, address: None, token: None }
}
