//! Drift: windows and rules that the cloud must not hold are found by a sweep or a look, repaired, and recorded.

use super::*;

#[tokio::test]
async fn i2_a_sweep_closes_windows_that_the_store_does_not_know_and_records_it() {
    let world = DriverWorld::new();
    let stray = on_vm(&world, a_grant());
    for window in desired_cloud(&world.target, [&stray], stray.requested_at) {
        world.cloud.tamper(window);
    }
    world.sweep().await;
    assert!(world.woken().await, "the reconciler asks the store");
    assert!(!world.round().await, "the reconciler has not said yet what the target must hold");
    assert_eq!(world.open(), [stray.id]);
    world.want(&[]);
    assert!(world.round().await);
    assert!(world.open().is_empty());
    assert_eq!(world.recorded(), ["cloud.unknown_window_closed"]);
}

#[tokio::test]
async fn i5_a_window_that_is_not_open_whole_is_opened_again_and_confirms_nothing_before() {
    let world = DriverWorld::new();
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
    let world = DriverWorld::new();
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
async fn the_ordinary_end_of_a_grant_is_not_recorded() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.layer.want(&world.target, BTreeSet::new(), known_cloud(&world.target, [&grant]));
    world.round().await;
    assert!(world.open().is_empty());
    assert_eq!(world.recorded(), [""; 0]);
}

#[tokio::test]
async fn a_window_that_another_principal_closed_is_opened_again_and_recorded() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.wipe(&world.target);
    // A sweep does not see a target on which nothing of Postern's is left: the target is looked at by itself.
    world.sweep().await;
    assert!(world.round().await);
    assert_eq!((world.open(), world.recorded()), (vec![grant.id], vec!["cloud.drift".to_owned()]));
}

#[tokio::test]
async fn a_window_that_another_principal_changed_is_repaired_and_recorded() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    let [window] = &world.cloud.windows(&world.target).into_iter().collect::<Vec<_>>()[..] else { panic!() };
    world.cloud.wipe(&world.target);
    world.cloud.tamper(LayerWindow { source: "0.0.0.0/1".parse().unwrap(), ..window.clone() });
    world.sweep().await;
    world.round().await;
    assert_eq!(world.cloud.windows(&world.target), [window.clone()].into());
    assert_eq!(world.recorded(), ["cloud.drift", "cloud.drift"], "what is gone, and what was there instead");
}

#[tokio::test]
async fn a_repair_that_is_refused_keeps_no_close_from_being_confirmed() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.drift(&world.target, "its rule cannot be moved", true);
    world.cloud.refuse_repairs(postern_provider::CloudError::refused("a policy forbids it"));
    world.sweep().await;
    world.round().await;
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::Failed);
    world.want(&[]);
    world.retry().await;
    assert_eq!((world.observed(&grant), world.open()), (Observed::Absent, vec![]));
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::Failed, "the repair is still due");
}

#[tokio::test]
async fn what_can_be_repaired_is_and_what_lasts_is_recorded_once_and_shown() {
    let world = DriverWorld::new();
    world.want(&[]);
    world.cloud.drift(&world.target, "its group was taken off", true);
    world.sweep().await;
    assert!(world.round().await);
    assert_eq!(world.recorded(), ["cloud.drift"]);
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::InSync);

    world.cloud.drift(&world.target, "it is not shut", false);
    for _ in 0..3 {
        world.sweep().await;
        assert!(!world.round().await, "it is not the broker's to repair");
    }
    assert_eq!(world.recorded(), ["cloud.drift"]);
    let report = world.layer.report(&world.target);
    assert_eq!((report.status, report.detail.as_str()), (LayerStatus::Failed, "it is not shut"));
}

#[tokio::test]
async fn i6_no_window_counts_as_closed_while_a_rule_that_is_no_window_is_there_and_its_removal_is_recorded_once()
 {
    let world = DriverWorld::new();
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
    assert_eq!(world.recorded(), ["cloud.alarm"], "nothing was removed");
    world.cloud.refuse_repairs(None);
    world.retry().await;
    assert_eq!(world.observed(&grant), Observed::Absent);
    let records = world.layer.outbox.take();
    assert_eq!((records.len(), records[0].action.as_str()), (1, "cloud.foreign_rule_removed"));
    assert_eq!(records[0].details["what"], "rule sgr-1 lets tcp/22 in from anyone");
    for _ in 0..3 {
        world.sweep().await;
        assert!(!world.round().await);
    }
    assert!(world.recorded().is_empty());
}

#[tokio::test]
async fn i8_what_was_done_during_a_sweep_is_newer_than_what_it_saw() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    let before = world.layer.rounds();
    world.round().await;
    let held = Some(postern_provider::Observation::default());
    let target = world.target.clone();
    world.layer.sighted(postern_provider::Sighting { target, held }, &before);
    assert_eq!((world.observed(&grant), world.recorded()), (Observed::Open, Vec::new()));
}

#[tokio::test]
async fn what_is_left_of_a_target_that_is_gone_is_taken_away() {
    let world = DriverWorld::new();
    world.want(&[]);
    let target = world.target.clone();
    let held = None;
    world.cloud.drift(&target, "a group is left", true);
    world.layer.sighted(postern_provider::Sighting { target, held }, &world.layer.rounds());
    assert!(world.round().await);
    assert!(world.cloud.observe(&world.target).await.unwrap().drift.is_empty());
}

#[tokio::test]
async fn a_region_that_cannot_be_swept_is_recorded_once_and_its_state_is_kept() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.outage(Some(CloudError::unavailable("a test")));
    let mut unread = BTreeSet::new();
    for _ in 0..2 {
        world.layer.sweep(CloudKind::Aws, &mut unread).await;
    }
    assert_eq!((world.recorded(), world.observed(&grant)), (vec!["cloud.unread".to_owned()], Observed::Open));
}

#[tokio::test]
async fn i6_the_third_failure_in_a_row_is_recorded_with_the_stuck_windows() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.layer.want(&world.target, BTreeSet::new(), known_cloud(&world.target, [&grant]));
    world.cloud.outage(Some(CloudError::unavailable("a test")));
    world.round().await;
    world.retry().await;
    assert_eq!(world.recorded(), [""; 0]);
    world.retry().await;
    let records = world.layer.outbox.take();
    assert_eq!((records.len(), records[0].action.as_str()), (1, "cloud.alarm"));
    assert_eq!(records[0].details["windows_to_close"], "1");
}

#[tokio::test]
async fn ports_that_policies_and_the_lockdown_do_not_have_alike_are_reported_with_the_remedy() {
    let world = DriverWorld::new();
    let port = |text: &str| text.parse::<postern_core::ProtectedPort>().unwrap();
    world.cloud.shut(&world.target, [port("tcp/22"), port("tcp/80")].into());
    world.want(&[&on_vm(&world, a_grant())]);
    world.round().await;
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::InSync, "nothing is known of policies");
    for (protected, status, words) in [
        (
            vec!["tcp/22", "tcp/80", "tcp/3389"],
            LayerStatus::Failed,
            "tcp/3389, which the lockdown does not shut",
        ),
        (
            vec!["tcp/22"],
            LayerStatus::InSync,
            "tcp/80, which no policy protects in the cloud any more: run `postern lockdown aws:",
        ),
        (
            vec![],
            LayerStatus::InSync,
            "tcp/22, tcp/80, which no policy protects in the cloud any more: put it under a policy",
        ),
    ] {
        world.layer.protect(&world.target, protected.into_iter().map(port).collect());
        let report = world.layer.report(&world.target);
        assert!(report.status == status && report.detail.contains(words), "{report:?}");
    }
    world.layer.protect(&world.target, [port("tcp/22"), port("tcp/80")].into());
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::InSync);
    world.cloud.shut(&world.target, [].into());
    world.sweep().await;
    let report = world.layer.report(&world.target);
    assert!(
        report.status == LayerStatus::Failed
            && report.detail.contains("it is not under lockdown: run `postern lockdown aws:"),
        "{report:?}"
    );
}

#[tokio::test]
async fn a_lockdown_and_a_round_take_turns() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.cloud.unlock(&world.target);
    world.want(&[&grant]);
    world.round().await;
    assert!(matches!(world.observed(&grant), Observed::Refused { .. }), "it is not under lockdown");
    let work = world.layer.take_work();
    assert!(work.is_empty(), "it waits before it tries again");
    let order = postern_provider::LockdownOrder {
        target: world.target.clone(),
        ports: BTreeSet::new(),
        consent: postern_provider::Consent::all(),
        together: [].into(),
    };
    world.layer.lockdown(&order).await.unwrap();
    assert!(world.round().await, "at once after the lockdown");
    assert_eq!(world.observed(&grant), Observed::Open);
}

#[tokio::test]
async fn i8_a_target_that_another_broker_had_is_looked_at_before_anything_is_believed() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    // The other broker closed it, and opened another.
    let other = on_vm(&world, a_grant());
    let windows = |grant: &Grant| desired_cloud(&world.target, [grant], grant.requested_at);
    world.cloud.close(&world.target, &windows(&grant)).await.unwrap();
    windows(&other).into_iter().for_each(|window| world.cloud.tamper(window));
    assert!(!world.round().await, "as far as it knows all is well");
    world.layer.took_over(&world.target);
    assert_eq!(world.observed(&grant), Observed::Unconfirmed);
    world.want(&[&other]);
    assert!(world.round().await);
    assert_eq!((world.observed(&other), world.open()), (Observed::Open, vec![other.id]));
    assert!(world.recorded().is_empty(), "no other principal did anything to it");
}
