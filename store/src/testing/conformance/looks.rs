//! Reads: each finds the records that it is asked for.

use std::collections::BTreeMap;

use postern_core::audit::Head;
use postern_core::{AgentKeys, Grant};

use super::{Leasing, closed, event, is_conflict, put};
use crate::testing::builders::{a_grant, a_policy, at, key};
use crate::{AgentRecord, Expect, GrantQuery, Range, Store, Transaction};

pub(super) async fn an_empty_store_has_nothing(opened: &impl Leasing) {
    let store = opened.store();
    assert_eq!(store.audit_head().await.unwrap(), Head::EMPTY);
    assert!(store.open_grants().await.unwrap().is_empty());
    assert!(store.grant(a_grant().build().id).await.unwrap().is_none());
    assert_eq!(store.commit(Transaction::default()).await.unwrap(), Head::EMPTY);
    let snapshot = store.snapshot(&opened.lease(&"host:vm-1".parse().unwrap()).await).await.unwrap();
    assert!(
        snapshot.grants.is_empty() && snapshot.policies.unwrap().policies.is_empty() && snapshot.seq == 0
    );
}

pub(super) async fn grants_are_listed_by_what_is_asked(opened: &impl Leasing) {
    let store = opened.store();
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
    assert_eq!(listed(GrantQuery { principal: Some(key("bob")), ..all() }).await, [2]);
    assert_eq!(listed(GrantQuery { states: vec!["closed"], ..all() }).await, [3]);
    assert_eq!(
        listed(GrantQuery { states: vec!["closed", "opening"], target: vm_1, ..all() }).await,
        [5, 3, 2, 1]
    );
    assert_eq!(listed(GrantQuery { states: vec!["active"], ..all() }).await, [0usize; 0]);
    let vm_2 = "host:vm-2".parse().unwrap();
    let counts = [
        store.count_open_grants_on(&vm_2).await.unwrap(),
        store.count_open_grants_of(&key("alice")).await.unwrap(),
        store.count_open_grants_of(&key("bob")).await.unwrap(),
        store.count_open_grants_of(&key("carol")).await.unwrap(),
    ];
    assert_eq!(counts, [2, 3, 1, 0], "what is closed does not count");
    assert_eq!(store.open_grants_on(&vm_2).await.unwrap().len(), 2);
    assert_eq!(store.open_grants_by(&key("alice")).await.unwrap().len(), 3);
    let open: Vec<_> = store.open_grants().await.unwrap().into_iter().map(|grant| grant.record.id).collect();
    assert_eq!(open, [0, 1, 3, 4].map(|index: usize| grants[index].id), "the oldest first");
}

pub(super) async fn pages_of_grants_meet_without_a_gap(opened: &impl Leasing) {
    let store = opened.store();
    let grants: Vec<Grant> = (1..=7).map(|number| a_grant().number(number).build()).collect();
    for grant in &grants {
        store.commit(put(grant, Expect::Absent)).await.unwrap();
    }
    let (mut paged, mut before) = (Vec::new(), None);
    loop {
        let page = store.grants(GrantQuery { before, limit: 3, ..GrantQuery::default() }).await.unwrap();
        before = page.last().map(|grant| grant.record.id);
        paged.extend(page.into_iter().map(|grant| grant.record));
        if before.is_none() {
            break;
        }
        // A grant that comes in the meantime is newer, and moves no page.
        let late = a_grant().number(100 + u8::try_from(paged.len()).unwrap()).build();
        store.commit(put(&late, Expect::Absent)).await.unwrap();
    }
    assert!(paged.iter().eq(grants.iter().rev()), "{paged:?}");
}

pub(super) async fn a_scan_finds_every_record_with_its_key(store: &Store) {
    let grants: Vec<Grant> = (1..=20).map(|number| a_grant().number(number).build()).collect();
    for grant in &grants {
        store.commit(put(grant, Expect::Absent)).await.unwrap();
    }
    let (first, last) = (grants[2].id.to_string(), grants[5].id.to_string());
    for index in ["all", "of:alice"] {
        let range = Range { after: Some(&first), before: Some(&last), ..Range::all(index) };
        let found: Vec<_> =
            store.range::<Grant>(range).await.unwrap().into_iter().map(|it| it.record.id).collect();
        assert_eq!(found, [grants[3].id, grants[4].id], "{index}");
    }
    let (mut found, mut from) = (BTreeMap::new(), None);
    loop {
        let page = store.scan::<Grant>(from.as_deref(), 7).await.unwrap();
        found.extend(page.found.into_iter().map(|it| (it.key.clone(), it)));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    let ids: Vec<String> = grants.iter().map(|grant| grant.id.to_string()).collect();
    assert!(found.keys().eq(&ids), "{found:?}");
    let of = |grant: &Grant| found[&grant.id.to_string()].clone();
    store.commit(put(&grants[1], Expect::Version(1))).await.unwrap();
    let remove = |grant: &Grant| Transaction::default().delete_found(&of(grant)).audit(event());
    assert!(is_conflict(&store.commit(remove(&grants[1])).await), "it has changed since");
    store.commit(remove(&grants[0])).await.unwrap();
    assert!(is_conflict(&store.commit(remove(&grants[0])).await), "it is gone");
    assert!(store.grant(grants[0].id).await.unwrap().is_none());
    let left = store.grants(GrantQuery { limit: 100, ..GrantQuery::default() }).await.unwrap();
    assert_eq!((left.len(), store.open_grants().await.unwrap().len()), (19, 19));
}

pub(super) async fn a_snapshot_has_one_targets_part(opened: &impl Leasing) {
    let store = opened.store();
    let here = a_grant().number(1).build();
    let both = a_grant().number(2).and_on("host:vm-2").build();
    let elsewhere = a_grant().number(3).on("host:vm-2").build();
    let over = closed(&a_grant().number(4).build(), at(60));
    for grant in [&here, &both, &elsewhere, &over] {
        store.commit(put(grant, Expect::Absent)).await.unwrap();
    }
    for policy in [a_policy().build(), a_policy().named("others").on("host:vm-2").build()] {
        store.commit(Transaction::default().put_policy(policy, Expect::Absent).audit(event())).await.unwrap();
    }
    let snapshot = store.snapshot(&opened.lease(&"host:vm-1".parse().unwrap()).await).await.unwrap();
    let grants: Vec<_> = snapshot.grants.into_iter().map(|grant| (grant.record, grant.version)).collect();
    assert_eq!(grants, [(here.clone(), 1), (both, 1)], "the oldest first");
    assert_eq!(snapshot.policies.unwrap().policies, [a_policy().build()]);
    assert_eq!(snapshot.agent, None);
    assert_eq!(snapshot.seq, store.audit_head().await.unwrap().seq);
    store.commit(put(&closed(&here, at(60)), Expect::Version(1))).await.unwrap();
    let later = store.snapshot(&opened.lease(&"host:vm-1".parse().unwrap()).await).await.unwrap();
    assert_eq!((later.grants.len(), later.seq), (1, snapshot.seq + 1), "it rises with every change");
    let enrolled =
        |target: &str| AgentRecord::enrolled(target.parse().unwrap(), at(1), at(60), AgentKeys::none());
    for target in ["host:vm-1", "host:vm-2"] {
        let put = Transaction::default().put_agent(enrolled(target), Expect::Absent);
        store.commit(put.audit(event())).await.unwrap();
    }
    let later = store.snapshot(&opened.lease(&"host:vm-1".parse().unwrap()).await).await.unwrap();
    assert_eq!(later.agent, Some(enrolled("host:vm-1")));
}
