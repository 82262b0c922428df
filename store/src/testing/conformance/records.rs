//! Records: kept, changed by their versions, and found by their keys.

use postern_core::Event;

use super::{agent, closed, event, is_conflict, put, put_policy};
use crate::testing::builders::{a_grant, a_policy, at, key, name, principal};
use crate::{AgentRecord, Ban, Expect, Store, Transaction, Version};
pub(super) async fn a_grant_is_kept_and_changed_by_its_version(store: &Store) {
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

    store.commit(put(&active, Expect::Any)).await.unwrap();
    assert!(is_conflict(&store.commit(put(&active, Expect::Version(2))).await), "any change is counted");
    assert!(
        is_conflict(&store.commit(put(&active, Expect::Version(4))).await),
        "nor is a later version there"
    );

    store.commit(put(&closed(&active, at(2)), Expect::Version(3))).await.unwrap();
    let kept = store.grant(grant.id).await.unwrap().unwrap();
    assert_eq!((&kept.record, kept.version), (&closed(&active, at(2)), 4));
    assert!(is_conflict(&store.commit(put(&grant, Expect::Absent)).await), "what is closed is still there");
    assert!(store.open_grants().await.unwrap().is_empty());
}

pub(super) async fn a_policy_is_kept_and_changed_by_its_version(store: &Store) {
    let (usual, other) = (a_policy().build(), a_policy().named("other").on("host:vm-2").build());
    assert!(is_conflict(&store.commit(put_policy(&usual, Expect::Version(1))).await), "there is none");
    store.commit(put_policy(&usual, Expect::Any)).await.unwrap();
    store.commit(put_policy(&other, Expect::Absent)).await.unwrap();
    assert!(is_conflict(&store.commit(put_policy(&usual, Expect::Absent)).await));

    let changed = a_policy().on("host:vm-3").build();
    store.commit(put_policy(&changed, Expect::Version(1))).await.unwrap();
    assert!(is_conflict(&store.commit(put_policy(&usual, Expect::Version(1))).await), "the version is old");
    let kept = store.policy(&usual.name).await.unwrap().unwrap();
    assert_eq!((&kept.record, kept.version), (&changed, 2));
    let listed = store.policies().await.unwrap();
    let listed: Vec<_> = listed.into_iter().map(|policy| (policy.record, policy.version)).collect();
    assert_eq!(listed, [(other, 1), (changed, 2)], "by name");
    assert!(store.policy(&name("none")).await.unwrap().is_none());
}

pub(super) async fn a_policys_versions_count_on_after_it_was_deleted(store: &Store) {
    let policy = a_policy().build();
    let put = |expect| put_policy(&policy, expect);
    let delete = || Transaction::default().delete_policy(&policy.name).audit(event());
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

pub(super) async fn agents_are_kept_in_the_order_of_their_targets(store: &Store) {
    let put = |target: &str, expect| Transaction::default().put_agent(agent(target), expect).audit(event());
    for target in ["host:b", "host:a", "host:c"] {
        store.commit(put(target, Expect::Absent)).await.unwrap();
    }
    assert!(is_conflict(&store.commit(put("host:a", Expect::Absent)).await));
    store.commit(put("host:a", Expect::Version(1))).await.unwrap();
    let kept = store.agents().await.unwrap();
    let listed: Vec<(String, Version)> =
        kept.iter().map(|a| (a.record.target.to_string(), a.version)).collect();
    assert_eq!(listed, [("host:a".into(), 2), ("host:b".into(), 1), ("host:c".into(), 1)]);
    assert!(is_conflict(&store.commit(put("host:a", Expect::Version(1))).await), "the version is old");
    let ban = Ban { by: principal("root"), at: at(5), reason: "lost".to_owned() };
    let banned = AgentRecord { banned: Some(ban), ..agent("host:a") };
    let ban = Transaction::default().put_agent(banned.clone(), Expect::Any);
    store.commit(ban.audit(event())).await.unwrap();
    let kept = store.agent(&banned.target).await.unwrap().unwrap();
    assert_eq!((kept.record, kept.version), (banned, 3));
    assert_eq!(store.agent(&"host:b".parse().unwrap()).await.unwrap().unwrap().record, agent("host:b"));
    assert!(store.agent(&"host:d".parse().unwrap()).await.unwrap().is_none());
}

pub(super) async fn a_request_is_remembered_for_its_principal_alone(store: &Store) {
    let grant = a_grant().build();
    let remember =
        |who: &str| Transaction::default().remember_request(&key(who), "key", grant.id).audit(event());
    store.commit(remember("alice")).await.unwrap();
    assert_eq!(store.grant_of_request(&key("alice"), "key").await.unwrap(), Some(grant.id));
    assert_eq!(store.grant_of_request(&key("alice"), "other").await.unwrap(), None);
    assert_eq!(store.grant_of_request(&key("bob"), "key").await.unwrap(), None);
    assert!(is_conflict(&store.commit(remember("alice")).await));
    store.commit(remember("bob")).await.unwrap();
}
