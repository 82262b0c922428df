//! Revoking and listing, over a store in memory.

use std::time::Duration;

use postern_core::audit::Outcome;
use postern_core::{AccessRequest, Principal, Role};
use postern_store::IssuedCertificate;
use postern_store::testing::memory::Fault;

use super::*;
use crate::app::access::KeyedRequest;
use crate::principals::{Issuance, IssuedEntry, Revocations, with_issued};
use crate::testing::builders::{a_policy, key, name};
use crate::testing::{TestApp, caller};

fn admin() -> Caller {
    caller(Role::Administrator, "root")
}

fn alice() -> Caller {
    caller(Role::Requester, "alice")
}

fn asked(proof: RevokedProof) -> RevocationRequest {
    let reason = Some(Justification::new("left the company").unwrap());
    RevocationRequest { proof, reason, keep_grants: false, allow_self: false }
}

fn of(who: &str) -> RevocationRequest {
    asked(RevokedProof::Principal(key(who)))
}

fn serial(digits: &str) -> CertificateSerial {
    CertificateSerial::new(digits).unwrap()
}

fn of_serial(digits: &str) -> RevocationRequest {
    asked(RevokedProof::Certificate(serial(digits)))
}

async fn open(test: &TestApp, caller: &Caller) -> Result<GrantId, Error> {
    let request = AccessRequest::new(
        vec!["host:vm-1".parse().unwrap()],
        vec!["tcp/22".parse().unwrap()],
        vec!["192.0.2.7".parse().unwrap()],
        Duration::from_secs(60),
        Justification::new("a test").unwrap(),
    );
    let asked = KeyedRequest { request: request.unwrap(), idempotency_key: None, is_from_caller: false };
    access::request(&test.app, caller, asked).await.map(|requested| requested.grant.id)
}

async fn issue(test: &TestApp, role: Role, who: &str, digits: &str, at: jiff::Timestamp) {
    let certificate =
        IssuedCertificate { serial: serial(digits), issued_at: at, not_after: at + Duration::from_secs(60) };
    let entry = IssuedEntry { principal: Principal::local(role, name(who)), certificate };
    let changes = with_issued(&test.store, &entry).await.unwrap().unwrap();
    let event = AuditEvent::done(test.app.clock.now(), "a test", "principal.issued");
    test.store.commit(changes.audit(event)).await.unwrap();
}

/// The same principal with a certificate that is issued later.
fn later(caller: &Caller) -> Caller {
    let issuance = Issuance { at: caller.issuance.at + Duration::from_secs(5), serial: None };
    Caller { issuance, ..caller.clone() }
}

async fn state(test: &TestApp, id: GrantId) -> &'static str {
    test.store.grant(id).await.unwrap().unwrap().record.state.word()
}

#[tokio::test]
async fn i7_a_revocation_closes_the_grants_of_its_principal_alone_and_is_audited() {
    let (test, alice) = (TestApp::under([a_policy().build()]).await, alice());
    let (own, other) =
        (open(&test, &alice).await.unwrap(), open(&test, &caller(Role::Requester, "bob")).await.unwrap());
    test.woken().await;
    let revoked = revoke(&test.app, &admin(), &of("alice")).await.unwrap();
    assert_eq!(revoked.closed, [own]);
    assert_eq!((state(&test, own).await, state(&test, other).await), ("closing", "opening"));
    assert_eq!(test.woken().await.len(), 1, "the layers close at once");
    let by_admin = ("administrator/root".to_owned(), Outcome::Done, "left the company".to_owned());
    assert_eq!(test.audited("principal.revoked").await, std::slice::from_ref(&by_admin));
    assert_eq!(test.audited("grant.revoked").await, [by_admin]);

    assert!(matches!(open(&test, &alice).await, Err(Error::Revoked)));
    let again = open(&test, &later(&alice)).await.unwrap();
    assert_eq!(state(&test, again).await, "opening", "a certificate that is issued later is good");
}

#[tokio::test]
async fn a_revocation_may_keep_the_grants() {
    let (test, alice) = (TestApp::under([a_policy().build()]).await, alice());
    let own = open(&test, &alice).await.unwrap();
    let keep = RevocationRequest { keep_grants: true, ..of("alice") };
    let revoked = revoke(&test.app, &admin(), &keep).await.unwrap();
    assert_eq!((revoked.closed.len(), state(&test, own).await), (0, "opening"));
    assert!(matches!(open(&test, &alice).await, Err(Error::Revoked)));
    // The same without it closes them.
    assert_eq!(revoke(&test.app, &admin(), &of("alice")).await.unwrap().closed, [own]);
}

#[tokio::test]
async fn i7_a_request_that_another_brokers_revocation_overtakes_leaves_no_grant() {
    let (test, alice) = (TestApp::under([a_policy().build()]).await, alice());
    // Another broker has revoked her, and this one does not know it yet.
    let by = Principal::local(Role::Administrator, name("root"));
    let at = wall() + Duration::from_secs(1);
    let revocation = Revocation { proof: RevokedProof::Principal(key("alice")), by, at, reason: None };
    let event = AuditEvent::done(test.app.clock.now(), "another", "principal.revoked");
    let changes = Transaction::default().put_revocation(revocation, Expect::Absent);
    test.store.commit(changes.audit(event)).await.unwrap();
    assert!(matches!(open(&test, &alice).await, Err(Error::Revoked)));
    assert!(test.store.open_grants().await.unwrap().is_empty());
    open(&test, &caller(Role::Requester, "bob")).await.unwrap();
    open(&test, &later(&alice)).await.unwrap();
}

#[tokio::test]
async fn i8_a_repeated_revocation_does_what_the_first_left_undone() {
    let (test, alice) = (TestApp::under([a_policy().build()]).await, alice());
    let own = open(&test, &alice).await.unwrap();
    // The revocation is durable, and the store is full before the grant closes.
    test.store.fail_next([Fault::Nothing, Fault::Full]);
    revoke(&test.app, &admin(), &of("alice")).await.unwrap_err();
    assert!(matches!(open(&test, &alice).await, Err(Error::Revoked)));
    let first = test.store.revocation(&of("alice").proof).await.unwrap().unwrap();
    assert_eq!(revoke(&test.app, &admin(), &of("alice")).await.unwrap().closed, [own]);
    let second = test.store.revocation(&of("alice").proof).await.unwrap().unwrap();
    assert!(second.record.at > first.record.at && second.version == first.version + 1);
    // A lost answer.
    test.store.fail_next([Fault::After]);
    revoke(&test.app, &admin(), &of("alice")).await.unwrap_err();
    assert!(revoke(&test.app, &admin(), &of("alice")).await.unwrap().closed.is_empty());
    // A certificate is revoked once, however often.
    revoke(&test.app, &admin(), &of_serial("0b")).await.unwrap();
    revoke(&test.app, &admin(), &of_serial("0b")).await.unwrap();
    let records = test.audited("principal.revoked").await;
    assert_eq!(records.len(), 5, "four of the principal, and one of the certificate");
}

#[tokio::test]
async fn i7_a_revocation_that_was_lost_or_forged_is_made_again_on_brokers_that_run() {
    for is_forged in [false, true] {
        let (test, other) = (TestApp::under([a_policy().build()]).await, Revocations::default());
        for _ in 0..3 {
            revoke(&test.app, &admin(), &of("alice")).await.unwrap();
        }
        other.read(&test.app.store).await.unwrap();
        let of_alice = of("alice").proof.to_string();
        if is_forged {
            drop(test.store.tamper(Revocation::KIND, &of_alice, |text| text.replacen('{', "{ ", 1)));
        } else {
            test.store.lose(Revocation::KIND, &of_alice);
        }
        for broker in [&*test.app.revocations, &other] {
            broker.read(&test.app.store).await.unwrap();
        }
        let issued = Issuance { at: wall(), serial: None };
        revoke(&test.app, &admin(), &of("alice")).await.unwrap();
        other.read(&test.app.store).await.unwrap();
        let kept = test.store.revocation(&of("alice").proof).await.unwrap().unwrap().version;
        assert_eq!(kept, if is_forged { 4 } else { 1 });
        for broker in [&*test.app.revocations, &other] {
            assert!(broker.cover(&key("alice"), &issued), "{is_forged}");
            assert_eq!(broker.as_known(&key("alice")), Expect::Version(kept));
        }
        // A later proof of hers gets grants, also from a broker that has known the lost revocation.
        let caller = later(&alice());
        open(&test, &caller).await.unwrap();
    }
}

#[tokio::test]
async fn i4_a_revocation_that_is_not_durable_is_no_answer() {
    for asked in [of("alice"), of_serial("0b")] {
        let test = TestApp::new();
        test.store.fail_next([Fault::Full]);
        assert!(matches!(revoke(&test.app, &admin(), &asked).await, Err(Error::Store(StoreError::Full(_)))));
        test.store.fail_next([Fault::Unconfirmed, Fault::Unconfirmed]);
        for _ in 0..2 {
            let outcome = revoke(&test.app, &admin(), &asked).await;
            assert!(matches!(outcome, Err(Error::Store(StoreError::Unavailable { .. }))), "{outcome:?}");
        }
    }
}

#[tokio::test]
async fn i7_a_caller_revokes_its_own_proof_only_if_it_says_so() {
    let test = TestApp::new();
    let mut root = admin();
    root.issuance.serial = Some(serial("0a"));
    for asked in [of("root"), of_serial("0a")] {
        let refused = revoke(&test.app, &root, &asked).await;
        let Err(Error::Precondition { reason }) = refused else { panic!("{refused:?}") };
        assert!(reason.contains("--allow-self"), "{reason}");
        assert!(!test.app.revocations.cover(root.principal.key(), &root.issuance));
    }
    let meant = RevocationRequest { allow_self: true, ..of("root") };
    revoke(&test.app, &root, &meant).await.unwrap();
    assert!(test.app.revocations.cover(root.principal.key(), &root.issuance));
}

#[tokio::test]
async fn i7_a_certificate_of_a_clock_that_was_ahead_is_revoked_with_its_principal() {
    let test = TestApp::new();
    let ahead = wall() + Duration::from_secs(86_400);
    issue(&test, Role::Requester, "alice", "0c", ahead).await;
    let revoked = revoke(&test.app, &admin(), &of("alice")).await.unwrap();
    assert!(revoked.principal.as_ref().is_some_and(KnownPrincipal::is_revoked));
    assert_eq!(revoked.revocation.at, ahead, "the revocation holds from the newest certificate on");
    let covers = |at, digits| {
        test.app.revocations.cover(&key("alice"), &Issuance { at, serial: Some(serial(digits)) })
    };
    let soon = ahead + Duration::from_secs(1);
    assert!(covers(ahead, "0c") && covers(wall(), "0d") && !covers(soon, "0d"));
    assert!(list(&test.app, 9, None).await.unwrap().certificates.is_empty());
}

#[tokio::test]
async fn i7_one_grant_that_cannot_close_keeps_no_other_one_open() {
    let (test, alice) = (TestApp::under([a_policy().build()]).await, alice());
    let mut own = Vec::new();
    for _ in 0..20 {
        own.push(open(&test, &alice).await.unwrap());
    }
    // The revocation is durable, and the first close fails.
    test.store.fail_next([Fault::Nothing, Fault::Before]);
    let error = revoke(&test.app, &admin(), &of("alice")).await.unwrap_err();
    assert!(matches!(error, Error::Store(StoreError::Unavailable { .. })), "{error:?}");
    let mut states = Vec::new();
    for id in own {
        states.push(state(&test, id).await);
    }
    assert_eq!(states.iter().filter(|state| **state == "closing").count(), 19, "{states:?}");
}

#[tokio::test]
async fn i10_a_revocation_reads_one_principal() {
    let test = TestApp::new();
    issue(&test, Role::Reader, "rita", "02", wall()).await;
    issue(&test, Role::Reader, "rita", "03", wall() + Duration::from_secs(1)).await;
    let before = test.store.reads_of(Revocation::KIND);
    for asked in [of("rita"), of_serial("02"), of_serial("03")] {
        let revoked = revoke(&test.app, &admin(), &asked).await.unwrap();
        assert_eq!(revoked.principal.as_ref().map(|known| &known.key), Some(&key("rita")), "{asked:?}");
    }
    let unknown = revoke(&test.app, &admin(), &of_serial("04")).await.unwrap();
    assert_eq!((&unknown.principal, test.store.reads_of(Revocation::KIND)), (&None, before));
}

#[tokio::test]
async fn principals_are_listed_with_what_the_broker_knows_of_them() {
    let test = TestApp::under([a_policy().build()]).await;
    let now = wall();
    issue(&test, Role::Requester, "alice", "01", now).await;
    issue(&test, Role::Reader, "rita", "02", now).await;
    issue(&test, Role::Administrator, "rita", "03", now).await;
    open(&test, &caller(Role::Requester, "bob")).await.unwrap();
    let unknown = revoke(&test.app, &admin(), &of("zoe")).await.unwrap();
    assert_eq!(
        unknown.principal.as_ref().map(|known| (known.roles.len(), known.certificates.len())),
        Some((0, 0))
    );
    let known = revoke(&test.app, &admin(), &of_serial("02")).await.unwrap();
    assert_eq!(known.principal.as_ref().map(|known| &known.key), Some(&key("rita")));

    let shown = |known: &KnownPrincipal| {
        let revoked =
            known.certificates.iter().map(|(role, _, revoked)| (*role, *revoked)).collect::<Vec<_>>();
        (known.key.to_text(), revoked, known.open_grants, known.is_revoked())
    };
    revoke(&test.app, &admin(), &of_serial("04")).await.unwrap();
    let first = list(&test.app, 3, None).await.unwrap();
    let expected = [
        ("alice".to_owned(), vec![(Role::Requester, false)], 0, false),
        ("bob".to_owned(), vec![], 1, false),
        ("rita".to_owned(), vec![(Role::Administrator, false), (Role::Reader, true)], 0, false),
    ];
    assert_eq!(first.principals.iter().map(shown).collect::<Vec<_>>(), expected);
    assert!(first.certificates.is_empty());
    // The certificates that were revoked alone come after the principals, and count like them.
    let serials = |page: &PrincipalsPage| {
        page.certificates.iter().map(|(serial, _)| serial.to_string()).collect::<Vec<_>>()
    };
    let second = list(&test.app, 2, first.next.as_deref()).await.unwrap();
    assert_eq!(
        second.principals.iter().map(shown).collect::<Vec<_>>(),
        [("zoe".to_owned(), vec![], 0, true)]
    );
    assert_eq!(serials(&second), ["02"]);
    let third = list(&test.app, 2, second.next.as_deref()).await.unwrap();
    assert_eq!((third.principals.len(), serials(&third), third.next), (0, vec!["04".to_owned()], None));
    let all = list(&test.app, 6, None).await.unwrap();
    assert_eq!((all.principals.len(), all.certificates.len(), all.next), (4, 2, None));
}

#[tokio::test]
async fn i10_a_principal_whose_records_are_forged_can_be_revoked() {
    let test = TestApp::under([a_policy().build()]).await;
    issue(&test, Role::Requester, "alice", "01", wall()).await;
    let forge = |kind, key: &str| drop(test.store.tamper(kind, key, |text| text.replacen('{', "{ ", 1)));
    forge(IssuedPrincipal::KIND, &key("alice").to_string());
    let own = open(&test, &alice()).await.unwrap();
    assert_eq!(revoke(&test.app, &admin(), &of("alice")).await.unwrap().closed, [own]);
    forge(Revocation::KIND, &RevokedProof::Principal(key("alice")).to_string());
    revoke(&test.app, &admin(), &of_serial("01")).await.unwrap();
    revoke(&test.app, &admin(), &of("alice")).await.unwrap();
    assert!(test.store.revocation(&RevokedProof::Principal(key("alice"))).await.unwrap().is_some());
}
