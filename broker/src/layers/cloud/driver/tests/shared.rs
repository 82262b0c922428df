//! The driver of one of several brokers: its work with a lease, and its work without one.

use postern_store::coordination::Claim;
use postern_store::testing::fake_peer::FakePeer;

use super::*;
use crate::clock::boottime;
use crate::cluster::Cluster;

/// A driver beside another broker, with the lease of the target.
async fn beside_another() -> (DriverWorld, Arc<FakePeer>) {
    let (cloud, another) = (Arc::new(FakeCloud::default()), Arc::new(FakePeer::default()));
    let cluster = Cluster::of(Arc::clone(&another) as _);
    cluster.leases.believe_from(boottime());
    let clock = Clock::start(jiff::Timestamp::UNIX_EPOCH);
    let providers = BTreeMap::from([(CloudKind::Aws, Arc::clone(&cloud) as Arc<dyn Provider>)]);
    let layer = CloudLayer::new(providers, clock, Arc::default(), Arc::clone(&cluster.leases));
    let world = DriverWorld { cloud, layer, target: VM.parse().unwrap() };
    hold(&world, Claim::Free).await;
    (world, another)
}

async fn hold(world: &DriverWorld, claim: Claim) -> bool {
    world.layer.leases.hold(&world.target, claim).await.unwrap().is_some()
}

fn lose(world: &DriverWorld) {
    world.layer.leases.found_lost(&world.target);
}

#[tokio::test]
async fn i8_without_the_lease_nothing_is_opened() {
    let (world, _) = beside_another().await;
    let grant = on_vm(&world, a_grant());
    lose(&world);
    world.want(&[&grant]);
    assert!(!world.round().await);
    assert!(world.open().is_empty());
    assert!(hold(&world, Claim::Free).await);
    assert!(world.round().await);
    assert_eq!(world.open(), [grant.id]);
}

#[tokio::test]
async fn i2_without_the_lease_what_has_ended_is_closed_all_the_same_and_nothing_else() {
    let (world, _) = beside_another().await;
    let (short, long) = (on_vm(&world, a_grant()), on_vm(&world, a_grant().number(2)));
    let ends = Duration::from_secs(1);
    let at = world.layer.clock.now() + ends;
    let mut windows = desired_cloud(&world.target, [&long], long.requested_at);
    windows.extend(
        desired_cloud(&world.target, [&short], short.requested_at)
            .into_iter()
            .map(|window| LayerWindow { not_after: at, ..window }),
    );
    world.layer.want(&world.target, windows.clone(), windows);
    assert!(world.round().await);
    assert_eq!(world.open().len(), 2);
    // Without the store: perhaps another broker works on the target, perhaps none does.
    lose(&world);
    world.want(&[]);
    assert!(!world.round().await, "a revocation is the other broker's to carry out");
    tokio::time::sleep(ends).await;
    assert!(world.round().await);
    assert_eq!(world.open(), [long.id]);
}

#[tokio::test]
async fn i5_a_window_of_another_broker_is_stray_only_once_the_store_was_read_again() {
    let (world, _) = beside_another().await;
    let newer = on_vm(&world, a_grant().number(2));
    world.want(&[]);
    for window in desired_cloud(&world.target, [&newer], newer.requested_at) {
        world.cloud.tamper(window);
    }
    // The store was read before the window was asked for, and the cloud is looked at after.
    world.layer.look_again(&world.target);
    assert!(world.round().await);
    assert_eq!(world.open(), [newer.id]);
    assert!(world.woken().await, "the store is read again");
    assert!(!world.round().await, "and until it was there is nothing to do");
    world.want(&[&newer]);
    world.round().await;
    assert_eq!((world.open(), world.observed(&newer)), (vec![newer.id], Observed::Open));
    // And what the store does not know then either is closed.
    world.want(&[]);
    world.layer.look_again(&world.target);
    world.round().await;
    world.want(&[]);
    world.round().await;
    assert!(world.open().is_empty());
}

#[tokio::test]
async fn i8_a_target_let_go_of_during_a_round_is_looked_at_by_the_other_broker() {
    let (world, another) = beside_another().await;
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    let work = world.layer.take_work();
    another.takes(&world.target);
    lose(&world);
    world.layer.let_go(&world.target);
    for (target, provider) in work {
        world.layer.drive(target, provider).await;
    }
    assert!(world.open().is_empty(), "nothing begins once the lease is lost");
    assert_eq!(another.asked_to_look(), std::slice::from_ref(&world.target));
    assert!(world.layer.targets().is_empty());
}

#[tokio::test]
async fn i6_after_a_broker_that_is_gone_nothing_counts_as_closed_before_the_second_look() {
    let (world, another) = beside_another().await;
    let grant = on_vm(&world, a_grant());
    lose(&world);
    another.takes(&world.target);
    assert!(!hold(&world, Claim::Free).await);
    another.goes();
    assert!(hold(&world, Claim::Free).await);
    world.layer.took_over(&world.target);
    world.want(&[]);
    assert!(world.round().await);
    assert_eq!(world.observed(&grant), Observed::Unconfirmed, "a call of the other may be on its way");
    // It lands.
    for window in desired_cloud(&world.target, [&grant], grant.requested_at) {
        world.cloud.tamper(window);
    }
    assert!(!world.round().await, "no broker knows of it yet");
    world.layer.with(&world.target, |state| state.look_for_late_calls(jiff::Timestamp::MAX));
    assert!(world.round().await);
    world.want(&[]);
    world.round().await;
    assert_eq!((world.open(), world.observed(&grant)), (vec![], Observed::Absent));
}

#[tokio::test]
async fn a_sweep_leaves_alone_what_another_broker_works_on() {
    let (world, another) = beside_another().await;
    let stray = on_vm(&world, a_grant());
    for window in desired_cloud(&world.target, [&stray], stray.requested_at) {
        world.cloud.tamper(window);
    }
    world.cloud.drift(&world.target, "its group was taken off", true);
    lose(&world);
    another.takes(&world.target);
    world.sweep().await;
    assert_eq!((world.recorded(), world.layer.targets()), (vec![], vec![]));
    another.goes();
    world.sweep().await;
    assert_eq!(world.recorded(), ["cloud.drift"]);
}
