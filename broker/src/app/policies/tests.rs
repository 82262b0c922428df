//! Listing policies, for each role, and keeping them.

use postern_store::testing::memory::Fault;
use postern_store::{PolicyManifest, Record, SeenPolicies, StoreError};

use super::*;
use crate::layers::host::session_state::SessionOrigin;
use crate::testing::builders::{a_policy, key};
use crate::testing::{TestApp, caller};

/// A policy for the named requesters; for every requester if none is named.
fn policy_of(policy: &str, requesters: &[&str]) -> Policy {
    let mut policy = a_policy().named(policy).build();
    policy.requesters = requesters.iter().map(|who| key(who)).collect();
    policy
}

fn names(views: &[PolicyView]) -> Vec<&str> {
    views.iter().map(|view| view.name().as_str()).collect()
}

#[tokio::test]
async fn i7_a_requester_lists_the_policies_under_which_it_may_request_and_no_other() {
    let policies = [policy_of("all", &[]), policy_of("both", &["alice", "bob"]), policy_of("bobs", &["bob"])];
    let app = TestApp::under(policies).await;
    for (role, who, expected) in [
        (Role::Requester, "alice", &["all", "both"][..]),
        (Role::Requester, "bob", &["all", "bobs", "both"]),
        (Role::Requester, "carol", &["all"]),
        (Role::Reader, "carol", &["all", "bobs", "both"]),
        (Role::Administrator, "carol", &["all", "bobs", "both"]),
    ] {
        let PolicyPage { views, next, trouble } = list(&app.app, &caller(role, who), 10, None).await.unwrap();
        assert_eq!((names(&views), next, trouble), (expected.to_vec(), None, None), "{role}/{who}");
        let is_whole = views.iter().all(|view| matches!(view, PolicyView::Whole(_)));
        assert_eq!(is_whole, role != Role::Requester, "{role}/{who}");
    }
}

#[tokio::test]
async fn i7_a_requester_sees_the_limits_of_a_policy_and_nothing_else_of_it() {
    let policy = policy_of("both", &["alice", "bob"]);
    let app = TestApp::under([policy.clone()]).await;
    let views = list(&app.app, &caller(Role::Requester, "alice"), 10, None).await.unwrap().views;
    let Policy { name, targets, ports, layers, approval_required, .. } = policy;
    assert_eq!(
        views,
        [PolicyView::Limits(RequestLimits { name, targets, ports, layers, approval_required })]
    );
}

#[tokio::test]
async fn a_selector_that_can_match_no_target_is_refused_by_its_field() {
    let app = TestApp::under([]).await;
    let policy = a_policy().on("aws:*").on("aws:123/*").build();
    let at = policy.targets.iter().position(|one| !one.can_match()).unwrap();
    let refused = put(&app.app, &caller(Role::Administrator, "root"), policy, None).await;
    let Err(Error::Invalid(invalid)) = refused else { panic!("not refused: {refused:?}") };
    assert_eq!(invalid.field, format!("targets[{at}]"));
    assert!(app.app.store.policies().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_page_counts_only_the_policies_that_the_caller_sees() {
    let policies =
        [policy_of("a", &["bob"]), policy_of("b", &[]), policy_of("c", &["bob"]), policy_of("d", &[])];
    let app = TestApp::under(policies).await;
    let alice = caller(Role::Requester, "alice");
    let PolicyPage { views, next, .. } = list(&app.app, &alice, 1, None).await.unwrap();
    assert_eq!((names(&views), next.as_ref().map(Name::as_str)), (vec!["b"], Some("b")));
    let PolicyPage { views, next, .. } = list(&app.app, &alice, 1, Some("b")).await.unwrap();
    assert_eq!((names(&views), next), (vec!["d"], None));
}

#[tokio::test]
async fn i4_a_policy_that_is_kept_or_gone_already_is_no_answer_before_that_is_durable() {
    let test = TestApp::new();
    let (admin, policy) = (caller(Role::Administrator, "root"), policy_of("all", &[]));
    let is_refused = |outcome: Result<(), Error>| {
        assert!(matches!(outcome, Err(Error::Store(StoreError::Unavailable { .. }))), "{outcome:?}");
    };
    let confirm = async || {
        let event = AuditEvent::done(test.app.clock.now(), "a test", "tested");
        test.app.store.commit(Transaction::default().audit(event)).await.unwrap();
    };
    test.store.fail_next([Fault::Unconfirmed]);
    for _ in 0..2 {
        is_refused(put(&test.app, &admin, policy.clone(), None).await.map(drop));
    }
    confirm().await;
    assert_eq!(put(&test.app, &admin, policy.clone(), None).await.unwrap().into_inner(), 1);

    test.store.fail_next([Fault::Unconfirmed]);
    for _ in 0..2 {
        is_refused(delete(&test.app, &admin, &policy.name).await.map(drop));
    }
    confirm().await;
    let gone = delete(&test.app, &admin, &policy.name).await;
    assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
}

fn forge(test: &TestApp) {
    test.store.tamper(<Policy as postern_store::Record>::KIND, "a", |text| text.replace("tcp/22", "tcp/23"));
}
fn lose(test: &TestApp) {
    test.store.lose(<Policy as postern_store::Record>::KIND, "a");
}

#[tokio::test]
async fn i7_with_a_forged_or_lost_policy_nothing_is_granted_until_it_is_applied_again_or_deleted() {
    let (admin, alice) = (caller(Role::Administrator, "admin"), caller(Role::Requester, "alice"));
    for (attack, is_healed_by_a_delete) in
        [(forge as fn(&TestApp), false), (forge, true), (lose, false), (lose, true)]
    {
        let test = TestApp::under([policy_of("a", &[]), policy_of("b", &[])]).await;
        attack(&test);
        let refused = list(&test.app, &alice, 10, None).await.unwrap_err().to_string();
        assert!(refused.contains("the policy a"), "{refused}");
        let PolicyPage { views, trouble, .. } = list(&test.app, &admin, 10, None).await.unwrap();
        assert_eq!(names(&views), ["b"], "an administrator sees what is there");
        assert!(trouble.is_some_and(|trouble| trouble.contains("the policy a")));
        if is_healed_by_a_delete {
            delete(&test.app, &admin, &"a".parse().unwrap()).await.unwrap();
        } else {
            put(&test.app, &admin, policy_of("a", &[]), None).await.unwrap();
        }
        let views = list(&test.app, &alice, 10, None).await.unwrap().views;
        assert_eq!(views.len(), if is_healed_by_a_delete { 1 } else { 2 });
    }
}

#[tokio::test]
async fn i1_a_policy_that_is_kept_is_written_once_more_if_agents_have_followed_newer_ones() {
    let admin = caller(Role::Administrator, "admin");
    let test = TestApp::under([policy_of("a", &[])]).await;
    let again = async || put(&test.app, &admin, policy_of("a", &[]), None).await.unwrap().into_inner();
    assert_eq!((again().await, again().await), (1, 1), "it is kept already");
    test.app.store.agent_follows(40);
    assert_eq!((again().await, again().await), (2, 2), "past what the agents have followed");
    assert!(!test.app.store.went_back_behind_agents().await.unwrap());
}

#[tokio::test]
async fn i7_policies_older_than_those_that_this_broker_has_seen_grant_nothing_until_one_is_applied() {
    let (admin, alice) = (caller(Role::Administrator, "admin"), caller(Role::Requester, "alice"));
    let test = TestApp::under([policy_of("a", &[])]).await;
    test.app.store.has_seen(&SeenPolicies { generation: 40, policies: None });
    let refused = list(&test.app, &alice, 10, None).await.unwrap_err().to_string();
    assert!(refused.contains("generation 40") && refused.contains("policy"), "{refused}");
    let PolicyPage { views, trouble, .. } = list(&test.app, &admin, 10, None).await.unwrap();
    assert_eq!(names(&views), ["a"], "an administrator compares them");
    assert!(trouble.is_some_and(|trouble| trouble.contains("generation 40")));
    assert_eq!(put(&test.app, &admin, policy_of("a", &[]), None).await.unwrap().into_inner(), 2);
    assert_eq!(list(&test.app, &alice, 10, None).await.unwrap().views.len(), 1);
    assert_eq!(test.app.store.seen_generation(), 41, "it is kept before the answer");
}

#[tokio::test]
async fn i1_a_change_of_one_policy_takes_no_protection_of_another_that_is_lost_with_the_manifest() {
    let (admin, alice) = (caller(Role::Administrator, "admin"), caller(Role::Requester, "alice"));
    let (policies, manifests) = (<Policy as Record>::KIND, <PolicyManifest as Record>::KIND);
    let name = |text: &str| text.parse::<Name>().unwrap();
    let lose_manifest = |test: &TestApp| test.store.lose(manifests, "policies");
    let forge_manifest = |test: &TestApp| {
        test.store.tamper(manifests, "policies", |text| text.replace("usual", "other") + " ");
    };
    for attack in [&lose_manifest as &dyn Fn(&TestApp), &forge_manifest] {
        let test = TestApp::under([policy_of("a", &[]), policy_of("b", &[]), policy_of("c", &[])]).await;
        test.app.policies_seen.look(&test.app.store).await.unwrap();
        test.store.lose(policies, "a");
        attack(&test);
        let refused = async || list(&test.app, &alice, 10, None).await.unwrap_err().to_string();
        refused().await;
        let PolicyPage { views, trouble, .. } = list(&test.app, &admin, 10, None).await.unwrap();
        assert_eq!((names(&views), trouble.is_some()), (vec!["b", "c"], true), "the list works meanwhile");

        put(&test.app, &admin, policy_of("b", &["alice"]), None).await.unwrap();
        assert!(refused().await.contains("the policy a is missing"), "{}", refused().await);
        delete(&test.app, &admin, &name("c")).await.unwrap();
        assert!(refused().await.contains("the policy a is missing"), "{}", refused().await);
        delete(&test.app, &admin, &name("a")).await.unwrap();
        let PolicyPage { views, trouble, .. } = list(&test.app, &admin, 10, None).await.unwrap();
        assert_eq!((names(&views), trouble), (vec!["b"], None), "an administrator has said so");
    }
}

#[tokio::test]
async fn i1_the_deletion_of_a_forged_policy_wakes_the_targets_that_it_may_have_covered() {
    let admin = caller(Role::Administrator, "admin");
    let target: postern_core::TargetId = "host:vm-1".parse().unwrap();
    let test = TestApp::under([policy_of("a", &[])]).await;
    let _session = test.app.sessions.connect(&target, "1".into(), SessionOrigin::default());
    forge(&test);
    test.woken().await;
    delete(&test.app, &admin, &"a".parse().unwrap()).await.unwrap();
    assert!(test.woken().await.contains(&target));
}
