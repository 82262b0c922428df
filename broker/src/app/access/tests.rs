//! Requesting and revoking, with every decision in the audit log.

use postern_core::Layers;
use postern_core::audit::Outcome;
use postern_core::policy::PolicyLimit;
use postern_core::{Policy, Role};
use postern_provider::CallerToken;
use postern_store::testing::memory::Fault;

use super::*;
use crate::testing::builders::{a_policy, key};
use crate::testing::{TestApp, caller};

const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

/// Bob and alice may have tcp/22 of `host:vm-1` for an hour, from their office.
fn office() -> Policy {
    let mut policy = a_policy().build();
    policy.requesters = vec![key("alice"), key("bob")];
    policy.ports[0].sources = vec!["192.0.2.0/24".parse().unwrap()];
    policy
}

fn ask(target: &str, port: &str, source: &str, seconds: u64) -> KeyedRequest {
    asked(&[target], port, source, seconds, "a test")
}

fn asked(targets: &[&str], port: &str, source: &str, seconds: u64, why: &str) -> KeyedRequest {
    let request = AccessRequest::new(
        targets.iter().map(|target| target.parse().unwrap()).collect(),
        vec![port.parse().unwrap()],
        vec![source.parse().unwrap()],
        Duration::from_secs(seconds),
        Justification::new(why).unwrap(),
    );
    KeyedRequest { request: request.unwrap(), idempotency_key: None, is_from_caller: false }
}

fn usual() -> KeyedRequest {
    ask("host:vm-1", "tcp/22", "192.0.2.7", 60)
}

fn keyed(key: &str, asked: KeyedRequest) -> KeyedRequest {
    KeyedRequest { idempotency_key: Some(key.to_owned()), ..asked }
}

fn alice() -> Caller {
    caller(Role::Requester, "alice")
}

async fn everything(test: &TestApp) -> Vec<Versioned<Grant>> {
    test.store.grants(GrantQuery { limit: 100, ..GrantQuery::default() }).await.unwrap()
}

#[tokio::test]
async fn i7_a_request_is_decided_by_policy_and_each_decision_is_audited() {
    use Role::{Administrator, Reader, Requester};
    for (role, who, asked, denied) in [
        (Requester, "alice", usual(), None),
        (Requester, "bob", ask("host:vm-1", "tcp/22", "192.0.2.0/25", 3600), None),
        (Requester, "carol", usual(), Some("REQUESTER_NOT_ALLOWED")),
        (Administrator, "root", usual(), Some("REQUESTER_NOT_ALLOWED")),
        (Reader, "alice", usual(), Some("REQUESTER_NOT_ALLOWED")),
        (Requester, "alice", ask("host:vm-2", "tcp/22", "192.0.2.7", 60), Some("TARGET_WITHOUT_POLICY")),
        (Requester, "alice", ask("host:vm-1", "tcp/23", "192.0.2.7", 60), Some("PORT_NOT_IN_POLICY")),
        (Requester, "alice", ask("host:vm-1", "udp/22", "192.0.2.7", 60), Some("PORT_NOT_IN_POLICY")),
        (Requester, "alice", ask("host:vm-1", "tcp/22", "198.51.100.7", 60), Some("SOURCE_NOT_ALLOWED")),
        (Requester, "alice", ask("host:vm-1", "tcp/22", "192.0.0.0/16", 60), Some("SOURCE_NOT_ALLOWED")),
        (Requester, "alice", ask("host:vm-1", "tcp/22", "0.0.0.0/0", 60), Some("SOURCE_NOT_ALLOWED")),
        (Requester, "alice", ask("host:vm-1", "tcp/22", "192.0.2.7", 3601), Some("DURATION_BEYOND_MAXIMUM")),
    ] {
        let test = TestApp::under([office()]).await;
        let shown = format!("{role}/{who} asks for {:?}", asked.request);
        let outcome = request(&test.app, &caller(role, who), asked).await;
        let audited = test.audited("grant.requested").await;
        let (outcome_word, reason) = (if denied.is_some() { Outcome::Denied } else { Outcome::Done }, denied);
        let expected = (format!("{role}/{who}"), outcome_word, reason.unwrap_or_default().to_owned());
        assert_eq!(audited, [expected], "{shown}");
        match (outcome, denied) {
            (Ok(requested), None) => {
                assert_eq!(requested.grant.state, GrantState::Opening, "{shown}");
                assert_eq!(everything(&test).await[0].record, *requested.grant, "{shown}");
                assert_eq!(test.woken().await.len(), 1, "{shown}");
            }
            (Err(Error::Denied(denial)), Some(reason)) => {
                // The audit log has the limit that was met; a requester does not learn which targets exist.
                let seen = if reason == "TARGET_WITHOUT_POLICY" { "REQUESTER_NOT_ALLOWED" } else { reason };
                assert_eq!(denial.limit.reason(), seen, "{shown}");
                assert!(everything(&test).await.is_empty() && test.woken().await.is_empty(), "{shown}");
            }
            (outcome, _) => panic!("{shown}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn i7_a_requester_does_not_learn_which_targets_exist() {
    let of_bob = Policy { requesters: vec![key("bob")], ..a_policy().named("bobs").on("host:vm-2").build() };
    let test = TestApp::under([office(), of_bob]).await;
    let denial = |target: &'static str, caller: Caller| {
        let test = &test;
        async move {
            let denied = request(&test.app, &caller, ask(target, "tcp/22", "192.0.2.7", 60)).await;
            let Err(Error::Denied(denial)) = denied else { panic!("{denied:?}") };
            (denial.limit, denial.invalid.to_string().replace(target, "TARGET"))
        }
    };
    assert_eq!(denial("host:vm-2", alice()).await, denial("host:vm-9", alice()).await);
    let root = || caller(Role::Administrator, "root");
    assert_eq!(denial("host:vm-9", root()).await.0, PolicyLimit::Target, "an administrator learns it");
}

#[tokio::test]
async fn i7_a_requester_does_not_read_a_clouds_own_error() {
    let test = TestApp::under([a_policy().on(VM).layers(Layers::Cloud).build()]).await;
    test.cloud.outage(Some(CloudError::unavailable("arn:aws:iam::1:role/postern is throttled")));
    for (role, is_shown) in [(Role::Requester, false), (Role::Administrator, true)] {
        let refused = request(&test.app, &caller(role, "alice"), ask(VM, "tcp/22", "192.0.2.7", 60)).await;
        let Err(Error::Unavailable { reason }) = refused else { panic!("{refused:?}") };
        assert!(reason.contains(VM) && reason.contains("arn:aws") == is_shown, "{role}: {reason}");
    }
}

#[tokio::test]
async fn i4_what_is_not_durable_is_not_granted() {
    for fault in [Fault::Before, Fault::Full] {
        let test = TestApp::under([office()]).await;
        test.store.fail_next([fault]);
        let outcome = request(&test.app, &alice(), keyed("k", usual())).await;
        assert!(matches!(outcome, Err(Error::Store(_))), "{fault:?}: {outcome:?}");
        assert!(everything(&test).await.is_empty() && test.woken().await.is_empty(), "{fault:?}");
        assert!(test.audited("grant.requested").await.is_empty(), "{fault:?}");
        // A denial that cannot be written down is no grant. Where the store only has no room, the denial is counted.
        test.store.fail_next([fault]);
        let outcome = request(&test.app, &caller(Role::Requester, "carol"), usual()).await;
        let is_denied = matches!(outcome, Err(Error::Denied(_)));
        let is_failed = matches!(outcome, Err(Error::Store(StoreError::Unavailable { .. })));
        assert!(if matches!(fault, Fault::Full) { is_denied } else { is_failed }, "{fault:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn i8_a_repeated_key_is_answered_with_the_grant_that_it_made() {
    let test = TestApp::under([office()]).await;
    let first = request(&test.app, &alice(), keyed("k", usual())).await.unwrap();
    test.woken().await;
    let again = request(&test.app, &alice(), keyed("k", usual())).await.unwrap();
    assert!(!first.repeated && again.repeated);
    assert_eq!(first.grant, again.grant);
    assert_eq!((everything(&test).await.len(), test.audited("grant.requested").await.len()), (1, 1));

    let bob = request(&test.app, &caller(Role::Requester, "bob"), keyed("k", usual())).await.unwrap();
    assert!(!bob.repeated, "a key is its principal's own");
    let unkeyed = request(&test.app, &alice(), usual()).await.unwrap();
    assert_ne!(unkeyed.grant.id, first.grant.id);
}

#[tokio::test]
async fn i8_a_key_of_another_request_is_refused() {
    let test = TestApp::under([office()]).await;
    request(&test.app, &alice(), keyed("k", usual())).await.unwrap();
    for asked in [
        ask("host:vm-1", "tcp/22", "192.0.2.7", 61),
        ask("host:vm-1", "tcp/22", "192.0.2.8", 60),
        ask("host:vm-2", "tcp/22", "192.0.2.7", 60),
        ask("host:vm-1", "tcp/23", "192.0.2.7", 60),
        asked(&["host:vm-1", "host:vm-2"], "tcp/22", "192.0.2.7", 60, "a test"),
        asked(&["host:vm-1"], "tcp/22", "192.0.2.7", 60, "another reason"),
    ] {
        let outcome = request(&test.app, &alice(), keyed("k", asked)).await;
        let Err(Error::Invalid(invalid)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(invalid.field, "idempotency_key");
    }
    assert_eq!(everything(&test).await.len(), 1);
}

#[tokio::test]
async fn i8_a_request_from_both_addresses_of_its_caller_is_repeated_after_it_was_narrowed_to_one() {
    let from = |sources: &[&str]| {
        let request = AccessRequest::new(
            vec!["host:vm-1".parse().unwrap()],
            vec!["tcp/22".parse().unwrap()],
            sources.iter().map(|source| source.parse().unwrap()).collect(),
            Duration::from_secs(60),
            Justification::new("a test").unwrap(),
        );
        let request = request.unwrap();
        keyed("k", KeyedRequest { request, idempotency_key: None, is_from_caller: true })
    };
    let test = TestApp::under([office()]).await;
    let first = request(&test.app, &alice(), from(&["2001:db8::7", "192.0.2.7"])).await.unwrap();
    let granted: Vec<String> = first.grant.windows.iter().map(|window| window.source.to_string()).collect();
    assert_eq!(granted, ["192.0.2.7/32"], "the policy allows no other");
    // The answer was lost: the same again, over the other family, and over one family alone.
    for sources in [&["2001:db8::7", "192.0.2.7"][..], &["192.0.2.7", "2001:db8::7"], &["192.0.2.7"]] {
        let again = request(&test.app, &alice(), from(sources)).await.unwrap();
        assert!(again.repeated && again.grant == first.grant, "{sources:?}");
    }
    let named = KeyedRequest { is_from_caller: false, ..from(&["192.0.2.7", "192.0.2.8"]) };
    for asked in [named, from(&["192.0.2.8"]), from(&["2001:db8::7"])] {
        let refused = request(&test.app, &alice(), asked).await;
        assert!(matches!(&refused, Err(Error::Invalid(invalid)) if invalid.field == "idempotency_key"));
    }
    assert_eq!(everything(&test).await.len(), 1);
}

#[tokio::test]
async fn i8_the_key_finds_a_lost_answer_and_wakes_the_reconciler() {
    let test = TestApp::under([office()]).await;
    test.store.fail_next([Fault::After]);
    assert!(request(&test.app, &alice(), keyed("k", usual())).await.is_err());
    test.woken().await;
    let again = request(&test.app, &alice(), keyed("k", usual())).await.unwrap();
    assert!(again.repeated);
    assert_eq!(test.woken().await.len(), 1, "the reconciler may not know of it");
    assert_eq!(test.audited("grant.requested").await.len(), 1);

    test.store.fail_next([Fault::After]);
    assert!(revoke(&test.app, &alice(), again.grant.id, None).await.is_err());
    test.woken().await;
    let revoked = revoke(&test.app, &alice(), again.grant.id, None).await.unwrap();
    assert_eq!(revoked.state.word(), "closing");
    assert_eq!(test.woken().await.len(), 1);
    assert_eq!(test.audited("grant.revoked").await.len(), 1);
}

#[tokio::test]
async fn i4_what_a_repeated_call_finds_is_no_answer_before_it_is_durable() {
    let test = TestApp::under([office()]).await;
    let is_refused = |outcome: Result<(), Error>| {
        assert!(matches!(outcome, Err(Error::Store(StoreError::Unavailable { .. }))), "{outcome:?}");
    };
    let confirm = async || {
        let event = AuditEvent::done(test.app.clock.now(), "a test", "tested");
        test.store.commit(Transaction::default().audit(event)).await.unwrap();
    };
    test.store.fail_next([Fault::Unconfirmed]);
    for _ in 0..2 {
        is_refused(request(&test.app, &alice(), keyed("k", usual())).await.map(drop));
    }
    confirm().await;
    let found = request(&test.app, &alice(), keyed("k", usual())).await.unwrap();
    assert!(found.repeated);

    test.store.fail_next([Fault::Unconfirmed]);
    for _ in 0..2 {
        is_refused(revoke(&test.app, &alice(), found.grant.id, None).await.map(drop));
    }
    confirm().await;
    let closing = revoke(&test.app, &alice(), found.grant.id, None).await.unwrap();
    assert_eq!(closing.state.word(), "closing");

    // The reconciler's commit is not durable yet: the grant that waited for it shows nothing of it.
    let closed = closing.after(Event::ClosedEverywhere, test.app.clock.now()).unwrap();
    let event = AuditEvent::done(test.app.clock.now(), "a test", "grant.closed");
    test.store.fail_next([Fault::Unconfirmed]);
    test.store.commit(Transaction::default().put_grant(closed, Expect::Any).audit(event)).await.unwrap_err();
    is_refused(settled(&test.app, closing.clone(), Duration::from_secs(1)).await.map(drop));
    is_refused(revoke(&test.app, &alice(), closing.id, None).await.map(drop));
    confirm().await;
    assert_eq!(settled(&test.app, closing, Duration::ZERO).await.unwrap().state.word(), "closed");
}

#[tokio::test]
async fn i9_a_cloud_that_no_broker_drives_is_refused_and_audited() {
    let azure = "azure:/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v";
    let under = |target: &str| a_policy().on(target).layers(Layers::Cloud).build();
    let test = TestApp::under([under(azure)]).await;
    let refused = request(&test.app, &alice(), ask(azure, "tcp/22", "192.0.2.7", 60)).await;
    assert!(matches!(refused, Err(Error::Precondition { .. })), "{refused:?}");
    let audited = test.audited("grant.requested").await;
    assert_eq!(audited, [("requester/alice".into(), Outcome::Denied, "CLOUD_NOT_DRIVEN".into())]);
    let test = TestApp::under([under(VM)]).await;
    request(&test.app, &alice(), ask(VM, "tcp/22", "192.0.2.7", 60)).await.unwrap();
}

#[tokio::test]
async fn i7_a_cloud_decides_after_the_policies_and_its_refusal_is_audited() {
    let test =
        TestApp::under([a_policy().named("cloud").on(VM).layers(Layers::Both).build(), office()]).await;
    let token = |text| Some(CallerToken::new(text).unwrap());
    let (good, bad) = (token("good"), token("bad"));
    test.cloud.allow_only(good.clone().unwrap());
    let wish = || ask(VM, "tcp/22", "192.0.2.7", 60);
    for token in [None, bad.clone()] {
        let refused = request(&test.app, &Caller { token, ..alice() }, wish()).await;
        let Err(Error::Forbidden { reason }) = refused else { panic!("{refused:?}") };
        assert!(reason.contains(VM) && reason.contains("may not") && !reason.contains("bad"), "{reason}");
    }
    let audited = test.audited("grant.requested").await;
    let denied = ("requester/alice".to_owned(), Outcome::Denied, "NOT_ALLOWED_BY_CLOUD".to_owned());
    assert_eq!(audited, [denied.clone(), denied]);
    assert!(everything(&test).await.is_empty(), "nothing is kept of what was refused");

    // No cloud is asked about a request that the policies deny, nor about windows of the host layer alone.
    let caller = Caller { token: bad, ..alice() };
    let denied = request(&test.app, &caller, ask(VM, "tcp/23", "192.0.2.7", 60)).await;
    assert!(matches!(denied, Err(Error::Denied(_))), "{denied:?}");
    request(&test.app, &caller, usual()).await.unwrap();

    let caller = Caller { token: good, ..alice() };
    request(&test.app, &caller, wish()).await.unwrap();
    // A cloud that does not answer decides nothing: nothing opens, and no caller is denied.
    test.cloud.outage(Some(CloudError::unavailable("a test")));
    let before = test.events().await.len();
    let unanswered = request(&test.app, &caller, wish()).await;
    assert!(matches!(&unanswered, Err(Error::Unavailable { .. })), "{unanswered:?}");
    assert_eq!((test.events().await.len(), everything(&test).await.len()), (before, 2));
}

#[tokio::test]
async fn i7_a_grant_is_revoked_by_its_principal_and_by_administrators_and_each_try_is_audited() {
    use Role::{Administrator, Requester};
    for (role, who, may) in
        [(Requester, "alice", true), (Administrator, "root", true), (Requester, "bob", false)]
    {
        let test = TestApp::under([office()]).await;
        let id = request(&test.app, &alice(), usual()).await.unwrap().grant.id;
        test.woken().await;
        let why = Justification::new("done").ok();
        let outcome = revoke(&test.app, &caller(role, who), id, why).await;
        let word = everything(&test).await[0].record.state.word();
        let expected = if may { (Outcome::Done, "done") } else { (Outcome::Denied, "NOT_THE_CALLERS") };
        let audited = (format!("{role}/{who}"), expected.0, expected.1.to_owned());
        assert_eq!(test.audited("grant.revoked").await, [audited]);
        assert_eq!(test.woken().await.len(), usize::from(may), "{who}");
        if may {
            assert_eq!((outcome.unwrap().state.word(), word), ("closing", "closing"), "{who}");
        } else {
            assert!(matches!(outcome, Err(Error::NotFound { .. })), "{who} learns nothing: {outcome:?}");
            assert_eq!(word, "opening", "{who}");
        }
    }
    let test = TestApp::under([office()]).await;
    let unknown = GrantId::from_parts(test.app.clock.now(), 1);
    let outcome = revoke(&test.app, &alice(), unknown, None).await;
    assert!(matches!(outcome, Err(Error::NotFound { .. })));
    assert!(test.audited("grant.revoked").await.is_empty(), "there was nothing to decide");
}

#[tokio::test]
async fn i8_revoking_twice_is_revoking_once_and_a_closed_grant_stays_as_it_ended() {
    let test = TestApp::under([office()]).await;
    let id = request(&test.app, &alice(), usual()).await.unwrap().grant.id;
    let first = revoke(&test.app, &alice(), id, None).await.unwrap();
    let second = revoke(&test.app, &caller(Role::Administrator, "root"), id, None).await.unwrap();
    assert_eq!(first, second, "it was alice who revoked it");
    assert_eq!(test.audited("grant.revoked").await.len(), 1);

    let closed = first.after(Event::ClosedEverywhere, test.app.clock.now()).unwrap();
    let event = AuditEvent::done(test.app.clock.now(), "a test", "grant.closed");
    test.store.commit(Transaction::default().put_grant(closed, Expect::Any).audit(event)).await.unwrap();
    let outcome = revoke(&test.app, &alice(), id, None).await;
    assert!(matches!(outcome, Err(Error::Illegal(_))), "{outcome:?}");
}

#[tokio::test]
async fn i8_a_revocation_that_meets_another_change_is_tried_again() {
    let test = TestApp::under([office()]).await;
    let id = request(&test.app, &alice(), usual()).await.unwrap().grant.id;
    test.store.fail_next([Fault::Conflict; MAX_ATTEMPTS]);
    let outcome = revoke(&test.app, &alice(), id, None).await;
    assert!(matches!(outcome, Err(Error::Precondition { .. })), "{outcome:?}");
    test.store.fail_next([Fault::Conflict; MAX_ATTEMPTS - 1]);
    assert_eq!(revoke(&test.app, &alice(), id, None).await.unwrap().state.word(), "closing");
}

#[tokio::test]
async fn i7_a_requester_sees_its_own_grants_and_the_other_roles_see_all() {
    let test = TestApp::under([office()]).await;
    let own = request(&test.app, &alice(), usual()).await.unwrap().grant.id;
    let bobs = request(&test.app, &caller(Role::Requester, "bob"), usual()).await.unwrap().grant.id;
    let nothing = GrantFilter::default();
    for (role, who, sees_own, sees_bobs) in [
        (Role::Requester, "alice", true, false),
        (Role::Requester, "bob", false, true),
        (Role::Requester, "carol", false, false),
        (Role::Reader, "carol", true, true),
        (Role::Administrator, "carol", true, true),
    ] {
        let caller = caller(role, who);
        let listed = async |filter: GrantFilter| {
            let (grants, _) = list_grants(&test.app, &caller, &filter, 10, None).await.unwrap();
            grants.into_iter().map(|grant| grant.id).collect::<Vec<_>>()
        };
        let all = listed(nothing.clone()).await;
        for (id, sees, owner) in [(own, sees_own, "alice"), (bobs, sees_bobs, "bob")] {
            assert_eq!(visible(&test.app, &caller, id).await.is_ok(), sees, "{role}/{who}");
            assert_eq!(all.contains(&id), sees, "{role}/{who}");
            let by_id = listed(GrantFilter { grant: Some(id), ..nothing.clone() }).await;
            let by_name = listed(GrantFilter { principal: Some(key(owner)), ..nothing.clone() }).await;
            assert_eq!((by_id.len(), by_name.len()), (usize::from(sees), usize::from(sees)), "{role}/{who}");
        }
    }
}

#[tokio::test]
async fn a_listing_is_read_page_by_page_without_a_gap() {
    let test = TestApp::under([office()]).await;
    for source in 1..=5 {
        request(&test.app, &alice(), ask("host:vm-1", "tcp/22", &format!("192.0.2.{source}"), 60))
            .await
            .unwrap();
    }
    let filter = GrantFilter::default();
    let (mut read, mut before, mut pages) = (Vec::new(), None, 0);
    loop {
        let (page, next) = list_grants(&test.app, &alice(), &filter, 2, before).await.unwrap();
        read.extend(page);
        pages += 1;
        let Some(next) = next else { break };
        before = Some(next);
    }
    let mut kept: Vec<Grant> = everything(&test).await.into_iter().map(|kept| kept.record).collect();
    kept.sort_by_key(|grant| std::cmp::Reverse(grant.id));
    assert_eq!((read, pages), (kept, 3));
}

#[tokio::test]
async fn i7_a_decision_holds_only_while_its_policies_stay_as_it_read_them() {
    let other = || a_policy().named("other").on("host:vm-9").build();
    let usual = usual();
    let changed = || {
        let mut policy = office();
        policy.ports[0].max_duration = Duration::from_secs(30);
        policy
    };
    let root = || caller(Role::Administrator, "root");
    for (what, is_made) in [("deleted", false), ("put again", false), ("another is put", true)] {
        let test = TestApp::under([office()]).await;
        let entered = test.app.deciding.enter(alice().principal.key(), &usual.request);
        let Ok(decided) = decide(&test.app, &alice(), &usual, &entered).await.unwrap() else {
            panic!("the policy allows it")
        };
        let name = office().name;
        match what {
            "deleted" => {
                crate::app::policies::delete(&test.app, &root(), &name).await.unwrap();
            }
            "put again" => {
                crate::app::policies::put(&test.app, &root(), changed(), None).await.unwrap();
            }
            _ => {
                crate::app::policies::put(&test.app, &root(), other(), None).await.unwrap();
            }
        }
        let usual = usual.clone();
        let committed = commit(&test.app, &alice(), &usual, decided).await;
        assert!(
            is_made || matches!(committed, Err(Error::Store(StoreError::Conflict { .. }))),
            "{committed:?}"
        );
        assert_eq!(
            (committed.is_ok(), everything(&test).await.len()),
            (is_made, usize::from(is_made)),
            "{what}"
        );
    }
}

#[tokio::test]
async fn i7_a_request_is_decided_again_after_a_conflict() {
    let test = TestApp::under([office()]).await;
    test.store.fail_next([Fault::Conflict; MAX_ATTEMPTS]);
    let outcome = request(&test.app, &alice(), usual()).await;
    assert!(matches!(outcome, Err(Error::Store(StoreError::Conflict { .. }))), "{outcome:?}");
    assert!(everything(&test).await.is_empty());
    test.store.fail_next([Fault::Conflict; MAX_ATTEMPTS - 1]);
    request(&test.app, &alice(), usual()).await.unwrap();
    assert_eq!(everything(&test).await.len(), 1);
}

#[tokio::test]
async fn i7_the_internet_is_not_to_be_had_in_parts() {
    let choose = || a_policy().named("choose").on("host:vm-1").build();
    let half = |source| ask("host:vm-1", "tcp/22", source, 60);
    let is_denied = |outcome: &Result<Requested, Error>| match outcome {
        Err(Error::Denied(denial)) => denial.limit.reason() == "SOURCE_NOT_ALLOWED",
        _ => false,
    };
    let test = TestApp::under([choose()]).await;
    for source in ["0.0.0.0/1", "128.0.0.0/1", "::/1"] {
        assert!(is_denied(&request(&test.app, &alice(), half(source)).await), "{source}");
    }
    let first = request(&test.app, &alice(), half("203.0.0.0/16")).await.unwrap();
    assert!(is_denied(&request(&test.app, &alice(), half("203.1.0.0/16")).await));
    request(&test.app, &caller(Role::Requester, "bob"), half("203.1.0.0/16")).await.unwrap();
    // What is closing may still be open.
    revoke(&test.app, &alice(), first.grant.id, None).await.unwrap();
    assert!(is_denied(&request(&test.app, &alice(), half("203.1.0.0/16")).await));

    // Of requests at the same moment that are too wide together the first is allowed.
    let test = TestApp::under([choose()]).await;
    let parts = ["9.0.0.0/16", "203.0.0.0/16", "203.1.0.0/16"];
    let at_once = parts.map(|part| async { request(&test.app, &alice(), half(part)).await.is_ok() });
    assert_eq!(futures_util::future::join_all(at_once).await, [true, false, false]);

    let test = TestApp::under([choose()]).await;
    let entered = test.app.deciding.enter(alice().principal.key(), &half("203.4.0.0/16").request);
    assert!(is_denied(&request(&test.app, &alice(), half("203.5.0.0/16")).await));
    drop(entered);
    request(&test.app, &alice(), half("203.5.0.0/16")).await.unwrap();
}

#[tokio::test]
async fn i7_a_grant_that_may_have_left_the_store_is_not_found_with_the_reason() {
    let test = TestApp::new();
    let id = |days_ago: i64| {
        GrantId::from_parts(test.app.clock.now() - jiff::SignedDuration::from_hours(24 * days_ago), 7)
    };
    let shown =
        async |id| visible(&test.app, &caller(Role::Requester, "alice"), id).await.unwrap_err().to_string();
    let (old, young) = (shown(id(91)).await, shown(id(89)).await);
    assert!(
        old.contains("90 days") && old.contains("[retention] grants") && old.contains("audit log"),
        "{old}"
    );
    assert!(!young.contains("retention") && young.contains("does not exist"), "{young}");
}
