//! Lockdowns and releases over a fake cloud, target by target, with the audit log beside them.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use postern_core::Layers;
use postern_core::Role;
use postern_core::audit::Outcome;
use postern_core::plan::LayerWindow;
use postern_core::target::CloudKind;
use postern_provider::fake::{FakeCloud, Fault};
use postern_provider::{
    AssessmentReport, CloudError, ConcernKind, LockdownReport, Observation, Provider, Reach, SweepReport,
};
use postern_store::testing::memory;
use postern_store::{Expect, Transaction};

use super::*;
use crate::layers::cloud::CloudLayer;
use crate::testing::builders::{a_grant, a_policy};
use crate::testing::{TestApp, caller};

const AZURE: &str = "azure:/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/rg/providers/Microsoft.Compute/virtualMachines/vm";

fn vm(number: u8) -> TargetId {
    format!("aws:123456789012/eu-central-1/i-{number:017x}").parse().unwrap()
}

fn root() -> Caller {
    caller(Role::Administrator, "root")
}

/// Every VM is under a policy that asks for the cloud layer, and the first two are not under lockdown.
async fn a_test_app() -> TestApp {
    let test = TestApp::under([a_policy().on("aws:*").layers(Layers::Cloud).build()]).await;
    test.cloud.unlock(&vm(1));
    test.cloud.unlock(&vm(2));
    test
}

async fn lock(test: &TestApp, targets: &[TargetId], accept: &[ConcernKind]) -> Vec<TargetOutcome> {
    let consent = Consent(accept.iter().copied().collect());
    lockdown(&test.app, &root(), targets, &consent, false).await.unwrap()
}

async fn is_locked(test: &TestApp, target: &TargetId) -> bool {
    let survey = test.cloud.assess(&BTreeSet::new()).await;
    survey.assessments.iter().find(|one| one.target == *target).unwrap().locked
}

/// Returns the audit lines of targets: target, action, outcome.
async fn log(test: &TestApp) -> Vec<(TargetId, String, Outcome)> {
    let events = test.events().await.into_iter().filter(|event| event.action.starts_with("target."));
    events.map(|event| (event.target.unwrap(), event.action, event.outcome)).collect()
}

fn line(target: &TargetId, action: &str, outcome: Outcome) -> (TargetId, String, Outcome) {
    (target.clone(), format!("target.{action}"), outcome)
}

fn reason(outcome: &TargetOutcome) -> String {
    outcome.error.as_ref().unwrap().to_string()
}

async fn put(test: &TestApp, grant: &Grant) {
    let event = postern_core::audit::AuditEvent::done(test.app.clock.now(), "a test", "grant.requested");
    test.app
        .store
        .commit(Transaction::default().put_grant(grant.clone(), Expect::Absent).audit(event))
        .await
        .unwrap();
}

#[tokio::test]
async fn i9_a_lockdown_is_in_the_log_before_and_after() {
    let test = a_test_app().await;
    test.cloud.concern(vec![FakeCloud::a_concern(ConcernKind::Cut)]);
    let outcomes = lock(&test, &[vm(1)], &[ConcernKind::Cut, ConcernKind::Loss]).await;
    assert!(outcomes[0].done && outcomes[0].error.is_none(), "{outcomes:?}");
    assert_eq!((outcomes[0].report.changes.len(), outcomes[0].unmet.len()), (1, 0));
    assert!(is_locked(&test, &vm(1)).await);
    let lines = ["lockdown.requested", "lockdown.done"].map(|action| line(&vm(1), action, Outcome::Done));
    assert_eq!(log(&test).await, lines);
    for event in test.events().await.into_iter().filter(|event| event.action.starts_with("target.")) {
        assert_eq!(event.actor, "administrator/root");
        assert_eq!((&*event.details["ports"], &*event.details["accepted"]), ("tcp/22", "loss, cut"));
    }
}

#[tokio::test]
async fn i9_what_cannot_be_recorded_is_not_begun() {
    for release in [false, true] {
        let test = a_test_app().await;
        test.store.fail_next([memory::Fault::Full]);
        let (target, outcomes) = if release {
            (vm(3), super::release(&test.app, &root(), &[vm(3)], false).await)
        } else {
            (vm(1), lock(&test, &[vm(1)], &[]).await)
        };
        assert!(
            matches!(outcomes[0].error, Some(TargetError::Store(_))) && !outcomes[0].done,
            "{outcomes:?}"
        );
        test.cloud.tamper(a_window(&target));
        assert_eq!(is_locked(&test, &target).await, release, "nothing was touched");
    }
}

#[tokio::test]
async fn i9_what_is_done_is_reported_even_if_its_end_cannot_be_recorded() {
    let test = a_test_app().await;
    test.store.fail_next([memory::Fault::Nothing, memory::Fault::Full]);
    let outcomes = lock(&test, &[vm(1)], &[]).await;
    assert!(outcomes[0].done && matches!(outcomes[0].error, Some(TargetError::Store(_))), "{outcomes:?}");
    assert_eq!(log(&test).await, [line(&vm(1), "lockdown.requested", Outcome::Done)]);
}

#[tokio::test]
async fn a_concern_that_is_not_accepted_stops_its_target_and_no_other() {
    let test = a_test_app().await;
    test.cloud.concern(vec![FakeCloud::a_concern(ConcernKind::Cut), FakeCloud::a_concern(ConcernKind::Loss)]);
    let outcomes = lock(&test, &[vm(1), vm(3)], &[ConcernKind::Loss]).await;
    assert_eq!(outcomes[0].unmet, [FakeCloud::a_concern(ConcernKind::Cut)]);
    assert_eq!((outcomes[0].done, outcomes[0].report.concerns.len()), (false, 2));
    assert!(!is_locked(&test, &vm(1)).await);
    assert!(outcomes[1].done, "one that is locked down already has nothing to ask");
    let refused = test.events().await.into_iter().find(|event| event.outcome == Outcome::Denied).unwrap();
    assert_eq!((&*refused.action, &refused.target), ("target.lockdown.refused", &Some(vm(1))));
    assert_eq!(refused.details["concerns"], "cut: a test of cut");
}

#[tokio::test]
async fn a_cloud_that_fails_for_one_target_serves_the_others() {
    let test = a_test_app().await;
    test.cloud.terminate(&vm(1));
    let outcomes = lock(&test, &[vm(1), vm(2)], &[]).await;
    assert!(matches!(outcomes[0].error, Some(TargetError::Cloud(CloudError::NotFound { .. }))));
    assert!(outcomes[1].done);
    assert_eq!(log(&test).await[0], line(&vm(1), "lockdown.failed", Outcome::Done));

    test.cloud.fail_next([Fault::throttled()]);
    let outcomes = lock(&test, &[vm(2)], &[]).await;
    assert!(matches!(outcomes[0].error, Some(TargetError::Cloud(CloudError::Unavailable { .. }))));
}

#[tokio::test]
async fn a_lockdown_that_fails_half_way_is_recorded_and_may_be_asked_for_again() {
    let test = a_test_app().await;
    let entangled = Arc::new(Entangled { inner: Arc::clone(&test.cloud), failing: Some(vm(1)) });
    let test = with(test, entangled);
    let outcomes = lock(&test, &[vm(1)], &ConcernKind::ALL).await;
    assert!(!outcomes[0].done && outcomes[0].error.is_some(), "{outcomes:?}");
    let lines = ["lockdown.requested", "lockdown.failed"].map(|action| line(&vm(1), action, Outcome::Done));
    assert_eq!(log(&test).await, lines);
}

#[tokio::test]
async fn a_target_without_a_cloud_layer_to_lock_is_refused_with_the_remedy() {
    let host_only = a_policy().named("agents").on("aws:*").build();
    for (policies, target, remedy) in [
        (vec![], vm(1), "put it under one"),
        (vec![host_only], vm(1), "set layers to cloud or both in agents"),
        (vec![a_policy().on("azure:*").layers(Layers::Cloud).build()], AZURE.parse().unwrap(), "configure"),
    ] {
        let test = TestApp::under(policies).await;
        let outcomes = lock(&test, std::slice::from_ref(&target), &[]).await;
        assert!(reason(&outcomes[0]).contains(remedy), "{outcomes:?}");
        assert_eq!(test.cloud.calls(), 0);
        assert_eq!(log(&test).await, [line(&target, "lockdown.refused", Outcome::Denied)]);
    }
}

#[tokio::test]
async fn only_ports_that_a_window_can_open_in_the_cloud_are_shut_there() {
    let mut host_only = a_policy().named("agents").on("aws:*").build();
    host_only.ports[0].port = "tcp/5432".parse().unwrap();
    let test = TestApp::under([a_policy().on("aws:*").layers(Layers::Both).build(), host_only]).await;
    lock(&test, &[vm(1)], &[]).await;
    let events = test.events().await;
    let requested = events.iter().find(|event| event.action == "target.lockdown.requested").unwrap();
    assert_eq!(requested.details["ports"], "tcp/22");
}

#[tokio::test]
async fn i9_a_dry_run_reports_everything_and_changes_nothing() {
    let test = a_test_app().await;
    test.cloud.concern(vec![FakeCloud::a_concern(ConcernKind::Shared)]);
    let planned = lockdown(&test.app, &root(), &[vm(1)], &Consent::default(), true).await.unwrap();
    assert_eq!((planned[0].report.changes.len(), planned[0].unmet.len(), planned[0].done), (1, 1, false));
    assert!(!is_locked(&test, &vm(1)).await);
    let planned = release(&test.app, &root(), &[vm(3)], true).await;
    assert_eq!((planned[0].report.changes.len(), planned[0].done), (1, false));
    assert_eq!(log(&test).await, []);
}

#[tokio::test]
async fn i9_a_release_is_in_the_log_before_and_after_and_needs_no_policy() {
    let test = TestApp::new();
    let outcomes = release(&test.app, &root(), &[vm(3)], false).await;
    assert!(outcomes[0].done && !is_locked(&test, &vm(3)).await, "{outcomes:?}");
    let lines = ["release.requested", "release.done"].map(|action| line(&vm(3), action, Outcome::Done));
    assert_eq!(log(&test).await, lines);
}

#[tokio::test]
async fn a_release_waits_for_the_grants_that_hold_windows_and_names_them() {
    let test = TestApp::new();
    let cloud = a_grant().number(1).on(&vm(3).to_string()).layers(Layers::Both).build();
    let host = a_grant().number(2).on(&vm(4).to_string()).layers(Layers::Host).build();
    put(&test, &cloud).await;
    put(&test, &host).await;
    let outcomes = release(&test.app, &root(), &[vm(3), vm(4)], false).await;
    assert!(reason(&outcomes[0]).contains(&cloud.id.to_string()), "{outcomes:?}");
    assert!(outcomes[1].done, "a window in the host layer alone is not in the way");
    assert_eq!(log(&test).await[0], line(&vm(3), "release.refused", Outcome::Denied));

    // The cloud finds a window that the store does not know.
    test.cloud.tamper(a_window(&vm(5)));
    let outcomes = release(&test.app, &root(), &[vm(5)], false).await;
    assert!(
        matches!(outcomes[0].error, Some(TargetError::Cloud(CloudError::Refused { .. }))),
        "{outcomes:?}"
    );
}

#[tokio::test]
async fn targets_that_share_rules_are_locked_down_together_or_not_at_all() {
    let test = a_test_app().await;
    let cloud = Arc::clone(&test.cloud);
    let test = with(test, Arc::new(Entangled { inner: cloud, failing: None }));
    // The first asks about a cut. Once it drops out, the second shares rules with a machine that is not under JIT.
    let outcomes = lock(&test, &[vm(1), vm(2)], &[]).await;
    let asked = |outcome: &TargetOutcome| outcome.unmet.iter().map(|one| one.kind).collect::<Vec<_>>();
    assert_eq!(outcomes.iter().map(asked).collect::<Vec<_>>(), [[ConcernKind::Cut], [ConcernKind::Shared]]);
    assert!(!is_locked(&test, &vm(1)).await && !is_locked(&test, &vm(2)).await);

    let outcomes = lock(&test, &[vm(1), vm(2)], &[ConcernKind::Cut]).await;
    assert!(outcomes.iter().all(|outcome| outcome.done), "{outcomes:?}");
}

#[tokio::test]
async fn a_lockdown_that_fails_leaves_no_partner_without_being_asked() {
    let test = a_test_app().await;
    let cloud = Arc::clone(&test.cloud);
    let test = with(test, Arc::new(Entangled { inner: cloud, failing: Some(vm(1)) }));
    let outcomes = lock(&test, &[vm(1), vm(2)], &[ConcernKind::Cut]).await;
    assert!(outcomes[0].error.is_some());
    assert_eq!(outcomes[1].unmet.iter().map(|one| one.kind).collect::<Vec<_>>(), [ConcernKind::Shared]);
    assert!(!is_locked(&test, &vm(2)).await);
}

fn a_window(target: &TargetId) -> LayerWindow {
    let grant = a_grant().on(&target.to_string()).layers(Layers::Cloud).build();
    LayerWindow {
        target: target.clone(),
        grant: grant.id,
        port: grant.windows[0].port,
        source: grant.windows[0].source,
        not_after: grant.not_after,
    }
}

/// Replaces the cloud of the app under test.
fn with(mut test: TestApp, cloud: Arc<dyn Provider>) -> TestApp {
    let app = Arc::get_mut(&mut test.app).unwrap();
    app.cloud = CloudLayer::new(
        BTreeMap::from([(CloudKind::Aws, cloud)]),
        app.clock,
        Arc::clone(&app.wakeups),
        Arc::clone(&app.cluster.leases),
    );
    app.observer.cloud = Arc::clone(&app.cloud);
    test
}

/// A cloud in which two VMs share their rules, and locking the first may cut connections.
struct Entangled {
    inner: Arc<FakeCloud>,
    /// The target whose lockdown fails, though not its plan.
    failing: Option<TargetId>,
}

impl Entangled {
    fn asked(order: &LockdownOrder, mut report: LockdownReport) -> LockdownReport {
        let partner = if order.target == vm(1) { vm(2) } else { vm(1) };
        if order.target == vm(1) {
            report.concerns.push(FakeCloud::a_concern(ConcernKind::Cut));
        }
        if !order.together.contains_key(&partner) {
            report.concerns.push(FakeCloud::a_concern(ConcernKind::Shared));
        }
        report
    }
}

#[async_trait]
impl Provider for Entangled {
    async fn observe(&self, target: &TargetId) -> Result<Observation, CloudError> {
        self.inner.observe(target).await
    }

    async fn open(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<Reach, CloudError> {
        self.inner.open(target, windows).await
    }

    async fn close(&self, target: &TargetId, windows: &BTreeSet<LayerWindow>) -> Result<(), CloudError> {
        self.inner.close(target, windows).await
    }

    async fn repair(&self, target: &TargetId) -> Result<(), CloudError> {
        self.inner.repair(target).await
    }

    async fn sweep(&self) -> SweepReport {
        self.inner.sweep().await
    }

    async fn assess(&self, management: &BTreeSet<ProtectedPort>) -> AssessmentReport {
        self.inner.assess(management).await
    }

    async fn plan_lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        Ok(Self::asked(order, self.inner.plan_lockdown(order).await?))
    }

    async fn lockdown(&self, order: &LockdownOrder) -> Result<LockdownReport, CloudError> {
        if self.failing.as_ref() == Some(&order.target) {
            return Err(CloudError::unavailable("a test"));
        }
        let planned = self.plan_lockdown(order).await?;
        if order.consent.unmet(&planned.concerns).is_empty() {
            self.inner.lockdown(order).await?;
        }
        Ok(planned)
    }

    async fn plan_release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        self.inner.plan_release(target).await
    }

    async fn release(&self, target: &TargetId) -> Result<LockdownReport, CloudError> {
        self.inner.release(target).await
    }
}
