//! What the cloud holds besides what it should: found by a sweep or a look, put right, and told.

use super::*;

#[tokio::test]
async fn i2_a_sweep_closes_what_the_store_knows_nothing_of_and_says_so() {
    let world = World::new();
    let stray = on_vm(&world, a_grant());
    for window in desired_cloud(&world.target, [&stray], stray.requested_at) {
        world.cloud.tamper(window);
    }
    world.sweep().await;
    assert!(world.woken().await, "the reconciler asks the store");
    assert!(!world.round().await, "nobody has said yet what the target must hold");
    assert_eq!(world.open(), [stray.id]);
    world.want(&[]);
    assert!(world.round().await);
    assert!(world.open().is_empty());
    assert_eq!(world.told(), ["cloud.unknown_window_closed"]);
}

#[tokio::test]
async fn i5_a_window_that_is_not_open_whole_is_opened_again_and_confirms_nothing_before() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    for window in desired_cloud(&world.target, [&grant], grant.requested_at) {
        world.cloud.break_off(&window);
    }
    world.sweep().await;
    world.cloud.fail_next([Fault::unavailable()]);
    world.round().await;
    assert_eq!(world.observed(&grant), Observed::Unconfirmed);
    world.retry().await;
    assert_eq!((world.observed(&grant), world.open()), (Observed::Open, vec![grant.id]));
}

#[tokio::test]
async fn i6_a_window_of_which_something_is_left_is_not_closed() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    for window in desired_cloud(&world.target, [&grant], grant.requested_at) {
        world.cloud.break_off(&window);
    }
    world.sweep().await;
    world.cloud.outage(Some(postern_provider::CloudError::unavailable("a test")));
    world.want(&[]);
    world.round().await;
    assert_eq!(world.observed(&grant), Observed::Unconfirmed);
    world.cloud.outage(None);
    world.retry().await;
    assert_eq!(world.observed(&grant), Observed::Absent);
}

#[tokio::test]
async fn the_ordinary_end_of_a_grant_is_nothing_to_tell() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.clouds.want(&world.target, BTreeSet::new(), known_cloud(&world.target, [&grant]));
    world.round().await;
    assert!(world.open().is_empty());
    assert_eq!(world.told(), [""; 0]);
}

#[tokio::test]
async fn a_window_that_somebody_closed_is_opened_again_and_told() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.wipe(&world.target);
    // What nothing of ours is left of is not sighted: it is looked at by itself.
    world.sweep().await;
    assert!(world.round().await);
    assert_eq!((world.open(), world.told()), (vec![grant.id], vec!["cloud.drift".to_owned()]));
}

#[tokio::test]
async fn a_window_that_somebody_changed_is_put_right_and_told() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    let [window] = &world.cloud.windows(&world.target).into_iter().collect::<Vec<_>>()[..] else { panic!() };
    world.cloud.wipe(&world.target);
    world.cloud.tamper(CloudWindow { source: "0.0.0.0/1".parse().unwrap(), ..window.clone() });
    world.sweep().await;
    world.round().await;
    assert_eq!(world.cloud.windows(&world.target), [window.clone()].into());
    assert_eq!(world.told(), ["cloud.drift", "cloud.drift"], "what is gone, and what was there instead");
}

#[tokio::test]
async fn what_can_be_repaired_is_and_what_lasts_is_told_once_and_shown() {
    let world = World::new();
    world.want(&[]);
    world.cloud.drift(&world.target, "its group was taken off", true);
    world.sweep().await;
    assert!(world.round().await);
    assert_eq!(world.told(), ["cloud.drift"]);
    assert_eq!(world.clouds.report(&world.target).status, LayerStatus::InSync);

    world.cloud.drift(&world.target, "it is not shut", false);
    for _ in 0..3 {
        world.sweep().await;
        assert!(!world.round().await, "it is not ours");
    }
    assert_eq!(world.told(), ["cloud.drift"]);
    let report = world.clouds.report(&world.target);
    assert_eq!((report.status, report.detail.as_str()), (LayerStatus::Failed, "it is not shut"));
}

#[tokio::test]
async fn i6_no_window_counts_as_closed_while_a_rule_that_is_no_window_is_there_and_its_removal_is_told_once()
{
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[]);
    world.sweep().await;
    assert_eq!(world.observed(&grant), Observed::Absent);
    world.cloud.stray(&world.target, "sgr-1", "rule sgr-1 lets tcp/22 in from anyone");
    world.sweep().await;
    assert_eq!(world.observed(&grant), Observed::Unconfirmed, "it may be what became of the window");
    world.cloud.refuse_repairs(Some(CloudError::unavailable("a test")));
    world.round().await;
    for _ in 0..3 {
        world.retry().await;
        assert_eq!(world.observed(&grant), Observed::Unconfirmed);
    }
    assert_eq!(world.told(), ["cloud.alarm"], "nothing was removed");
    world.cloud.refuse_repairs(None);
    world.retry().await;
    assert_eq!(world.observed(&grant), Observed::Absent);
    let told = world.clouds.journal.take();
    assert_eq!((told.len(), told[0].action.as_str()), (1, "cloud.foreign_rule_removed"));
    assert_eq!(told[0].details["what"], "rule sgr-1 lets tcp/22 in from anyone");
    for _ in 0..3 {
        world.sweep().await;
        assert!(!world.round().await);
    }
    assert!(world.told().is_empty());
}

#[tokio::test]
async fn i8_what_was_done_during_a_sweep_is_newer_than_what_it_saw() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    let before = world.clouds.turns();
    world.round().await;
    let held = Some(postern_provider::Observation::default());
    let target = world.target.clone();
    world.clouds.sighted(postern_provider::Sighting { target, held }, &before);
    assert_eq!((world.observed(&grant), world.told()), (Observed::Open, Vec::new()));
}

#[tokio::test]
async fn what_is_left_of_a_target_that_is_gone_is_taken_away() {
    let world = World::new();
    world.want(&[]);
    let target = world.target.clone();
    let held = None;
    world.cloud.drift(&target, "a group is left", true);
    world.clouds.sighted(postern_provider::Sighting { target, held }, &world.clouds.turns());
    assert!(world.round().await);
    assert!(world.cloud.observe(&world.target).await.unwrap().drift.is_empty());
}

#[tokio::test]
async fn a_place_that_cannot_be_swept_is_told_once_and_what_is_there_stays_as_known() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.outage(Some(CloudError::unavailable("a test")));
    let mut unread = BTreeSet::new();
    for _ in 0..2 {
        world.clouds.sweep(CloudKind::Aws, &mut unread).await;
    }
    assert_eq!((world.told(), world.observed(&grant)), (vec!["cloud.unread".to_owned()], Observed::Open));
}

#[tokio::test]
async fn i6_the_third_failure_in_a_row_is_told_with_what_is_stuck() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.clouds.want(&world.target, BTreeSet::new(), known_cloud(&world.target, [&grant]));
    world.cloud.outage(Some(CloudError::unavailable("a test")));
    world.round().await;
    world.retry().await;
    assert_eq!(world.told(), [""; 0]);
    world.retry().await;
    let told = world.clouds.journal.take();
    assert_eq!((told.len(), told[0].action.as_str()), (1, "cloud.alarm"));
    assert_eq!(told[0].details["windows_to_close"], "1");
}

#[tokio::test]
async fn a_lockdown_and_a_round_take_turns() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.cloud.unlock(&world.target);
    world.want(&[&grant]);
    world.round().await;
    assert!(matches!(world.observed(&grant), Observed::Refused { .. }), "it is not under lockdown");
    let work = world.clouds.take_work();
    assert!(work.is_empty(), "it waits before it tries again");
    let order = postern_provider::LockdownOrder {
        target: world.target.clone(),
        ports: BTreeSet::new(),
        consent: postern_provider::Consent::all(),
        together: BTreeSet::new(),
    };
    world.clouds.lockdown(&order, false).await.unwrap();
    assert!(world.round().await, "at once after the lockdown");
    assert_eq!(world.observed(&grant), Observed::Open);
}

#[tokio::test]
async fn i8_a_target_that_another_broker_had_is_looked_at_before_anything_is_believed() {
    let world = World::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    // The other broker closed it, and opened another.
    let other = on_vm(&world, a_grant());
    let windows = |grant: &Grant| desired_cloud(&world.target, [grant], grant.requested_at);
    world.cloud.close(&world.target, &windows(&grant)).await.unwrap();
    windows(&other).into_iter().for_each(|window| world.cloud.tamper(window));
    assert!(!world.round().await, "as far as it knows all is well");
    world.clouds.took_over(&world.target);
    assert_eq!(world.observed(&grant), Observed::Unconfirmed);
    world.want(&[&other]);
    assert!(world.round().await);
    assert_eq!((world.observed(&other), world.open()), (Observed::Open, vec![other.id]));
    assert!(world.told().is_empty(), "nobody else did anything to it");
}
