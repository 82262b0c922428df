//! The attacks of a program that can write the database, which every backend withstands.

use postern_core::audit::AuditEvent;
use postern_core::{Grant, Policy, TargetId};

use crate::error::StoreError;
use crate::record::Record;
use crate::testing::builders::{a_grant, a_policy, at, name, start};
use crate::testing::conformance::Leasing;
use crate::transaction::Transaction;
use crate::{ALL, AgentRecord, Expect, GrantQuery, Range, SeenPolicies, TokenHash, TokenRecord};

/// A database, and a program that can write it.
pub(crate) trait Attacked {
    type Store: Leasing;

    /// Opens the store as a broker does.
    async fn open(&self) -> Self::Store;
    /// Reads the version and the text of a document.
    async fn read(&self, kind: &str, key: &str) -> (u64, String);
    /// Writes a document.
    async fn write(&self, kind: &str, key: &str, version: &str, text: &str);
    /// Deletes a document, and leaves nothing of it.
    async fn lose(&self, kind: &str, key: &str);
    /// Puts a document into an index.
    async fn enter(&self, kind: &str, index: &str, key: &str);
    /// Writes a document whose key and content are no text.
    async fn write_raw(&self, kind: &str, key: &[u8], content: &[u8]);
    /// Puts a document into indexes.
    async fn enter_raw(&self, kind: &str, indexes: &[&str], key: &[u8]);
}

fn event() -> AuditEvent {
    AuditEvent::done(start(), "a test", "tested")
}

fn token() -> TokenRecord {
    TokenRecord { target: "host:vm-1".parse().unwrap(), created_at: start(), expires_at: at(600) }
}

fn agent(target: &str) -> AgentRecord {
    AgentRecord {
        target: target.parse().unwrap(),
        enrolled_at: start(),
        certificate_not_after: at(3600),
        banned: None,
        keys: None,
        roots: Vec::new(),
        certificate_root: None,
        cloned: None,
        forgotten: None,
    }
}

fn is_forged<T: std::fmt::Debug>(found: Result<T, StoreError>) {
    assert!(matches!(found, Err(StoreError::Forged { .. })), "{found:?}");
}

/// Fills a store with two grants, two policies, an agent and a token.
async fn fill(store: &crate::Store) -> [Grant; 2] {
    let grants = [1, 2].map(|number| a_grant().number(number).build());
    let all =
        grants.iter().fold(Transaction::default(), |all, grant| all.put_grant(grant.clone(), Expect::Absent));
    let all = all.put_policy(a_policy().build(), Expect::Absent);
    let all = all.put_policy(a_policy().named("other").on("host:other").build(), Expect::Any);
    let all = all.put_agent(agent("host:vm-1"), Expect::Any).put_token(TokenHash([7; 32]), token());
    store.commit(all.audit(event())).await.unwrap();
    grants
}

/// Runs every attack, each on a database of its own.
pub(crate) async fn run<A: Attacked>(make: impl AsyncFn() -> A) {
    a_forged_grant_opens_nothing_and_others_go_on(make().await).await;
    a_changed_grant_is_forged_wherever_it_is_put(make().await).await;
    an_entry_of_an_index_gives_nothing(make().await).await;
    a_forged_policy_keeps_the_list_from_being_read_until_it_is_written_over(make().await).await;
    nothing_enrols_with_a_forged_agent_or_token(make().await).await;
    forged_records_are_found_apart_and_can_be_deleted(make().await).await;
    policies_that_are_lost_or_brought_back_are_noticed(make().await).await;
    the_last_version_is_found_for_each_way_of_writing(make().await).await;
    a_policy_that_comes_again_with_its_version_is_noticed(make().await).await;
    a_manifest_that_is_lost_or_forged_is_not_made_from_what_is_left(make().await).await;
    records_that_are_written_over_are_readable(make().await).await;
    keys_and_texts_that_are_no_text_hide_nothing(make().await).await;
}

async fn a_forged_grant_opens_nothing_and_others_go_on<A: Attacked>(db: A) {
    let [first, second] = fill(db.open().await.store()).await;
    let forged = a_grant().number(9).seconds(3600).build();
    let (key, text) = (forged.id.to_string(), serde_json::to_string(&forged).unwrap());
    for (version, text) in
        [("1", text.as_str()), ("1", "hmac1 AAAA {}"), ("x", "y"), ("999999999999999999999", "{}")]
    {
        db.write("grants", &key, version, text).await;
        for index in forged.indexes().names() {
            db.enter("grants", index, &key).await;
        }
        let opened = db.open().await;
        let store = opened.store();
        is_forged(store.grant(forged.id).await);
        let ids = |found: Vec<crate::Versioned<Grant>>| {
            found.into_iter().map(|it| it.record.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(store.open_grants().await.unwrap()), [first.id, second.id]);
        let query = GrantQuery { limit: 10, ..GrantQuery::default() };
        assert_eq!(ids(store.grants(query).await.unwrap()), [second.id, first.id]);
        let target: TargetId = "host:vm-1".parse().unwrap();
        assert_eq!(ids(store.open_grants_on(&target).await.unwrap()), [first.id, second.id]);
        let snapshot = store.snapshot(&opened.lease(&target).await).await.unwrap();
        assert_eq!(ids(snapshot.grants), [first.id, second.id]);
        assert_eq!(snapshot.policies.unwrap().policies.len(), 1);
        assert!(store.forgeries().summary().unwrap().contains(&key));
        // A page of one finds those behind the forged one.
        let page = GrantQuery { limit: 1, ..GrantQuery::default() };
        assert_eq!(ids(store.grants(page).await.unwrap()), [second.id]);
    }
}

async fn a_changed_grant_is_forged_wherever_it_is_put<A: Attacked>(db: A) {
    let [first, second] = fill(db.open().await.store()).await;
    let (version, text) = db.read("grants", &first.id.to_string()).await;
    let later = text.replace("\"secs\":", "\"secs\":9");
    assert_ne!(text, later);
    for (key, version, text) in [
        (first.id, version, later.as_str()),
        (first.id, version + 1, &text),
        // The record of the first under the key of the second.
        (second.id, version, &text),
    ] {
        db.write("grants", &key.to_string(), &version.to_string(), text).await;
        is_forged(db.open().await.store().grant(key).await);
    }
    // What a broker wrote may come back, and a broker may write over what is forged.
    db.write("grants", &first.id.to_string(), &version.to_string(), &text).await;
    let opened = db.open().await;
    assert_eq!(opened.store().grant(first.id).await.unwrap().unwrap().record, first);
    let over = Transaction::default().put_grant(second.clone(), Expect::Any).audit(event());
    opened.store().commit(over).await.unwrap();
    assert_eq!(opened.store().grant(second.id).await.unwrap().unwrap().record, second);
}

async fn an_entry_of_an_index_gives_nothing<A: Attacked>(db: A) {
    let [first, second] = fill(db.open().await.store()).await;
    db.enter("grants", "open", "01arz3ndektsv4rrffq69g5fav").await;
    db.enter("grants", "on:host:vm-9 open", &first.id.to_string()).await;
    let opened = db.open().await;
    let store = opened.store();
    let open: Vec<_> = store.open_grants().await.unwrap().into_iter().map(|grant| grant.record.id).collect();
    assert_eq!(open, [first.id, second.id]);
    let target: TargetId = "host:vm-9".parse().unwrap();
    assert!(store.open_grants_on(&target).await.unwrap().is_empty());
    assert!(store.snapshot(&opened.lease(&target).await).await.unwrap().grants.is_empty());
}

async fn a_forged_policy_keeps_the_list_from_being_read_until_it_is_written_over<A: Attacked>(db: A) {
    fill(db.open().await.store()).await;
    let (version, text) = db.read("policies", "usual").await;
    db.write("policies", "usual", &version.to_string(), &text.replace("tcp/22", "tcp/23")).await;
    let opened = db.open().await;
    let store = opened.store();
    is_forged(store.policy(&name("usual")).await);
    is_forged(store.policies().await);
    let target: TargetId = "host:vm-1".parse().unwrap();
    let lease = opened.lease(&target).await;
    let snapshot = store.snapshot(&lease).await.unwrap();
    assert_eq!(snapshot.grants.len(), 2, "closes go on");
    assert!(snapshot.policies.is_err());
    let over = Transaction::default().put_policy(a_policy().build(), Expect::Any).audit(event());
    store.commit(over).await.unwrap();
    assert_eq!(store.policies().await.unwrap().len(), 2);
    assert_eq!(store.policy(&name("usual")).await.unwrap().unwrap().version, version + 1);
    assert_eq!(store.snapshot(&lease).await.unwrap().policies.unwrap().policies, [a_policy().build()]);
}

async fn forged_records_are_found_apart_and_can_be_deleted<A: Attacked>(db: A) {
    let [first, second] = fill(db.open().await.store()).await;
    let target: TargetId = "host:vm-1".parse().unwrap();
    let (version, text) = db.read("agents", "host:vm-1").await;
    for (text, is_there) in [(text.clone(), true), (text.replace("null", " null"), false)] {
        db.write("agents", "host:vm-1", &version.to_string(), &text).await;
        let opened = db.open().await;
        let snapshot = opened.store().snapshot(&opened.lease(&target).await).await.unwrap();
        assert_eq!((snapshot.agent.is_some(), snapshot.grants.len()), (is_there, 2), "closes go on");
    }
    let key = first.id.to_string();
    let (version, text) = db.read("grants", &key).await;
    let changed = text.replace("\"secs\":", "\"secs\":9");
    for (version, text) in
        [(version.to_string().as_str(), changed.as_str()), ("x", "y"), ("999999999999999999999", "{}")]
    {
        db.write("grants", &key, version, text).await;
        for index in first.indexes().names() {
            db.enter("grants", index, &key).await;
        }
        let opened = db.open().await;
        let store = opened.store();
        let page = store.page::<Grant>(Range::all(ALL)).await.unwrap();
        assert_eq!((page.records.len(), page.records[0].record.id), (1, second.id));
        let [forged] = page.forged.try_into().unwrap();
        assert_eq!(forged.key, key);
        let scanned = store.scan::<Grant>(None, 10).await.unwrap();
        assert_eq!((scanned.found.len(), scanned.forged.as_slice()), (1, [forged.clone()].as_slice()));
        assert!(store.has_grant_on(&target).await.unwrap(), "behind the forged one");
        assert!(store.is_still_forged::<Grant>(&forged).await.unwrap());
        let delete = || Transaction::default().delete_forged::<Grant>(&forged).audit(event());
        store.commit(delete()).await.unwrap();
        assert!(store.grant(first.id).await.unwrap().is_none());
        assert!(matches!(store.commit(delete()).await, Err(StoreError::Conflict { .. })));
        // On Redis the index keeps an entry that no broker made.
        for left in store.page::<Grant>(Range::all(ALL)).await.unwrap().forged {
            assert!(!store.is_still_forged::<Grant>(&left).await.unwrap());
        }
    }
}

async fn policies_that_are_lost_or_brought_back_are_noticed<A: Attacked>(db: A) {
    let change = async |change: Transaction| {
        db.open().await.store().commit(change.audit(event())).await.unwrap();
    };
    let put = || Transaction::default().put_policy(a_policy().build(), Expect::Any);
    let is_lost = async |what: &str| {
        let opened = db.open().await;
        let found = opened.store().policies().await;
        assert!(
            matches!(&found, Err(StoreError::PoliciesLost { what: found }) if found.contains(what)),
            "{found:?}"
        );
        let target: TargetId = "host:vm-1".parse().unwrap();
        let snapshot = opened.store().snapshot(&opened.lease(&target).await).await.unwrap();
        assert!(snapshot.policies.is_err() && snapshot.grants.len() == 2, "closes go on");
    };
    let kept = async || {
        let opened = db.open().await;
        let target: TargetId = "host:vm-1".parse().unwrap();
        let snapshot = opened.store().snapshot(&opened.lease(&target).await).await.unwrap();
        (opened.store().policies().await.unwrap().len(), snapshot.policies.unwrap().generation)
    };
    fill(db.open().await.store()).await;
    assert_eq!(kept().await, (2, 1));
    let (old_version, old) = db.read("policies", "usual").await;
    change(put()).await;
    assert_eq!(kept().await, (2, 2));
    let (version, text) = db.read("policies", "usual").await;

    db.write("policies", "usual", &old_version.to_string(), &old).await;
    is_lost("the policy usual has version 1 instead of 2").await;
    db.write("policies", "usual", &version.to_string(), &text).await;
    assert_eq!(kept().await, (2, 2));
    db.lose("policies", "usual").await;
    is_lost("the policy usual is missing").await;
    change(put()).await;
    assert_eq!(kept().await, (2, 3), "it is applied again");

    db.lose("policies", "usual").await;
    assert!(db.open().await.store().has_lost_policy(&name("usual")).await.unwrap());
    change(Transaction::default().delete_policy(&name("usual"))).await;
    assert_eq!(kept().await, (1, 4), "a policy that is lost can be deleted");
    db.write("policies", "usual", &version.to_string(), &text).await;
    is_lost("the policy usual was deleted and is there again").await;
    change(Transaction::default().delete_policy(&name("usual"))).await;
    assert_eq!(kept().await, (1, 5));

    // The whole store goes back: it fits itself, and its agents know better.
    db.lose("manifests", "policies").await;
    assert_eq!(kept().await, (1, 0));
    let opened = db.open().await;
    let store = opened.store();
    assert!(!store.went_back_behind_agents().await.unwrap());
    store.agent_follows(5);
    store.agent_follows(u64::MAX);
    assert!(store.went_back_behind_agents().await.unwrap());
    store.commit(put().audit(event())).await.unwrap();
    assert!(!store.went_back_behind_agents().await.unwrap());
    drop(opened);
    assert_eq!(kept().await, (2, 6), "past what the agents have followed");

    // A whole older store fits itself, and this broker has seen newer policies.
    let opened = db.open().await;
    let store = opened.store();
    let generation = async || store.durable_manifest().await.unwrap().unwrap().generation;
    let seen = |generation| SeenPolicies { generation, policies: None };
    assert_eq!(generation().await, 6);
    store.has_seen(&seen(6));
    assert_eq!(store.policies().await.unwrap().len(), 2);
    store.has_seen(&seen(9));
    let target: TargetId = "host:vm-1".parse().unwrap();
    let lease = opened.lease(&target).await;
    for _ in 0..2 {
        let refused = store.policies().await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::PoliciesLost { what } if what.contains("generation 6")),
            "{refused}"
        );
        assert!(store.snapshot(&lease).await.unwrap().policies.is_err());
        let compared = store.policies_to_compare().await.unwrap();
        assert!(compared.policies.len() == 2 && compared.trouble.is_some());
    }
    store.commit(put().audit(event())).await.unwrap();
    assert_eq!(generation().await, 10, "past what this broker has seen");
    assert_eq!(store.policies().await.unwrap().len(), 2);
    assert_eq!(store.snapshot(&lease).await.unwrap().policies.unwrap().generation, 10);
}

/// The versions of a policy begin again once the database has lost what the deleted one left.
async fn a_policy_that_comes_again_with_its_version_is_noticed<A: Attacked>(db: A) {
    let change = async |change: Transaction| {
        db.open().await.store().commit(change.audit(event())).await.unwrap();
    };
    let put = |on: &str| Transaction::default().put_policy(a_policy().on(on).build(), Expect::Any);
    change(put("host:vm-1")).await;
    let (version, old) = db.read("policies", "usual").await;
    change(Transaction::default().delete_policy(&name("usual"))).await;
    db.lose("policies", "usual").await;
    change(put("host:vm-2")).await;
    let (again, new) = db.read("policies", "usual").await;
    assert_eq!((version, again), (1, 1));
    assert_eq!(db.open().await.store().policies().await.unwrap().len(), 1);
    db.write("policies", "usual", "1", &old).await;
    let opened = db.open().await;
    let refused = opened.store().policies().await.unwrap_err().to_string();
    assert!(refused.contains("the policy usual has version 1, but not the text"), "{refused}");
    let target: TargetId = "host:vm-1".parse().unwrap();
    assert!(opened.store().snapshot(&opened.lease(&target).await).await.unwrap().policies.is_err());
    drop(opened);
    db.write("policies", "usual", "1", &new).await;
    assert_eq!(db.open().await.store().policies().await.unwrap().len(), 1);
}

/// What this broker has seen last is what was kept, whatever the store says.
async fn a_manifest_that_is_lost_or_forged_is_not_made_from_what_is_left<A: Attacked>(db: A) {
    fill(db.open().await.store()).await;
    let manifest = db.open().await.store().durable_manifest().await.unwrap().unwrap();
    let (version, text) = db.read("manifests", "policies").await;
    for is_forged in [false, true] {
        db.lose("policies", "usual").await;
        if is_forged {
            db.write("manifests", "policies", &version.to_string(), &text.replace("usual", "other")).await;
        } else {
            db.lose("manifests", "policies").await;
        }
        let opened = db.open().await;
        let store = opened.store();
        store.has_seen(&manifest.clone().into());
        assert!(store.has_lost_policy(&name("usual")).await.unwrap());
        let other = a_policy().named("other").on("host:other").build();
        let over = Transaction::default().put_policy(other, Expect::Any).audit(event());
        store.commit(over).await.unwrap();
        let refused = store.policies().await.unwrap_err().to_string();
        assert!(refused.contains("the policy usual is missing"), "{refused}");
        let again = Transaction::default().put_policy(a_policy().build(), Expect::Any).audit(event());
        store.commit(again).await.unwrap();
        assert_eq!(store.policies().await.unwrap().len(), 2);
    }
}

/// A broker can read what it writes over whatever another program has left.
async fn records_that_are_written_over_are_readable<A: Attacked>(db: A) {
    // The broker makes the database.
    drop(db.open().await);
    let grants: Vec<Grant> = (1..=4).map(|number| a_grant().number(number).build()).collect();
    for (grant, (version, text)) in grants.iter().zip([
        // No text is what a deleted record of a kind that keeps its versions leaves.
        ("5", ""),
        ("999999999999998", "junk"),
        ("999999999999999", "junk"),
        ("999999999999999999999", "junk"),
    ]) {
        db.write("grants", &grant.id.to_string(), version, text).await;
        let opened = db.open().await;
        let store = opened.store();
        let (before, expect) = store.to_replace::<Grant>(&grant.id).await.unwrap();
        assert_eq!((before, expect == Expect::Absent), (None, text.is_empty()), "{version}");
        let written = expect.version_after(Grant::KIND).unwrap();
        store.commit(Transaction::default().put_grant(grant.clone(), expect).audit(event())).await.unwrap();
        let found = store.grant(grant.id).await.unwrap().unwrap();
        assert_eq!((&found.record, found.version), (grant, written), "{version} {text}");
        let again = Transaction::default().put_grant(grant.clone(), Expect::Version(found.version));
        store.commit(again.audit(event())).await.unwrap();
        assert_eq!(&store.grant(grant.id).await.unwrap().unwrap().record, grant);
    }
}

async fn keys_and_texts_that_are_no_text_hide_nothing<A: Attacked>(db: A) {
    let [first, second] = fill(db.open().await.store()).await;
    for number in 0..20_u8 {
        // Before the first grant, between the two and after both.
        for start in [&b"0"[..], first.id.to_string().as_bytes(), b"z"] {
            let key = [start, b"\xff\x1b[2J", &[number]].concat();
            db.write_raw("grants", &key, b"1 \xff").await;
            db.enter_raw("grants", &["all", "open", "on:host:vm-1", "on:host:vm-1 open"], &key).await;
        }
    }
    db.write_raw("agents", b"host:vm-9", b"1 \xfe").await;
    db.write_raw("tokens", b"\xfe", b"1 \xfe").await;
    let opened = db.open().await;
    let store = opened.store();
    let target: TargetId = "host:vm-1".parse().unwrap();
    let ids =
        |found: Vec<crate::Versioned<Grant>>| found.into_iter().map(|it| it.record.id).collect::<Vec<_>>();
    for limit in [1, 2, 7, 1000] {
        let query = GrantQuery { limit, ..GrantQuery::default() };
        let found = ids(store.grants(query).await.unwrap());
        assert_eq!(found, [second.id, first.id][..limit.min(2)], "{limit}");
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let range = Range { after: after.as_deref(), limit, ..Range::all("on:host:vm-1") };
            let page = store.page::<Grant>(range).await.unwrap();
            found.extend(ids(page.records));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found, [first.id, second.id], "{limit}");
    }
    assert!(store.has_grant_on(&target).await.unwrap());
    assert_eq!(ids(store.open_grants().await.unwrap()), [first.id, second.id]);
    let lease = opened.lease(&target).await;
    assert_eq!(ids(store.snapshot(&lease).await.unwrap().grants), [first.id, second.id]);
    assert_eq!(store.agents().await.unwrap().len(), 1);
    assert_eq!(store.token(&TokenHash([7; 32])).await.unwrap(), Some(self::token()));
    let mut from = None;
    let mut scanned = 0;
    loop {
        let page = store.scan::<Grant>(from.as_deref(), 5).await.unwrap();
        scanned += page.found.len();
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(scanned, 2);
    let met = store.forgeries().take();
    assert!(!met.names.is_empty() && met.names.iter().all(|name| !name.contains('\u{1b}')), "{met:?}");
}

async fn nothing_enrols_with_a_forged_agent_or_token<A: Attacked>(db: A) {
    fill(db.open().await.store()).await;
    let (agent, token) = (agent("host:mine"), TokenHash([9; 32]));
    db.write("agents", "host:mine", "1", &serde_json::to_string(&agent).unwrap()).await;
    db.write("tokens", &token.to_string(), "1", &serde_json::to_string(&self::token()).unwrap()).await;
    // The token that a broker made, under a hash whose secret the attacker knows.
    let (version, text) = db.read("tokens", &TokenHash([7; 32]).to_string()).await;
    db.write("tokens", &TokenHash([8; 32]).to_string(), &version.to_string(), &text).await;
    let opened = db.open().await;
    let store = opened.store();
    is_forged(store.agent(&agent.target).await);
    is_forged(store.token(&token).await);
    is_forged(store.token(&TokenHash([8; 32])).await);
    assert_eq!(store.token(&TokenHash([7; 32])).await.unwrap(), Some(self::token()));
    let agents = store.agents().await.unwrap();
    assert!(agents.iter().map(|agent| agent.record.target.to_string()).eq(["host:vm-1"]), "{agents:?}");
}

async fn the_last_version_is_found_for_each_way_of_writing<A: Attacked>(db: A) {
    let opened = db.open().await;
    let store = opened.store();
    let put = |expect| Transaction::default().put_policy(a_policy().build(), expect).audit(event());
    let delete = || Transaction::default().delete_policy(&name("usual"));
    store.commit(put(Expect::Absent)).await.unwrap();
    assert!(matches!(store.commit(put(Expect::Absent)).await, Err(StoreError::Conflict { .. })));
    store.commit(put(Expect::Any)).await.unwrap();
    store.commit(put(Expect::Version(2))).await.unwrap();
    store.commit(delete().audit(event())).await.unwrap();
    store.commit(put(Expect::Absent)).await.unwrap();
    let version = async || store.policy(&name("usual")).await.unwrap().unwrap().version;
    assert_eq!(version().await, 5);
    let twice =
        delete().put_policy(a_policy().build(), Expect::Absent).put_policy(a_policy().build(), Expect::Any);
    store.commit(twice.audit(event())).await.unwrap();
    assert_eq!(version().await, 8);
    let at_once: Vec<_> = (0..20).map(|_| store.commit(put(Expect::Any))).collect();
    for outcome in futures_util::future::join_all(at_once).await {
        outcome.unwrap();
    }
    assert_eq!(version().await, 28);
    assert_eq!(Policy::KIND.name, "policies");
}
