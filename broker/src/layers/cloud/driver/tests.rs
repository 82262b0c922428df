//! The driver on a fake cloud, led one round at a time.

use std::collections::{BTreeMap, BTreeSet};

use postern_core::plan::{LayerWindow, Observed, desired_cloud, known_cloud};
use postern_core::target::CloudKind;
use postern_core::{Grant, GrantId, Layers};
use postern_provider::fake::{FakeCloud, Fault};

use super::*;
use crate::clock::Clock;
use crate::layers::report::LayerStatus;
use crate::testing::builders::{GrantBuilder, a_grant};
use crate::testing::captured_log::capture_log;

const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

struct DriverWorld {
    cloud: Arc<FakeCloud>,
    layer: Arc<CloudLayer>,
    target: TargetId,
}

impl DriverWorld {
    fn new() -> Self {
        let cloud = Arc::new(FakeCloud::default());
        Self { layer: driving(Arc::clone(&cloud) as _), cloud, target: VM.parse().unwrap() }
    }

    /// Has the target hold the windows of these grants.
    fn want(&self, grants: &[&Grant]) {
        let now = self.layer.clock.now();
        let grants = || grants.iter().copied();
        let desired = desired_cloud(&self.target, grants(), now);
        self.layer.want(&self.target, desired, known_cloud(&self.target, grants()));
    }

    /// Runs one round on every target that is ready; returns whether any was.
    async fn round(&self) -> bool {
        let work = self.layer.take_work();
        let worked = !work.is_empty();
        for (target, provider) in work {
            self.layer.drive(target, provider).await;
        }
        worked
    }

    /// A sweep of the cloud.
    async fn sweep(&self) {
        self.layer.sweep(CloudKind::Aws, &mut BTreeSet::new()).await;
    }

    /// The actions that were recorded for the audit log since the last call.
    fn recorded(&self) -> Vec<String> {
        self.layer.outbox.take().into_iter().map(|event| event.action).collect()
    }

    /// Makes it time for a retry.
    fn due(&self) {
        if let Some(TargetState { failure: Some(failure), .. }) = self.layer.lock().get_mut(&self.target) {
            failure.retry_at = jiff::Timestamp::UNIX_EPOCH;
        }
    }

    /// Runs one round, whether or not it is time for a retry.
    async fn retry(&self) {
        self.due();
        assert!(self.round().await, "there is something left to do");
    }

    fn observed(&self, grant: &Grant) -> Observed {
        self.layer.observe(grant, &grant.windows[0])
    }

    fn open(&self) -> Vec<GrantId> {
        self.cloud.windows(&self.target).into_iter().map(|window| window.grant).collect()
    }

    async fn woken(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(50), self.layer.wakeups.take()).await.is_ok()
    }
}

mod drift;
mod shared;
mod stuck;

fn driving(provider: Arc<dyn Provider>) -> Arc<CloudLayer> {
    let clock = Clock::start(jiff::Timestamp::UNIX_EPOCH);
    CloudLayer::new(
        BTreeMap::from([(CloudKind::Aws, provider)]),
        clock,
        Arc::default(),
        Arc::clone(&crate::cluster::Cluster::alone().leases),
    )
}

fn on_vm(world: &DriverWorld, grant: GrantBuilder) -> Grant {
    grant.on(VM).layers(Layers::Cloud).asked_at(world.layer.clock.now()).build()
}

#[tokio::test]
async fn i5_a_window_is_open_once_the_cloud_said_so_and_absent_once_it_is_wanted_no_more() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    assert_eq!(world.observed(&grant), Observed::Unconfirmed, "no round has looked");
    world.want(&[&grant]);
    assert!(world.round().await);
    assert_eq!((world.observed(&grant), world.open()), (Observed::Open, vec![grant.id]));
    assert!(!world.round().await, "there is nothing left to do");
    world.want(&[]);
    assert_eq!(world.observed(&grant), Observed::Open, "until the cloud said otherwise");
    assert!(world.round().await);
    assert_eq!((world.observed(&grant), world.open()), (Observed::Absent, Vec::new()));
}

#[tokio::test]
async fn i2_an_end_needs_no_word_from_the_store() {
    let world = DriverWorld::new();
    let (short, long) = (on_vm(&world, a_grant()), on_vm(&world, a_grant().number(2)));
    let ends = Duration::from_secs(1);
    // The store says this once, and nothing afterwards.
    let want = |grants: &[&Grant]| {
        let grants = || grants.iter().copied();
        let now = world.layer.clock.now();
        let mut known = known_cloud(&world.target, grants());
        known.retain(|window| window.grant == long.id);
        known.extend(desired_cloud(&world.target, grants(), now).into_iter().filter_map(|window| {
            (window.grant != long.id).then(|| LayerWindow { not_after: now + ends, ..window })
        }));
        world.layer.want(&world.target, known.clone(), known);
    };
    want(&[&short, &long]);
    assert!(world.round().await);
    assert_eq!((world.open().len(), world.round().await), (2, false), "nothing ends before its end");
    tokio::time::sleep(ends).await;
    assert!(world.round().await);
    assert_eq!(world.open(), [long.id]);
    assert_eq!(world.recorded(), [] as [&str; 0], "no stray window was closed");

    // And one whose end comes before the cloud can be reached is not opened any more.
    let late = on_vm(&world, a_grant().number(3));
    world.cloud.fail_next([Fault::unavailable()]);
    want(&[&long, &late]);
    assert!(world.round().await);
    tokio::time::sleep(ends).await;
    world.due();
    world.round().await;
    assert_eq!(world.open(), [long.id]);
}

#[tokio::test]
async fn i2_what_a_sweep_finds_past_its_end_is_closed_though_the_store_cannot_be_asked() {
    let world = DriverWorld::new();
    let (ended, lasting) = (on_vm(&world, a_grant()), on_vm(&world, a_grant().number(2)));
    let now = world.layer.clock.now();
    for mut window in desired_cloud(&world.target, [&ended, &lasting], now) {
        if window.grant == ended.id {
            window.not_after = now;
        }
        world.cloud.tamper(window);
    }
    world.cloud.drift(&world.target, "its group was taken off", true);
    world.sweep().await;
    assert!(world.round().await);
    assert_eq!(world.open(), [lasting.id], "the other may be of an open grant");
    assert!(!world.round().await, "the rest waits for the store's word");
    assert_eq!(world.cloud.observe(&world.target).await.unwrap().drift.len(), 1);
}

#[tokio::test]
async fn i6_however_long_an_outage_lasts_the_next_try_is_half_a_minute_away_at_most() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.outage(Some(CloudError::unavailable("a test")));
    world.want(&[]);
    world.round().await;
    for _ in 0..40 {
        world.retry().await;
        let states = world.layer.lock();
        let wait =
            states[&world.target].failure.as_ref().unwrap().retry_at.duration_since(world.layer.clock.now());
        assert!(wait <= jiff::SignedDuration::from_secs(30), "{wait}");
    }
}

#[tokio::test(start_paused = true)]
async fn i6_what_is_wanted_or_on_its_way_is_not_absent() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[]);
    world.sweep().await;
    assert_eq!(world.observed(&grant), Observed::Absent);
    world.want(&[&grant]);
    assert_eq!(world.observed(&grant), Observed::Unconfirmed, "the next round opens it");
    world.cloud.hang_openings(true);
    let work = world.layer.take_work();
    let rounds = async {
        for (target, provider) in work {
            world.layer.drive(target, provider).await;
        }
    };
    let unwanted = async {
        tokio::task::yield_now().await;
        world.want(&[]);
        assert_eq!(world.observed(&grant), Observed::Unconfirmed, "the call is on its way");
        world.cloud.hang_openings(false);
    };
    tokio::join!(rounds, unwanted);
    assert_eq!(world.observed(&grant), Observed::Absent);
}

#[tokio::test]
async fn a_window_that_is_wanted_no_more_before_a_round_wakes_its_target() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[]);
    world.sweep().await;
    world.want(&[&grant]);
    world.want(&[]);
    assert!(world.woken().await, "no round follows that could");
    world.want(&[]);
    assert!(!world.woken().await, "nothing changed");
}

#[tokio::test]
async fn i6_a_close_is_tried_for_ever_and_alarms_at_the_third_failure() {
    let (alarms, _guard) = capture_log(tracing::Level::ERROR);
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.outage(Some(CloudError::Unavailable { reason: "a test".into() }));
    world.want(&[]);
    world.round().await;
    for failures in 1..12 {
        assert_eq!(world.observed(&grant), Observed::Unconfirmed, "after {failures} failures");
        assert_eq!(alarms.lines(), usize::from(failures >= 3), "after {failures} failures");
        assert!(!world.round().await, "not before its time");
        world.retry().await;
    }
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::Unreachable);
    world.cloud.outage(None);
    world.retry().await;
    assert_eq!((world.observed(&grant), world.open()), (Observed::Absent, Vec::new()));
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::InSync);

    // Another trouble is counted from the start.
    world.want(&[&grant]);
    world.cloud.fail_next([Fault::throttled()]);
    world.round().await;
    world.retry().await;
    assert_eq!(world.observed(&grant), Observed::Open);
    assert_eq!(alarms.lines(), 1);
}

#[tokio::test]
async fn i6_only_the_typed_not_found_counts_as_closed() {
    for (error, expected) in [
        (CloudError::Unavailable { reason: "not found".into() }, Observed::Unconfirmed),
        (CloudError::Refused { reason: "NotFound".into() }, Observed::Refused { reason: "NotFound".into() }),
        (CloudError::NotFound { target: VM.parse().unwrap() }, Observed::Absent),
    ] {
        let world = DriverWorld::new();
        let grant = on_vm(&world, a_grant());
        world.want(&[&grant]);
        world.round().await;
        world.cloud.outage(Some(error));
        world.want(&[]);
        world.round().await;
        assert_eq!(world.observed(&grant), expected);
    }
}

#[tokio::test]
async fn i5_a_vm_that_is_gone_refuses_to_open() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.cloud.terminate(&world.target);
    world.want(&[&grant]);
    world.round().await;
    let Observed::Refused { reason } = world.observed(&grant) else { panic!("{:?}", world.observed(&grant)) };
    assert!(reason.contains("does not exist"), "{reason}");
}

#[tokio::test]
async fn i8_a_lost_answer_is_found_out_by_looking() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[]);
    world.sweep().await;
    world.want(&[&grant]);
    world.cloud.fail_next([Fault::After]);
    world.round().await;
    assert_eq!(world.observed(&grant), Observed::Unconfirmed, "it may be open");
    assert_eq!(world.open(), [grant.id]);
    let calls = world.cloud.calls();
    world.retry().await;
    assert_eq!((world.observed(&grant), world.cloud.calls()), (Observed::Open, calls + 1));
}

#[tokio::test]
async fn i2_the_first_look_closes_stray_windows_before_it_opens() {
    let world = DriverWorld::new();
    let (stray, wanted) = (on_vm(&world, a_grant()), on_vm(&world, a_grant().number(2)));
    for window in desired_cloud(&world.target, [&stray], stray.requested_at) {
        world.cloud.tamper(window);
    }
    // The look and the close succeed, and the opening does not.
    world.want(&[&wanted]);
    world.cloud.fail_next([Fault::Before(CloudError::Unavailable { reason: "a test".into() })]);
    world.round().await;
    assert_eq!(world.open(), [stray.id], "the look failed");
    world.retry().await;
    assert_eq!(world.open(), [wanted.id]);
    assert_eq!(world.cloud.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn i6_a_call_that_is_never_answered_has_failed() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    let DriverWorld { cloud, layer, target } = world;
    cloud.fall_silent();
    for (target, provider) in layer.take_work() {
        tokio::time::timeout(Duration::from_secs(3600), layer.drive(target, provider)).await.unwrap();
    }
    let report = layer.report(&target);
    assert_eq!(report.status, LayerStatus::Unreachable);
    assert!(report.detail.contains("no answer"), "{}", report.detail);
}
