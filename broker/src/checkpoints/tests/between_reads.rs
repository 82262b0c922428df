//! Records that another broker seals between two reads, and what an alarm leaves unread.

use super::*;

#[tokio::test]
async fn i9_records_that_another_broker_seals_between_two_reads_raise_nothing() {
    for (reads, to) in [(0, 5), (1, 5), (2, 5), (2, 8), (3, 10), (4, 12)] {
        let world = World::with_records(5).await;
        let (mut late, mut other) = (world.broker(), world.broker());
        late.round().await;
        world.add(10).await;
        other.round().await;
        let [first, second, third] =
            [world.head_at(to.max(7)).await, world.head_at(13).await, world.head_at(14).await];
        world.seal(7).await;
        world.store.cut_after_reads(reads, first);
        world.store.cut_after_reads(0, second);
        for _ in 0..4 {
            late.round().await;
        }
        assert_eq!(late.alarm(), None, "{reads}");
        assert_eq!(late.newest(), other.newest(), "{reads}");
        // A broker without a checkpoint verifies from the beginning.
        let mut fresh = world.broker();
        world.store.cut_after_reads(reads, third);
        for _ in 0..3 {
            fresh.round().await;
        }
        assert_eq!((fresh.alarm(), fresh.newest()), (None, other.newest()), "{reads}");
    }
}

#[tokio::test]
async fn i9_records_that_leave_in_each_round_hide_no_broken_log_for_long() {
    let world = World::with_records(40).await;
    let mut lines = world.lines().await;
    lines[35] = lines[35].replace("alice", "mallory");
    world.store.replace_audit(lines);
    let mut broker = world.broker();
    let mut rounds = 0;
    while broker.alarm().is_none() {
        rounds += 1;
        assert!(rounds < 20, "the alarm waits for a quiet log");
        // After the reads of the beginning.
        world.store.cut_after_reads(3, world.head_at(rounds).await);
        broker.round().await;
    }
    assert_eq!(broker.alarm(), Some(AlarmKind::Broken));
}

#[tokio::test]
async fn i9_a_verification_between_whose_reads_records_leave_finds_nothing_broken() {
    for gap in 1..6 {
        let world = World::with_records(12).await;
        let mut broker = world.broker();
        broker.round().await;
        let heads = [world.head_at(3).await, world.head_at(5).await, world.head_at(7).await];
        for (reads, head) in [1, gap, 1].into_iter().zip(heads) {
            world.store.cut_after_reads(reads, head);
        }
        let (store, trust) = (world.store.store(), world.authority.roots().into());
        let audited = AuditedStore { store: &store, checkpoints: &broker.keeper.checkpoints, trust };
        let verification = Verifications::default().verify(&audited, true).await.unwrap();
        assert_eq!((verification.broken, verification.head.seq), (None, 13), "{gap}");
        broker.round().await;
        assert_eq!(broker.alarm(), None, "{gap}");
    }
}

#[tokio::test]
async fn i9_during_an_alarm_only_a_full_verification_reads_the_log() {
    let world = World::with_records(50).await;
    let mut broker = world.broker();
    broker.round().await;
    world.rewrite(2).await;
    broker.round().await;
    assert_eq!(broker.alarm(), Some(AlarmKind::Rewritten));
    let (store, trust) = (world.store.store(), world.authority.roots().into());
    let audited = AuditedStore { store: &store, checkpoints: &broker.keeper.checkpoints, trust };
    let verifications = Verifications::default();
    let first = verifications.verify(&audited, false).await.unwrap();
    world.store.take_lines_read();
    let next = verifications.verify(&audited, false).await.unwrap();
    assert_eq!((next.broken.clone(), world.store.take_lines_read()), (first.broken, 0));
    assert!(next.broken.unwrap().problem.contains("rewritten"));
    verifications.verify(&audited, true).await.unwrap();
    assert!(world.store.take_lines_read() > 50);
    // Nor does the keeper search a log for an acceptance that has not moved.
    broker.round().await;
    world.store.take_lines_read();
    broker.round().await;
    assert_eq!(world.store.take_lines_read(), 0);
}
