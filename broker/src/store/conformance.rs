//! What every store promises, as tests that each implementation runs.

use futures_util::future::join_all;
use jiff::Timestamp;
use postern_core::audit::{AuditEvent, Head, verify};
use postern_core::{CloseReason, Event, Grant};

use super::{
    AgentRecord, Change, Expect, GrantQuery, Store, StoreError, TokenHash, TokenRecord, Transaction, Version,
};
use crate::samples::{a_grant, a_policy, at, name, start};

/// Runs every test, each on a store of its own. `open` makes an empty one.
pub(crate) async fn run<S: Store>(open: impl AsyncFn() -> S) {
    an_empty_store_has_nothing(&open().await).await;
    a_grant_is_kept_and_changed_by_its_version(&open().await).await;
    a_transaction_happens_whole_or_not_at_all(&open().await).await;
    changes_without_a_word_are_refused(&open().await).await;
    a_request_is_remembered_for_its_principal_alone(&open().await).await;
    a_policys_versions_count_on_after_it_was_deleted(&open().await).await;
    agents_are_kept_in_the_order_of_their_targets(&open().await).await;
    a_token_is_taken_once(&open().await).await;
    grants_are_listed_by_what_is_asked(&open().await).await;
    a_snapshot_has_one_targets_part(&open().await).await;
    the_audit_log_is_one_chain_whoever_writes(&open().await).await;
    of_two_that_change_one_record_one_succeeds(&open().await).await;
}

fn event() -> AuditEvent {
    AuditEvent::done(start(), "a test", "tested")
}

fn put(grant: &Grant, expect: Expect) -> Transaction {
    Transaction::default().change(Change::PutGrant { grant: grant.clone(), expect }).audit(event())
}

fn is_conflict<T>(outcome: &Result<T, StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Conflict { .. }))
}

/// The grant after it was closed for good.
fn closed(grant: &Grant, now: Timestamp) -> Grant {
    let closing = grant.after(Event::Close(CloseReason::Expired), now).unwrap();
    closing.after(Event::ClosedEverywhere, now).unwrap()
}

async fn an_empty_store_has_nothing(store: &impl Store) {
    assert_eq!(store.audit_head().await.unwrap(), Head::EMPTY);
    assert!(store.open_grants().await.unwrap().is_empty());
    assert!(store.grant(a_grant().build().id).await.unwrap().is_none());
    assert_eq!(store.commit(Transaction::default()).await.unwrap(), Head::EMPTY);
    let snapshot = store.snapshot(&"host:vm-1".parse().unwrap()).await.unwrap();
    assert!(snapshot.grants.is_empty() && snapshot.policies.is_empty() && snapshot.seq == 0);
}

async fn a_grant_is_kept_and_changed_by_its_version(store: &impl Store) {
    let grant = a_grant().build();
    store.commit(put(&grant, Expect::Absent)).await.unwrap();
    let kept = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!((&kept.record, kept.version), (&grant, 1));
    assert!(is_conflict(&store.commit(put(&grant, Expect::Absent)).await));

    let active = grant.after(Event::Confirmed, at(1)).unwrap();
    store.commit(put(&active, Expect::Version(1))).await.unwrap();
    assert!(is_conflict(&store.commit(put(&grant, Expect::Version(1))).await), "the version is old");
    let kept = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!((&kept.record, kept.version), (&active, 2));

    store.commit(put(&closed(&active, at(2)), Expect::Version(2))).await.unwrap();
    let kept = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!((&kept.record, kept.version), (&closed(&active, at(2)), 3));
    assert!(store.open_grants().await.unwrap().is_empty());
}

async fn a_transaction_happens_whole_or_not_at_all(store: &impl Store) {
    let (first, second) = (a_grant().number(1).build(), a_grant().number(2).build());
    store.commit(put(&first, Expect::Absent)).await.unwrap();
    let head = store.audit_head().await.unwrap();
    let both = put(&second, Expect::Absent)
        .change(Change::PutPolicy { policy: a_policy().build(), expect: Expect::Any })
        .change(Change::PutGrant { grant: first.clone(), expect: Expect::Absent });
    assert!(is_conflict(&store.commit(both).await));
    assert!(store.grant(second.id).await.unwrap().is_none());
    assert!(store.policies().await.unwrap().is_empty());
    assert_eq!(store.audit_head().await.unwrap(), head);
}

async fn changes_without_a_word_are_refused(store: &impl Store) {
    let grant = a_grant().build();
    let silent =
        Transaction::default().change(Change::PutGrant { grant: grant.clone(), expect: Expect::Any });
    assert!(matches!(store.commit(silent).await, Err(StoreError::Silent)));
    assert!(store.grant(grant.id).await.unwrap().is_none());
}

async fn a_request_is_remembered_for_its_principal_alone(store: &impl Store) {
    let grant = a_grant().build();
    let remember = |who: &str| {
        let change = Change::RememberRequest { principal: name(who), key: "key".to_owned(), grant: grant.id };
        Transaction::default().change(change).audit(event())
    };
    store.commit(remember("alice")).await.unwrap();
    assert_eq!(store.grant_of_request(&name("alice"), "key").await.unwrap(), Some(grant.id));
    assert_eq!(store.grant_of_request(&name("alice"), "other").await.unwrap(), None);
    assert_eq!(store.grant_of_request(&name("bob"), "key").await.unwrap(), None);
    assert!(is_conflict(&store.commit(remember("alice")).await));
    store.commit(remember("bob")).await.unwrap();
}

async fn a_policys_versions_count_on_after_it_was_deleted(store: &impl Store) {
    let policy = a_policy().build();
    let put = |expect| {
        let change = Change::PutPolicy { policy: policy.clone(), expect };
        Transaction::default().change(change).audit(event())
    };
    let delete = || {
        let change = Change::DeletePolicy { name: policy.name.clone() };
        Transaction::default().change(change).audit(event())
    };
    let version = async || store.policy(&policy.name).await.unwrap().map(|kept| kept.version);
    assert!(is_conflict(&store.commit(delete()).await), "there is none");
    store.commit(put(Expect::Absent)).await.unwrap();
    let first = version().await.unwrap();
    store.commit(delete()).await.unwrap();
    assert_eq!(version().await, None);
    assert!(store.policies().await.unwrap().is_empty());
    assert!(is_conflict(&store.commit(delete()).await));
    assert!(is_conflict(&store.commit(put(Expect::Version(first))).await), "it was deleted");
    store.commit(put(Expect::Absent)).await.unwrap();
    assert!(version().await.unwrap() > first, "an old version fits again");
    assert_eq!(store.policies().await.unwrap().len(), 1);
}

async fn agents_are_kept_in_the_order_of_their_targets(store: &impl Store) {
    let agent = |target: &str| AgentRecord {
        target: target.parse().unwrap(),
        enrolled_at: start(),
        certificate_not_after: at(3600),
        banned: None,
    };
    let put = |target: &str, expect| {
        Transaction::default().change(Change::PutAgent { agent: agent(target), expect }).audit(event())
    };
    for target in ["host:b", "host:a", "host:c"] {
        store.commit(put(target, Expect::Absent)).await.unwrap();
    }
    assert!(is_conflict(&store.commit(put("host:a", Expect::Absent)).await));
    store.commit(put("host:a", Expect::Version(1))).await.unwrap();
    let kept = store.agents().await.unwrap();
    let listed: Vec<(String, Version)> =
        kept.iter().map(|a| (a.record.target.to_string(), a.version)).collect();
    assert_eq!(listed, [("host:a".into(), 2), ("host:b".into(), 1), ("host:c".into(), 1)]);
    assert_eq!(store.agent(&"host:b".parse().unwrap()).await.unwrap().unwrap().record, agent("host:b"));
    assert!(store.agent(&"host:d".parse().unwrap()).await.unwrap().is_none());
}

async fn a_token_is_taken_once(store: &impl Store) {
    let hash = TokenHash([7; 32]);
    let token = TokenRecord { target: "host:vm-1".parse().unwrap(), expires_at: at(60) };
    store
        .commit(Transaction::default().change(Change::PutToken { hash, token: token.clone() }).audit(event()))
        .await
        .unwrap();
    assert_eq!(store.token(&hash).await.unwrap(), Some(token));
    assert_eq!(store.token(&TokenHash([8; 32])).await.unwrap(), None);
    let take = || store.commit(Transaction::default().change(Change::TakeToken { hash }).audit(event()));
    let taken = join_all((0..8).map(|_| take())).await;
    assert_eq!(taken.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(taken.iter().filter(|outcome| outcome.is_err()).all(is_conflict));
    assert_eq!(store.token(&hash).await.unwrap(), None);
}

async fn grants_are_listed_by_what_is_asked(store: &impl Store) {
    let grants = [
        a_grant().number(1).build(),
        a_grant().number(2).of("bob").build(),
        closed(&a_grant().number(3).build(), at(60)),
        a_grant().number(4).on("host:vm-2").build(),
        a_grant().number(5).on("host:vm-2").and_on("host:vm-1").build(),
    ];
    for grant in &grants {
        store.commit(put(grant, Expect::Absent)).await.unwrap();
    }
    let listed = async |query: GrantQuery| {
        let found = store.grants(query).await.unwrap();
        let number = |id| grants.iter().position(|grant| grant.id == id).unwrap() + 1;
        found.into_iter().map(|grant| number(grant.record.id)).collect::<Vec<_>>()
    };
    let all = || GrantQuery { limit: 100, ..GrantQuery::default() };
    let vm_1 = Some("host:vm-1".parse().unwrap());
    assert_eq!(listed(all()).await, [5, 4, 3, 2, 1], "the newest first");
    assert_eq!(listed(GrantQuery { limit: 2, ..all() }).await, [5, 4]);
    assert_eq!(listed(GrantQuery { before: Some(grants[3].id), ..all() }).await, [3, 2, 1]);
    assert_eq!(listed(GrantQuery { target: vm_1.clone(), ..all() }).await, [5, 3, 2, 1], "each once");
    assert_eq!(listed(GrantQuery { principal: Some(name("bob")), ..all() }).await, [2]);
    assert_eq!(listed(GrantQuery { states: vec!["closed"], ..all() }).await, [3]);
    assert_eq!(
        listed(GrantQuery { states: vec!["closed", "opening"], target: vm_1, ..all() }).await,
        [5, 3, 2, 1]
    );
    assert_eq!(listed(GrantQuery { states: vec!["active"], ..all() }).await, [0usize; 0]);
    let open: Vec<_> = store.open_grants().await.unwrap().into_iter().map(|grant| grant.record.id).collect();
    assert_eq!(open, [0, 1, 3, 4].map(|index: usize| grants[index].id), "the oldest first");
}

async fn a_snapshot_has_one_targets_part(store: &impl Store) {
    let here = a_grant().number(1).build();
    let both = a_grant().number(2).and_on("host:vm-2").build();
    let elsewhere = a_grant().number(3).on("host:vm-2").build();
    let over = closed(&a_grant().number(4).build(), at(60));
    for grant in [&here, &both, &elsewhere, &over] {
        store.commit(put(grant, Expect::Absent)).await.unwrap();
    }
    for policy in [a_policy().build(), a_policy().named("others").on("host:vm-2").build()] {
        let change = Change::PutPolicy { policy, expect: Expect::Absent };
        store.commit(Transaction::default().change(change).audit(event())).await.unwrap();
    }
    let snapshot = store.snapshot(&"host:vm-1".parse().unwrap()).await.unwrap();
    let grants: Vec<_> = snapshot.grants.into_iter().map(|grant| (grant.record, grant.version)).collect();
    assert_eq!(grants, [(here.clone(), 1), (both, 1)], "the oldest first");
    assert_eq!(snapshot.policies, [a_policy().build()]);
    assert_eq!(snapshot.seq, store.audit_head().await.unwrap().seq);
    store.commit(put(&closed(&here, at(60)), Expect::Version(1))).await.unwrap();
    let later = store.snapshot(&"host:vm-1".parse().unwrap()).await.unwrap();
    assert_eq!((later.grants.len(), later.seq), (1, snapshot.seq + 1), "it rises with every change");
}

async fn the_audit_log_is_one_chain_whoever_writes(store: &impl Store) {
    let heads = join_all((0..50).map(|n| {
        let event = event().with("number", n);
        store.commit(Transaction::default().audit(event.clone()).audit(event))
    }));
    let mut ends: Vec<u64> = heads.await.into_iter().map(|head| head.unwrap().seq).collect();
    ends.sort_unstable();
    assert_eq!(ends, (1..=50).map(|n| 2 * n).collect::<Vec<_>>(), "each answer has its own place");
    let lines = store.audit_lines(0, 1000).await.unwrap();
    assert!(lines.iter().map(|(seq, _)| *seq).eq(1..=100));
    assert_eq!(
        verify(lines.iter().map(|(_, line)| line.as_str())).unwrap(),
        store.audit_head().await.unwrap()
    );
    let part = store.audit_lines(97, 2).await.unwrap();
    assert_eq!(part, lines[97..99]);
    assert!(store.audit_lines(100, 10).await.unwrap().is_empty());
}

async fn of_two_that_change_one_record_one_succeeds(store: &impl Store) {
    let grant = a_grant().build();
    store.commit(put(&grant, Expect::Absent)).await.unwrap();
    let outcomes = join_all((0..8).map(|_| store.commit(put(&grant, Expect::Version(1))))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    assert!(outcomes.iter().filter(|outcome| outcome.is_err()).all(is_conflict));
    assert_eq!(store.grant(grant.id).await.unwrap().unwrap().version, 2);
    assert_eq!(store.audit_head().await.unwrap().seq, 2, "what was refused left no record");
}
