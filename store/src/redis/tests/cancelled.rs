//! Callers that leave while their commits are under way.

use std::task::Poll;

use futures_util::future::{BoxFuture, FutureExt as _};

use super::*;

/// Polls a commit once. It cannot be answered yet: the server's answer is read by another task.
async fn begin(commit: &mut BoxFuture<'_, Result<Head, StoreError>>) {
    let polled = std::future::poll_fn(|context| Poll::Ready(commit.poll_unpin(context))).await;
    assert!(polled.is_pending());
}

#[tokio::test]
async fn i10_a_caller_that_leaves_takes_no_other_commit_with_it() {
    let server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    let mut first = store.commit(a_change(1)).boxed();
    let mut leaving = store.commit(a_change(2)).boxed();
    let mut staying = store.commit(a_change(3)).boxed();
    for commit in [&mut first, &mut leaving, &mut staying] {
        begin(commit).await;
    }
    first.await.unwrap();
    // Both others are on their way to the server now, in one group.
    let _ = std::future::poll_fn(|context| Poll::Ready(leaving.poll_unpin(context))).await;
    drop(leaving);
    staying.await.unwrap();
    assert!(store.grant(a_grant().number(3).build().id).await.unwrap().is_some());
}

#[tokio::test]
async fn the_end_of_the_writer_is_noticed_and_fails_every_call() {
    let server = RedisServer::durable().await;
    let settings = RedisSettings { replicas: 1, ..server.store("t") };
    let mut redis = Redis::open(&settings, &test_sealing()).await.unwrap();
    assert!(redis.ended().now_or_never().is_none());
    redis.writer.end().await;
    let redis = Arc::new(redis);
    let store = redis.store();
    assert!(store.ended().await.contains("the task that commits to the store has ended"));
    let head = Head { seq: 1, ..Head::EMPTY };
    for outcome in [store.commit(a_change(1)).await.map(drop), redis.writer.confirmed(head).await] {
        let Err(StoreError::Unavailable { source }) = outcome else { panic!("{outcome:?}") };
        assert!(source.to_string().contains("the store's writer has ended"), "{source}");
    }
}

#[tokio::test]
async fn i10_of_many_commits_whose_callers_leave_at_any_moment_the_others_are_answered() {
    let server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    let event = AuditEvent::done(start(), "a test", "left");
    let leaving = async {
        for round in 0_u64.. {
            let commits = (0..8).map(|_| store.commit(Transaction::default().audit(event.clone())));
            let all = futures_util::future::join_all(commits);
            tokio::time::timeout(Duration::from_millis(round % 4), all).await.ok();
        }
    };
    let staying = async {
        for number in 1..=60 {
            store.commit(a_change(number)).await.unwrap();
        }
    };
    tokio::select! {
        () = staying => {}
        () = leaving => {}
    }
    let lines = store.audit_lines(0, 100_000).await.unwrap();
    verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
    assert_eq!(store.open_grants().await.unwrap().len(), 60);
}
