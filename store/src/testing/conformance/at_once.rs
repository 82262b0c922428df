//! Many that commit at once, each from a task of its own.

#![allow(clippy::disallowed_methods, reason = "tests start what they need, and wait by tokio's clock")]

use postern_core::audit::{Head, verify};
use tokio::task::JoinSet;

use super::{event, is_conflict, put};
use crate::testing::builders::{a_grant, at, key};
use crate::{Expect, Store, StoreError, TokenHash, TokenRecord, Transaction};
pub(super) async fn a_token_is_taken_once(store: &Store) {
    let hash = TokenHash([7; 32]);
    let token = TokenRecord { target: "host:vm-1".parse().unwrap(), created_at: at(0), expires_at: at(60) };
    store.commit(Transaction::default().put_token(hash, token.clone()).audit(event())).await.unwrap();
    assert_eq!(store.token(&hash).await.unwrap(), Some(token));
    assert_eq!(store.token(&TokenHash([8; 32])).await.unwrap(), None);
    let take = || Transaction::default().take_token(&hash).audit(event());
    assert_eq!(successes(&at_once(store, (0..8).map(|_| take())).await), 1);
    assert_eq!(store.token(&hash).await.unwrap(), None);
    assert!(is_conflict(&store.commit(take()).await));
    assert_eq!(store.audit_head().await.unwrap().seq, 2, "what was refused left no record");
}

pub(super) async fn the_audit_log_is_one_chain_under_many_writers(store: &Store) {
    let outcomes = at_once(
        store,
        (0..50).map(|number| {
            let event = event().with("number", number);
            Transaction::default().audit(event.clone()).audit(event)
        }),
    )
    .await;
    let mut ends: Vec<u64> = outcomes.into_iter().map(|head| head.unwrap().seq).collect();
    ends.sort_unstable();
    assert_eq!(ends, (1..=50).map(|n| 2 * n).collect::<Vec<_>>(), "each answer has its own place");
    let lines = store.audit_lines(0, 1000).await.unwrap();
    assert!(lines.iter().map(|(seq, _)| *seq).eq(1..=100));
    let head = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
    assert_eq!(head, store.audit_head().await.unwrap());
    assert_eq!(store.audit_lines(97, 2).await.unwrap(), lines[97..99]);
    assert!(store.audit_lines(100, 10).await.unwrap().is_empty());
}

pub(super) async fn of_two_that_change_one_record_one_succeeds(store: &Store) {
    let grant = a_grant().build();
    store.commit(put(&grant, Expect::Absent)).await.unwrap();
    let changes = (0..8).map(|_| put(&grant, Expect::Version(1)));
    assert_eq!(successes(&at_once(store, changes).await), 1);
    assert_eq!(store.grant(grant.id).await.unwrap().unwrap().version, 2);
    assert_eq!(store.audit_head().await.unwrap().seq, 2, "what was refused left no record");
}

pub(super) async fn of_two_requests_with_one_key_one_makes_its_grant(store: &Store) {
    let requests = (1..=8).map(|number| {
        let grant = a_grant().number(number).build();
        put(&grant, Expect::Absent).remember_request(&key("alice"), "key", grant.id)
    });
    assert_eq!(successes(&at_once(store, requests).await), 1);
    let open = store.open_grants().await.unwrap();
    assert_eq!(open.len(), 1, "a second grant was made and rolled back with its request");
    assert_eq!(store.grant_of_request(&key("alice"), "key").await.unwrap(), Some(open[0].record.id));
}

/// A caller that meets a conflict reads next what it conflicts with.
pub(super) async fn a_conflict_is_answered_once_its_cause_can_be_read(store: &Store) {
    for round in 0..20u8 {
        let key_text = format!("key {round}");
        let requests = (1..=8).map(|number| {
            let (store, key_text) = (store.clone(), key_text.clone());
            async move {
                let grant = a_grant().number(round * 8 + number).build();
                let request =
                    put(&grant, Expect::Absent).remember_request(&key("alice"), &key_text, grant.id);
                let outcome = store.commit(request).await;
                assert!(outcome.is_ok() || is_conflict(&outcome), "{outcome:?}");
                assert!(store.grant_of_request(&key("alice"), &key_text).await.unwrap().is_some());
            }
        });
        futures_util::future::join_all(requests).await;
    }
}

/// Commits all transactions at once, each from a task of its own. The answers come in no order.
async fn at_once(
    store: &Store,
    transactions: impl IntoIterator<Item = Transaction>,
) -> Vec<Result<Head, StoreError>> {
    let mut tasks = JoinSet::new();
    for transaction in transactions {
        let store = store.clone();
        tasks.spawn(async move { store.commit(transaction).await });
    }
    tasks.join_all().await
}

/// Counts the commits that succeeded; the others must have conflicted.
fn successes(outcomes: &[Result<Head, StoreError>]) -> usize {
    let (done, refused): (Vec<_>, Vec<_>) = outcomes.iter().partition(|outcome| outcome.is_ok());
    assert!(refused.into_iter().all(is_conflict), "{outcomes:?}");
    done.len()
}
