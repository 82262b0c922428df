//! Targets, for each role.

use std::sync::Arc;
use std::time::Duration;

use postern_core::Layers;
use postern_core::audit::AuditEvent;
use postern_core::plan::{desired_cloud, known_cloud};
use postern_provider::CloudError;
use postern_store::{Expect, Record as _, Transaction};

use super::*;
use crate::signals::rounds::Task;
use crate::testing::builders::{a_grant, a_policy, key};
use crate::testing::{TestApp, caller, reporter};

const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

/// A policy for alice, one for bob, and one for both.
async fn three() -> TestApp {
    let policy = |policy: &str, target: &str, requesters: &[&str]| {
        let requesters = requesters.iter().map(|who| key(who)).collect();
        Policy { requesters, ..a_policy().named(policy).on(target).build() }
    };
    TestApp::under([
        policy("alices", "host:a", &["alice"]),
        policy("bobs", "host:b", &["bob"]),
        policy("both", "host:c", &["alice", "bob"]),
        policy("bobs-too", "host:c", &["bob"]),
    ])
    .await
}

#[tokio::test]
async fn i7_a_requester_sees_the_targets_that_it_may_ask_for_and_no_other() {
    let test = three().await;
    for (role, who, expected) in [
        (Role::Requester, "alice", &["host:a", "host:c"][..]),
        (Role::Requester, "bob", &["host:b", "host:c"]),
        (Role::Requester, "carol", &[]),
        (Role::Reader, "carol", &["host:a", "host:b", "host:c"]),
        (Role::Administrator, "carol", &["host:a", "host:b", "host:c"]),
    ] {
        let caller = caller(role, who);
        let (listed, next) = list(&test.app, &caller, 10, None).await.unwrap();
        let ids: Vec<String> = listed.iter().map(|target| target.id.to_string()).collect();
        assert_eq!(
            (ids.iter().map(String::as_str).collect::<Vec<_>>(), next),
            (expected.to_vec(), None),
            "{role}/{who}"
        );
        let mut errors = Vec::new();
        for id in ["host:a", "host:b", "host:c", "host:unknown"] {
            match get(&test.app, &caller, &id.parse().unwrap()).await {
                Ok(found) => {
                    assert!(expected.contains(&id) && found.id.to_string() == id, "{role}/{who}: {id}")
                }
                Err(error) => {
                    assert!(!expected.contains(&id), "{role}/{who}: {id}");
                    errors.push(error.to_string().replace(id, "TARGET"));
                }
            }
        }
        errors.dedup();
        assert_eq!(errors.len(), 1, "an unknown target reads like one that exists: {errors:?}");
    }
    // A page counts what the caller sees.
    let (page, next) = list(&test.app, &caller(Role::Requester, "alice"), 1, None).await.unwrap();
    assert_eq!((page.len(), next.map(|id| id.to_string()).as_deref()), (1, Some("host:a")));
}

#[tokio::test]
async fn i7_a_requester_reads_the_names_of_its_own_policies() {
    let test = three().await;
    let named = |role, who| {
        let test = &test;
        async move { get(&test.app, &caller(role, who), &"host:c".parse().unwrap()).await.unwrap().policies }
    };
    assert_eq!(named(Role::Requester, "alice").await, ["both"]);
    assert_eq!(named(Role::Reader, "rita").await, ["bobs-too", "both"]);
}

#[tokio::test]
async fn i7_a_requester_does_not_read_a_clouds_own_error() {
    let test = TestApp::under([a_policy().on(VM).layers(Layers::Cloud).build()]).await;
    test.cloud.outage(Some(CloudError::unavailable("arn:aws:iam::1:role/postern is throttled")));
    let detail = |role| {
        let test = &test;
        async move { get(&test.app, &caller(role, "alice"), &VM.parse().unwrap()).await.unwrap().cloud.detail }
    };
    let target: TargetId = VM.parse().unwrap();
    let grant = a_grant().on(VM).layers(Layers::Cloud).build();
    let (wanted, known) =
        (desired_cloud(&target, [&grant], grant.requested_at), known_cloud(&target, [&grant]));
    test.app.cloud.want(&target, wanted, known);
    let failed = async {
        while detail(Role::Reader).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = Arc::clone(&test.app.cloud).run(reporter(Task::CloudLayer)) => panic!("{ended:?}"),
        () = failed => {}
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("the cloud was not asked"),
    }
    let (own, plain) = (detail(Role::Reader).await, detail(Role::Requester).await);
    assert!(own.contains("arn:aws:iam::1:role/postern is throttled"), "{own}");
    assert_eq!(plain, CLOUD_TEXT_WITHHELD);
}

#[tokio::test]
async fn i7_while_the_policies_cannot_be_read_operators_see_targets_and_requesters_none() {
    let test = three().await;
    let event = AuditEvent::done(test.app.clock.now(), "a test", "grant.requested");
    let put = Transaction::default().put_grant(a_grant().on("host:c").build(), Expect::Absent);
    test.store.commit(put.audit(event)).await.unwrap();
    test.store.tamper(Policy::KIND, "both", |text| text.replacen('{', "{ ", 1));
    let id: TargetId = "host:c".parse().unwrap();
    for (role, sees) in [(Role::Reader, true), (Role::Requester, false)] {
        let caller = caller(role, "alice");
        let (listed, _) = list(&test.app, &caller, 10, None).await.unwrap();
        assert_eq!(listed.iter().any(|target| target.id == id), sees, "{role}");
        assert_eq!(get(&test.app, &caller, &id).await.is_ok(), sees, "{role}");
    }
}
