//! A store and a file that fail: what is sealed, logged and recorded all the same.

use super::*;
use crate::testing::captured_log::capture_log;

#[tokio::test]
async fn i9_no_record_leaves_the_store_for_a_checkpoint_that_the_log_does_not_have() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    world.store.fail_next([Fault::Full]);
    broker.round().await;
    assert_eq!((broker.newest().checkpoint.seq, broker.keeper.checkpoints.sealable()), (5, 0));
    world.add(3).await;
    broker.round().await;
    assert_eq!((broker.newest().checkpoint.seq, broker.keeper.checkpoints.sealable()), (8, 8));
    // The broker finds that out again after a restart.
    let mut broker = world.broker_in(broker.dir);
    broker.round().await;
    assert_eq!(broker.keeper.checkpoints.sealable(), 8);
    world.cut(8).await;
    let mut broker = world.broker_in(broker.dir);
    broker.round().await;
    assert_eq!((broker.alarm(), broker.keeper.checkpoints.sealable()), (None, 0));
    broker.keeper.checkpoints.report_broken(None, Broken { line: 3, problem: "was changed".into() });
    assert_eq!(broker.keeper.checkpoints.sealable(), 0);
}

#[tokio::test]
async fn i9_an_alarm_that_the_store_does_not_take_is_logged_once() {
    let (logged, _log) = capture_log(tracing::Level::ERROR);
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    world.cut(3).await;
    world.store.fail_next([Fault::Before; 4]);
    for _ in 0..4 {
        broker.keeper.round(&mut broker.state).await.unwrap_err();
    }
    broker.round().await;
    assert_eq!(logged.text().matches("audit.went_back").count(), 1, "{}", logged.text());
    assert_eq!(world.audited("audit.went_back").await, 1);
}

#[tokio::test]
async fn i9_an_alarm_stands_and_is_audited_although_its_file_cannot_be_written() {
    let world = World::with_records(5).await;
    let mut broker = world.broker();
    broker.round().await;
    let file = broker.dir.path().join("audit-checkpoint");
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir_all(file.join("in-the-way")).unwrap();
    world.cut(3).await;
    for _ in 0..3 {
        let error = broker.keeper.round(&mut broker.state).await.unwrap_err();
        assert!(format!("{error:#}").contains("cannot write"), "{error:#}");
        let checkpoints = &broker.keeper.checkpoints;
        assert_eq!((broker.alarm(), checkpoints.sealable()), (Some(AlarmKind::WentBack), 0));
    }
    assert_eq!(world.audited("audit.went_back").await, 1);
    std::fs::remove_dir_all(&file).unwrap();
    broker.round().await;
    let mut broker = world.broker_in(broker.dir);
    broker.round().await;
    assert_eq!((broker.alarm(), world.audited("audit.went_back").await), (Some(AlarmKind::WentBack), 1));
}
