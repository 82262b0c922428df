use postern_core::audit::{AuditEvent, AuditRecord, Head, head_of_line};
use postern_core::checkpoint::{CHECKPOINT_ACTION, CHECKPOINT_DETAIL, Checkpoint};
use postern_store::{AuditCut, Transaction};

use super::*;
use crate::clock::wall;
use crate::testing::TestApp;

async fn with_records(count: usize) -> TestApp {
    let test = TestApp::new();
    add(&test, count).await;
    test.store.take_lines_read();
    test
}

async fn add(test: &TestApp, count: usize) {
    for n in 0..count {
        let event = AuditEvent::done(test.app.clock.now(), "requester/alice", "test").with("n", n);
        test.store.commit(Transaction::default().audit(event)).await.unwrap();
    }
}

async fn lines(test: &TestApp) -> Vec<String> {
    let lines = test.store.audit_lines(0, 10_000).await.unwrap();
    test.store.take_lines_read();
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Writes the log again with correct hashes, and one record changed.
async fn rewrite(test: &TestApp, seq: usize) {
    let mut head = Head::EMPTY;
    let forged = lines(test).await.into_iter().enumerate().map(|(index, line)| {
        let event = serde_json::from_str::<AuditRecord>(&line).unwrap().event;
        let event = if index + 1 == seq { event.with("forged", true) } else { event };
        let record = AuditRecord::following(&head, event);
        head = record.head();
        record.to_line()
    });
    test.store.replace_audit(forged.collect());
}

async fn sound(test: &TestApp, full: bool) -> Result<Verification, String> {
    let verification = verify(&test.app, full).await.unwrap();
    match &verification.broken {
        None => Ok(verification),
        Some(broken) => Err(broken.to_string()),
    }
}

#[tokio::test]
async fn i10_a_verification_reads_each_record_once_and_then_only_what_is_new() {
    let test = with_records(1200).await;
    let first = sound(&test, false).await.unwrap();
    assert_eq!((first.head.seq, first.read_from), (1200, 1));
    assert!((1200..1210).contains(&test.store.take_lines_read()));
    add(&test, 5).await;
    let second = sound(&test, false).await.unwrap();
    assert_eq!((second.head.seq, second.read_from), (1205, 1201));
    let read = test.store.take_lines_read();
    assert!((5..10).contains(&read), "{read} lines: the new ones, and the last one again");
    sound(&test, true).await.unwrap();
    assert!(test.store.take_lines_read() >= 1205, "a full one reads every record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn i10_forty_verifications_at_once_read_the_log_once() {
    let test = with_records(1200).await;
    let calls: Vec<_> = (0..40).map(|_| verify(&test.app, false)).collect();
    for outcome in futures_util::future::join_all(calls).await {
        assert_eq!(outcome.unwrap().head.seq, 1200);
    }
    let read = test.store.take_lines_read();
    assert!(read < 1300, "{read} lines");
}

#[tokio::test]
async fn i10_full_verifications_at_once_share_the_next_one() {
    let test = with_records(700).await;
    // Each call has arrived before the first verification begins.
    let busy = test.app.verifications.verified.lock().await;
    let mut calls = futures_util::future::join_all((0..40).map(|_| verify(&test.app, true)));
    assert!(futures_util::poll!(&mut calls).is_pending());
    drop(busy);
    for outcome in calls.await {
        assert_eq!(outcome.unwrap().head.seq, 700);
    }
    let read = test.store.take_lines_read();
    assert!(read < 2 * 700, "{read} lines");
}

#[tokio::test]
async fn i9_a_verification_sees_what_was_written_before_its_call() {
    let test = with_records(3).await;
    for seq in 4..20 {
        add(&test, 1).await;
        assert_eq!(sound(&test, false).await.unwrap().head.seq, seq);
    }
}

#[tokio::test]
async fn i9_a_prefix_that_was_rewritten_with_correct_hashes_is_noticed_every_time() {
    for full in [false, true] {
        let test = with_records(20).await;
        sound(&test, false).await.unwrap();
        rewrite(&test, 4).await;
        for _ in 0..3 {
            let error = sound(&test, full).await.unwrap_err();
            assert!(error.contains("line 20: is another than this broker has verified"), "{error}");
        }
    }
}

#[tokio::test]
async fn i9_a_cut_end_is_noticed_also_once_the_log_has_grown_again() {
    let test = with_records(20).await;
    sound(&test, false).await.unwrap();
    let mut shorter = lines(&test).await;
    shorter.truncate(15);
    test.store.replace_audit(shorter);
    assert!(sound(&test, false).await.unwrap_err().contains("cut off"));
    add(&test, 20).await;
    assert!(sound(&test, false).await.unwrap_err().contains("rewritten"));
}

#[tokio::test]
async fn i9_a_record_changed_without_its_hash_is_named_by_a_full_verification() {
    let test = with_records(20).await;
    sound(&test, false).await.unwrap();
    let mut changed = lines(&test).await;
    changed[3] = changed[3].replace("alice", "mallory");
    test.store.replace_audit(changed);
    assert!(sound(&test, true).await.unwrap_err().starts_with("line 4:"));
    let broken = test.app.checkpoints.take_broken(None).expect("it raises the alarm");
    assert_eq!(broken.line, 4);
}

#[tokio::test]
async fn i9_a_verification_says_when_the_records_before_its_first_were_verified() {
    let test = with_records(20).await;
    let first = sound(&test, false).await.unwrap();
    add(&test, 2).await;
    let second = sound(&test, false).await.unwrap();
    assert_eq!((second.read_from, second.verified_at), (21, first.verified_at));
    assert!(first.verified_at.is_some() && test.app.checkpoints.take_broken(None).is_none());
}

#[tokio::test]
async fn i9_a_verification_goes_on_from_the_base_if_what_it_verified_before_left_the_store() {
    let test = with_records(20).await;
    sound(&test, false).await.unwrap();
    add(&test, 20).await;
    let line = test.store.audit_lines(29, 1).await.unwrap().remove(0).1;
    let cut = AuditCut { from: Head::EMPTY, upto: head_of_line(&line).unwrap() };
    let event = AuditEvent::done(test.app.clock.now(), "broker", "audit.sealed");
    test.store.commit(Transaction::default().cut_audit(cut).audit(event)).await.unwrap();
    let verification = sound(&test, false).await.unwrap();
    assert_eq!((verification.read_from, verification.head.seq), (31, 41));
}

#[tokio::test]
async fn i9_a_verification_names_the_newest_checkpoint_and_what_it_does_not_cover() {
    let test = with_records(4).await;
    let head = test.store.audit_head().await.unwrap();
    let checkpoint = Checkpoint::of("postern", "postern", head, wall(), None);
    let signed = test.app.authority.sign_checkpoint(checkpoint).unwrap();
    let event = AuditEvent::done(test.app.clock.now(), "broker", CHECKPOINT_ACTION);
    let event = event.with(CHECKPOINT_DETAIL, &signed);
    test.store.commit(Transaction::default().audit(event)).await.unwrap();
    add(&test, 3).await;
    let verification = sound(&test, false).await.unwrap();
    assert_eq!((verification.checkpoint, verification.uncovered), (Some(signed), 3));
    rewrite(&test, 2).await;
    assert!(sound(&test, true).await.unwrap_err().starts_with("line 4: is another than the checkpoint"));
}
