//! Each quota admits what is within it and denies the next request, also of requests at the same moment (I10).

use std::time::Duration;

use futures_util::future::join_all;
use postern_core::audit::Outcome;
use postern_core::text::Justification;
use postern_core::{Event, Role};
use postern_store::{Expect, Transaction};

use super::*;
use crate::app::access::{KeyedRequest, Requested, request, revoke};
use crate::limits::Quotas;
use crate::testing::builders::{a_policy, at};
use crate::testing::{TestApp, caller};

/// Asks for tcp/22 of a target for so many sources.
fn ask(target: &str, sources: std::ops::Range<usize>) -> KeyedRequest {
    let source = |n: usize| format!("192.0.{}.{}", n / 256, n % 256).parse().unwrap();
    let request = AccessRequest::new(
        vec![target.parse().unwrap()],
        vec!["tcp/22".parse().unwrap()],
        sources.map(source).collect(),
        Duration::from_secs(60),
        Justification::new("a test").unwrap(),
    );
    KeyedRequest { request: request.unwrap(), idempotency_key: None, is_from_caller: false }
}

async fn world(quotas: Quotas, max_open_grants: Option<u32>) -> TestApp {
    let mut policy = a_policy().on("host:*").build();
    policy.max_open_grants = max_open_grants;
    TestApp::within(&quotas).with_policies([policy]).await
}

async fn asks(test: &TestApp, who: &str, asked: KeyedRequest) -> Result<Requested, &'static str> {
    request(&test.app, &caller(Role::Requester, who), asked).await.map_err(|error| {
        let Error::Quota(exceeded) = error else { panic!("{error}") };
        exceeded.reason
    })
}

fn grants(grants_per_principal: usize) -> Quotas {
    Quotas { grants_per_principal, ..Quotas::default() }
}

#[tokio::test]
async fn i10_a_principal_has_its_number_of_open_grants_and_a_closed_one_makes_room() {
    let test = world(grants(2), None).await;
    let first = asks(&test, "alice", ask("host:vm-1", 0..1)).await.unwrap();
    asks(&test, "alice", ask("host:vm-2", 0..1)).await.unwrap();
    assert_eq!(asks(&test, "alice", ask("host:vm-3", 0..1)).await.unwrap_err(), "QUOTA_OPEN_GRANTS");
    asks(&test, "bob", ask("host:vm-3", 0..1)).await.unwrap();
    let denied = ("requester/alice".to_owned(), Outcome::Denied, "QUOTA_OPEN_GRANTS".to_owned());
    assert!(test.audited("grant.requested").await.contains(&denied));

    let closing = revoke(&test.app, &caller(Role::Requester, "alice"), first.grant.id, None).await.unwrap();
    assert!(asks(&test, "alice", ask("host:vm-3", 0..1)).await.is_err(), "its window may still be held");
    let closed = closing.after(Event::ClosedEverywhere, at(61)).unwrap();
    let event = postern_core::audit::AuditEvent::done(at(61), "broker", "grant.closed");
    test.store.commit(Transaction::default().put_grant(closed, Expect::Any).audit(event)).await.unwrap();
    asks(&test, "alice", ask("host:vm-3", 0..1)).await.unwrap();
}

#[tokio::test]
async fn i10_a_repeated_request_is_answered_past_a_quota() {
    let test = world(Quotas { requests_per_minute: 2, ..grants(1) }, None).await;
    let keyed = || KeyedRequest { idempotency_key: Some("k".into()), ..ask("host:vm-1", 0..1) };
    let first = asks(&test, "alice", keyed()).await.unwrap().grant.id;
    for _ in 0..3 {
        let again = asks(&test, "alice", keyed()).await.unwrap();
        assert!(again.repeated && again.grant.id == first);
    }
    assert_eq!(asks(&test, "alice", ask("host:vm-1", 0..1)).await.unwrap_err(), "QUOTA_REQUESTS");
}

#[tokio::test]
async fn i10_a_principal_has_its_number_of_windows() {
    let test = world(Quotas { windows_per_principal: 5, ..Quotas::default() }, None).await;
    asks(&test, "alice", ask("host:vm-1", 0..3)).await.unwrap();
    assert_eq!(asks(&test, "alice", ask("host:vm-2", 0..3)).await.unwrap_err(), "QUOTA_OPEN_WINDOWS");
    asks(&test, "alice", ask("host:vm-2", 0..2)).await.unwrap();
}

#[tokio::test]
async fn i10_a_target_has_its_number_of_windows_and_one_principal_half_of_them() {
    let test = world(Quotas { windows_per_target: 8, ..Quotas::default() }, None).await;
    assert_eq!(asks(&test, "alice", ask("host:vm-1", 0..5)).await.unwrap_err(), "QUOTA_TARGET_WINDOWS");
    asks(&test, "alice", ask("host:vm-1", 0..4)).await.unwrap();
    assert_eq!(asks(&test, "alice", ask("host:vm-1", 9..10)).await.unwrap_err(), "QUOTA_TARGET_WINDOWS");
    asks(&test, "bob", ask("host:vm-1", 0..3)).await.unwrap();
    assert_eq!(asks(&test, "carol", ask("host:vm-1", 0..2)).await.unwrap_err(), "QUOTA_TARGET_WINDOWS");
    asks(&test, "carol", ask("host:vm-1", 0..1)).await.unwrap();
    asks(&test, "carol", ask("host:vm-2", 0..4)).await.unwrap();
}

#[tokio::test]
async fn i10_a_policy_narrows_the_number_of_open_grants_and_an_extension_passes() {
    let test = world(Quotas::default(), Some(1)).await;
    asks(&test, "alice", ask("host:vm-1", 0..1)).await.unwrap();
    assert_eq!(asks(&test, "alice", ask("host:vm-2", 0..1)).await.unwrap_err(), "QUOTA_POLICY_GRANTS");
    asks(&test, "alice", ask("host:vm-1", 0..2)).await.unwrap();
    asks(&test, "bob", ask("host:vm-2", 0..1)).await.unwrap();
}

#[tokio::test]
async fn i10_a_policys_bound_holds_whichever_policy_allows_the_windows() {
    for (free, bounding) in [("a", "b"), ("b", "a")] {
        let mut bound = a_policy().named(bounding).on("host:*").build();
        bound.max_open_grants = Some(1);
        let free = a_policy().named(free).on("host:*").build();
        let test = TestApp::within(&Quotas::default()).with_policies([free, bound]).await;
        asks(&test, "alice", ask("host:vm-1", 0..1)).await.unwrap();
        assert_eq!(asks(&test, "alice", ask("host:vm-2", 0..1)).await.unwrap_err(), "QUOTA_POLICY_GRANTS");
    }
}

#[tokio::test]
async fn i10_requests_at_the_same_moment_do_not_pass_a_quota_together() {
    for quotas in [grants(3), Quotas { windows_per_target: 6, ..Quotas::default() }] {
        let test = world(quotas, None).await;
        let all = join_all((0..20).map(|n| asks(&test, "alice", ask("host:vm-1", n..n + 1)))).await;
        assert_eq!(all.iter().filter(|answer| answer.is_ok()).count(), 3);
    }
}

#[tokio::test]
async fn i10_a_principal_makes_its_number_of_requests_a_minute() {
    let test = world(Quotas { requests_per_minute: 5, ..Quotas::default() }, None).await;
    for n in 0..5 {
        asks(&test, "alice", ask("host:vm-1", n..n + 1)).await.unwrap();
    }
    assert_eq!(asks(&test, "alice", ask("host:vm-1", 9..10)).await.unwrap_err(), "QUOTA_REQUESTS");
    asks(&test, "bob", ask("host:vm-1", 9..10)).await.unwrap();
}
