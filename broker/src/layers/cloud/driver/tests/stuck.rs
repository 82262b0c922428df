//! Trouble on a target must not keep a window open that must close, nor be recorded for ever.

use super::*;

#[tokio::test]
async fn i2_a_repair_that_is_refused_does_not_keep_a_window_open() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.drift(&world.target, "its group was taken off", true);
    world.sweep().await;
    world.want(&[]);
    world.cloud.refuse_repairs(CloudError::refused("five groups are attached already"));
    for _ in 0..3 {
        world.due();
        world.round().await;
    }
    assert!(world.open().is_empty());
}

#[tokio::test]
async fn i6_a_window_that_was_open_when_a_repair_failed_is_not_closed_before_it_is() {
    for error in [CloudError::refused("five groups are attached already"), CloudError::unavailable("cut")] {
        let world = DriverWorld::new();
        let grant = on_vm(&world, a_grant());
        world.want(&[&grant]);
        world.round().await;
        world.cloud.drift(&world.target, "its group was taken off", true);
        world.sweep().await;
        world.cloud.refuse_repairs(error.clone());
        world.due();
        world.round().await;
        world.want(&[]);
        assert_eq!(world.open(), [grant.id]);
        assert_ne!(world.observed(&grant), Observed::Absent, "{error}: it is open");
        assert!(world.round().await, "the close does not wait for the pause after the repair");
        assert_eq!((world.open(), world.observed(&grant)), (vec![], Observed::Absent), "{error}");
    }
}

#[tokio::test]
async fn i2_a_close_does_not_wait_for_the_pause_after_an_opening_that_failed() {
    let world = DriverWorld::new();
    let (one, other) = (on_vm(&world, a_grant()), on_vm(&world, a_grant().number(2)));
    world.want(&[&one]);
    world.round().await;
    world.want(&[&one, &other]);
    world.cloud.fail_next([Fault::throttled()]);
    world.round().await;
    assert!(!world.round().await, "the opening waits for its pause");
    world.want(&[&other]);
    assert!(world.round().await);
    assert!(!world.open().contains(&one.id));
}

#[tokio::test(start_paused = true)]
async fn i2_a_close_does_not_wait_for_an_opening_that_is_not_answered() {
    let world = DriverWorld::new();
    let (one, other) = (on_vm(&world, a_grant()), on_vm(&world, a_grant().number(2)));
    world.want(&[&one]);
    world.round().await;
    world.want(&[&one, &other]);
    world.cloud.hang_openings(true);
    let work = world.layer.take_work();
    let rounds = async {
        for (target, provider) in work {
            world.layer.drive(target, provider).await;
        }
    };
    let revoked = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.want(&[]);
        while world.open().contains(&one.id) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let both = async { tokio::join!(rounds, revoked) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("the close does not wait");
}

#[tokio::test(start_paused = true)]
async fn i2_a_close_is_confirmed_while_another_opening_is_not_answered() {
    let world = DriverWorld::new();
    let (one, other) = (on_vm(&world, a_grant()), on_vm(&world, a_grant().number(2)));
    world.want(&[&one]);
    world.round().await;
    world.want(&[&other]);
    world.cloud.hang_openings(true);
    let work = world.layer.take_work();
    let rounds = async {
        for (target, provider) in work {
            world.layer.drive(target, provider).await;
        }
    };
    let closed = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(world.open(), []);
        assert_eq!(world.observed(&one), Observed::Absent, "only the other may be on its way");
        assert_eq!(world.observed(&other), Observed::Unconfirmed);
    };
    tokio::select! {
        () = rounds => panic!("the opening has no answer"),
        () = closed => {}
    }
}

#[tokio::test(start_paused = true)]
async fn i2_a_close_does_not_wait_for_a_repair_that_is_not_answered() {
    let world = DriverWorld::new();
    let one = on_vm(&world, a_grant());
    world.want(&[&one]);
    world.round().await;
    world.cloud.drift(&world.target, "a test", true);
    world.cloud.hang_repairs(true);
    world.sweep().await;
    let work = world.layer.take_work();
    let rounds = async {
        for (target, provider) in work {
            world.layer.drive(target, provider).await;
        }
    };
    let revoked = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.want(&[]);
        while world.open().contains(&one.id) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        world.cloud.hang_repairs(false);
    };
    let both = async { tokio::join!(rounds, revoked) };
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("the close does not wait");
    world.round().await;
    assert_eq!(world.observed(&one), Observed::Absent);
}

#[tokio::test]
async fn i2_a_close_that_is_refused_does_not_keep_another_window_open() {
    let world = DriverWorld::new();
    let grants = [on_vm(&world, a_grant()), on_vm(&world, a_grant().number(2))];
    world.want(&[&grants[0], &grants[1]]);
    world.round().await;
    world.want(&[]);
    world.cloud.fail_next([Fault::refused("no permission for this rule")]);
    world.round().await;
    assert_eq!(world.open().len(), 1, "the other one was closed in the same round");
}

#[tokio::test]
async fn a_release_of_a_target_that_the_cloud_does_not_know_leaves_nothing_behind() {
    let world = DriverWorld::new();
    world.cloud.fail_next([Fault::refused("the account is not in the configuration")]);
    world.layer.release(&world.target).await.unwrap_err();
    assert!(world.layer.targets().is_empty());
    world.want(&[]);
    assert!(!world.round().await, "no round follows, and no alarm");
}

#[tokio::test]
async fn a_vm_that_is_gone_is_left_alone_and_is_no_alarm() {
    let (alarms, _guard) = capture_log(tracing::Level::ERROR);
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.terminate(&world.target);
    world.sweep().await;
    world.round().await;
    assert!(matches!(world.observed(&grant), Observed::Refused { .. }));
    while world.woken().await {}
    assert!(!world.layer.is_gone(&world.target), "a grant has a window on it");
    world.want(&[]);
    assert!(world.woken().await, "no round follows that could wake the reconciler");
    assert_eq!(world.observed(&grant), Observed::Absent);
    let calls = world.cloud.calls();
    for _ in 0..4 {
        world.due();
        world.round().await;
    }
    assert_eq!((world.cloud.calls(), alarms.lines()), (calls, 0));
    let report = world.layer.report(&world.target);
    assert!(report.detail.contains("does not exist"), "{report:?}");
    assert!(world.layer.is_gone(&world.target));
    assert_eq!(
        (world.layer.targets().len(), world.layer.existing_targets()),
        (1, vec![]),
        "no row of it is shown"
    );
    world.layer.let_go(&world.target);
    assert!(world.layer.targets().is_empty(), "nothing is kept of it (I10)");
}

#[tokio::test]
async fn i8_an_old_sighting_makes_the_driver_look_and_is_not_believed() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    let windows = world.cloud.windows(&world.target);
    world.want(&[]);
    world.round().await;
    world.recorded();
    // EC2 shows for a while what was closed: the sweep began after the close, and saw the window.
    let held = Some(postern_provider::Observation { windows, ..postern_provider::Observation::default() });
    let target = world.target.clone();
    world.layer.sighted(postern_provider::Sighting { target, held }, &world.layer.rounds());
    world.want(&[]);
    assert!(world.round().await, "it looks for itself");
    assert_eq!(world.recorded(), [""; 0], "no principal opened anything");
}

#[tokio::test]
async fn i6_a_sweep_that_sees_nothing_of_a_target_does_not_count_as_a_close() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.layer.want(&world.target, BTreeSet::new(), known_cloud(&world.target, [&grant]));
    // Another principal removed the tags by which a sweep finds Postern's rules.
    world.cloud.hide(&world.target);
    world.sweep().await;
    assert_ne!(world.observed(&grant), Observed::Absent);
    world.round().await;
    assert!(world.open().is_empty());
}

#[tokio::test]
async fn i6_a_target_that_a_sweep_cannot_judge_keeps_its_last_known_state() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    world.want(&[&grant]);
    world.round().await;
    world.cloud.drift(&world.target, "it is not shut", false);
    world.sweep().await;
    world.cloud.obscure(&world.target);
    world.want(&[]);
    world.round().await;
    world.sweep().await;
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::Failed, "it is still not shut");
    assert_eq!(world.recorded().last().map(String::as_str), Some("cloud.unread"));
}

#[tokio::test]
async fn after_a_lockdown_the_target_is_looked_at_though_nothing_is_to_be_open() {
    let world = DriverWorld::new();
    world.want(&[]);
    world.cloud.drift(&world.target, "it is not shut", false);
    world.sweep().await;
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::Failed);
    world.cloud.settle(&world.target);
    world.layer.release(&world.target).await.unwrap();
    assert!(world.round().await);
    assert_eq!(world.layer.report(&world.target).status, LayerStatus::InSync);
}

#[tokio::test]
async fn i6_an_alarm_counts_also_windows_of_unknown_grants() {
    let world = DriverWorld::new();
    let stray = on_vm(&world, a_grant());
    for window in desired_cloud(&world.target, [&stray], stray.requested_at) {
        world.cloud.tamper(window);
    }
    world.want(&[]);
    world.sweep().await;
    world.cloud.outage(Some(CloudError::unavailable("a test")));
    world.round().await;
    world.retry().await;
    world.retry().await;
    let records = world.layer.outbox.take();
    assert_eq!((records.len(), records[0].details["windows_to_close"].as_str()), (1, "1"));
}

#[tokio::test]
async fn a_lockdown_and_a_round_never_overlap_and_what_is_wanted_meanwhile_opens_afterwards() {
    let world = DriverWorld::new();
    let grant = on_vm(&world, a_grant());
    let begun = world.layer.begin_exclusive(&world.target);
    assert_eq!(begun, Some(true), "no round works on it");
    world.want(&[&grant]);
    assert!(!world.round().await, "it is being locked down");
    let order = postern_provider::LockdownOrder {
        target: world.target.clone(),
        ports: BTreeSet::new(),
        consent: postern_provider::Consent::all(),
        together: [].into(),
    };
    let mut second = std::pin::pin!(world.layer.lockdown(&order));
    let waits = tokio::time::timeout(Duration::from_millis(20), &mut second).await;
    assert!(waits.is_err(), "one at a time");
    world.layer.end_exclusive(&world.target, false);
    second.await.unwrap();
    assert!(world.round().await);
    assert_eq!(world.observed(&grant), Observed::Open);

    world.want(&[]);
    let work = world.layer.take_work();
    let mut third = std::pin::pin!(world.layer.lockdown(&order));
    let waits = tokio::time::timeout(Duration::from_millis(20), &mut third).await;
    assert!(waits.is_err(), "a round is under way");
    for (target, provider) in work {
        world.layer.drive(target, provider).await;
    }
    third.await.unwrap();
    assert!(world.open().is_empty());
}

#[tokio::test(start_paused = true)]
async fn i6_a_store_that_fails_does_not_stop_a_close_and_gets_its_record_later() {
    use postern_store::testing::memory::{Fault as StoreFault, Memory};

    use crate::signals::rounds::Task;
    use crate::testing::reporter;
    let world = DriverWorld::new();
    let stray = on_vm(&world, a_grant());
    for window in desired_cloud(&world.target, [&stray], stray.requested_at) {
        world.cloud.tamper(window);
    }
    let store = Memory::default();
    store.fail_next([StoreFault::Before; 20]);
    world.want(&[]);
    world.sweep().await;
    let lines = async || store.audit_lines(0, 10).await.unwrap().len();
    tokio::select! {
        _ = Arc::clone(&world.layer).keep_writing_records(store.store(), reporter(Task::AuditOutbox)) => panic!("it ended"),
        () = async {
            world.round().await;
            assert_eq!((world.open(), lines().await), (Vec::new(), 0));
            while lines().await == 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        } => {}
    }
    assert_eq!(lines().await, 1);
}
