//! Commits: whole or not at all, and never without their audit events.

use postern_core::Event;
use postern_core::audit::{AuditEvent, AuditRecord, Head, Verifier};

use super::{agent, closed, event, is_conflict, put};
use crate::testing::builders::{a_grant, a_policy, at, key, name};
use crate::{AuditCut, Expect, Store, StoreError, TokenHash, TokenRecord, Transaction};
pub(super) async fn a_transaction_happens_whole_or_not_at_all(store: &Store) {
    let (first, second) = (a_grant().number(1).build(), a_grant().number(2).build());
    let (kept, new) = (TokenHash([1; 32]), TokenHash([2; 32]));
    let token = TokenRecord { target: "host:vm-1".parse().unwrap(), created_at: at(0), expires_at: at(60) };
    store.commit(put(&first, Expect::Absent).put_token(kept, token.clone())).await.unwrap();
    let head = store.audit_head().await.unwrap();

    let all = put(&second, Expect::Absent)
        .put_grant(closed(&first, at(1)), Expect::Version(1))
        .remember_request(&key("alice"), "key", second.id)
        .put_policy(a_policy().build(), Expect::Any)
        .put_agent(agent("host:vm-1"), Expect::Absent)
        .put_token(new, token.clone())
        .take_token(&kept);
    let but_for_the_last = all.clone().delete_policy(&name("none"));
    assert!(is_conflict(&store.commit(but_for_the_last).await));
    assert!(store.grant(second.id).await.unwrap().is_none());
    assert_eq!(store.grant(first.id).await.unwrap().unwrap().record, first);
    assert_eq!(store.open_grants().await.unwrap().len(), 1);
    assert_eq!(store.grant_of_request(&key("alice"), "key").await.unwrap(), None);
    assert!(store.policies().await.unwrap().is_empty());
    assert!(store.agents().await.unwrap().is_empty());
    assert_eq!(store.token(&kept).await.unwrap(), Some(token.clone()));
    assert_eq!(store.token(&new).await.unwrap(), None);
    assert_eq!(store.audit_head().await.unwrap(), head);
    assert_eq!(store.audit_lines(0, 10).await.unwrap().len(), 1);

    store.commit(all).await.unwrap();
    assert_eq!(store.grant(second.id).await.unwrap().unwrap().record, second);
    assert_eq!(store.grant(first.id).await.unwrap().unwrap().record, closed(&first, at(1)));
    assert_eq!(store.grant_of_request(&key("alice"), "key").await.unwrap(), Some(second.id));
    assert_eq!((store.policies().await.unwrap().len(), store.agents().await.unwrap().len()), (1, 1));
    assert_eq!(store.token(&kept).await.unwrap(), None);
    assert_eq!(store.token(&new).await.unwrap(), Some(token));
}

pub(super) async fn a_transaction_may_depend_on_records_that_it_does_not_write(store: &Store) {
    let grant = |number| put(&a_grant().number(number).build(), Expect::Absent);
    let policy = a_policy().build();
    let web = policy.name.clone();
    let is_there = |transaction: Transaction, version| {
        transaction.require::<postern_core::Policy>(&web, Expect::Version(version))
    };
    assert!(is_conflict(&store.commit(is_there(grant(1), 1)).await));
    let absent = grant(1).require::<postern_core::Policy>(&web, Expect::Absent);
    // A transaction's own writes come after what it requires.
    store.commit(absent.put_policy(policy.clone(), Expect::Any)).await.unwrap();
    store.commit(is_there(grant(2), 1)).await.unwrap();
    let write = || Transaction::default().audit(event());
    store.commit(write().put_policy(policy.clone(), Expect::Version(1))).await.unwrap();
    assert!(is_conflict(&store.commit(is_there(grant(3), 1)).await));
    store.commit(is_there(grant(3), 2)).await.unwrap();
    store.commit(write().delete_policy(&web)).await.unwrap();
    assert!(is_conflict(&store.commit(is_there(grant(4), 2)).await));
    assert!(is_conflict(&store.commit(is_there(grant(4), 3)).await));
    store.commit(grant(4).require::<postern_core::Policy>(&web, Expect::Absent)).await.unwrap();
    assert_eq!(store.open_grants().await.unwrap().len(), 4);
    assert_eq!(store.policies().await.unwrap().len(), 0);
}

pub(super) async fn changes_see_those_before_them_in_their_transaction(store: &Store) {
    let grant = a_grant().build();
    let active = grant.after(Event::Confirmed, at(1)).unwrap();
    store.commit(put(&grant, Expect::Absent).put_grant(active.clone(), Expect::Version(1))).await.unwrap();
    let kept = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!((kept.record, kept.version), (active, 2));
}

pub(super) async fn i9_the_first_records_of_the_log_leave_and_the_chain_goes_on(store: &Store) {
    for _ in 0..9 {
        store.commit(Transaction::default().audit(event())).await.unwrap();
    }
    let all = store.audit_lines(0, 100).await.unwrap();
    let head = |seq: usize| match seq {
        0 => Head::EMPTY,
        seq => serde_json::from_str::<AuditRecord>(&all[seq - 1].1).unwrap().head(),
    };
    let cut = |from, upto| Transaction::default().cut_audit(AuditCut { from, upto });
    assert_eq!(store.audit_base().await.unwrap(), Head::EMPTY);
    let unaudited = store.commit(cut(head(0), head(3))).await;
    assert!(matches!(unaudited, Err(StoreError::Unaudited)), "{unaudited:?}");
    let other = Head { seq: 3, hash: head(4).hash };
    for (from, upto) in [(1, head(3)), (0, other), (0, head(9)), (0, head(0))] {
        assert!(is_conflict(&store.commit(cut(head(from), upto).audit(event())).await), "{from} {upto:?}");
    }
    assert_eq!(store.audit_lines(0, 100).await.unwrap(), all);

    store.commit(cut(head(0), head(3)).audit(event())).await.unwrap();
    assert!(is_conflict(&store.commit(cut(head(0), head(3)).audit(event())).await), "it has left");
    store.commit(cut(head(3), head(7)).audit(event())).await.unwrap();
    assert_eq!(store.audit_base().await.unwrap(), head(7));
    let left = store.audit_lines(0, 100).await.unwrap();
    assert_eq!(left.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [8, 9, 10, 11]);
    assert_eq!(left[..2], all[7..]);
    assert_eq!(
        store.audit_lines(3, 2).await.unwrap(),
        left[..2],
        "a reader that is behind begins at the base"
    );
    assert_eq!(store.audit_lines(9, 1).await.unwrap(), left[2..3]);
    let mut verifier = Verifier::after(head(7));
    left.iter().for_each(|(_, line)| drop(verifier.line(line).unwrap()));
    assert_eq!(verifier.head(), store.audit_head().await.unwrap());
}

pub(super) async fn changes_without_an_audit_event_are_refused(store: &Store) {
    let grant = a_grant().build();
    let silent = Transaction::default().put_grant(grant.clone(), Expect::Any);
    assert!(matches!(store.commit(silent).await, Err(StoreError::Unaudited)));
    assert!(store.grant(grant.id).await.unwrap().is_none());
}

pub(super) async fn what_an_audit_event_says_is_what_the_log_says(store: &Store) {
    let grant = a_grant().build();
    let events = [
        event().with("first", "a \"quoted\" word, a \\ and a \u{1f511}").on_grant(grant.id),
        AuditEvent::denied(at(1), "another", "refused").on_target(&"host:vm-1".parse().unwrap()),
    ];
    let [first, second] = events.clone();
    let head = store.commit(Transaction::default().audit(first).audit(second)).await.unwrap();
    let lines = store.audit_lines(0, usize::MAX).await.unwrap();
    let records: Vec<AuditRecord> =
        lines.iter().map(|(_, line)| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(records.last().unwrap().head(), head);
    assert!(records.into_iter().map(|record| record.event).eq(events), "in the order of the transaction");
    assert!(store.audit_lines(u64::MAX, 10).await.unwrap().is_empty());
    assert!(store.audit_lines(0, 0).await.unwrap().is_empty());
}
