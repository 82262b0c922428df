//! Joining, renewing and banning, with real certificates.

mod authority;
mod forgetting;
mod keys;

use postern_core::Role;
use postern_core::audit::{Head, Outcome};
use postern_core::checkpoint::Checkpoint;
use postern_pki::KeyPair;
use postern_pki::purpose::signer_keys;
use postern_store::testing::memory::Fault;

use super::*;
use crate::clock::boottime;
use crate::layers::host::desired_state::Outgoing;
use crate::limits::Limits;
use crate::testing::{TestApp, caller};

fn admin() -> Caller {
    caller(Role::Administrator, "root")
}

fn vm() -> TargetId {
    "host:vm-1".parse().unwrap()
}

fn csr() -> Vec<u8> {
    KeyPair::generate().unwrap().csr().unwrap()
}

async fn a_token(test: &TestApp) -> String {
    create_token(&test.app, &admin(), vm(), None).await.unwrap().0.to_text()
}

/// Enrols the agent of `host:vm-1`.
async fn enrolled(test: &TestApp) -> Issued {
    let token = a_token(test).await;
    enroll(&test.app, &token, &csr()).await.unwrap().1
}

/// The agent of `host:vm-1` with this certificate.
fn with(issued: &Issued) -> AgentCaller {
    AgentCaller {
        target: vm(),
        key: key_hash(&issued.chain[0]).unwrap(),
        certificate_issued_at: wall(),
        certificate_not_after: issued.not_after,
        signers: signer_keys(&issued.chain[0], &issued.chain[1..]).unwrap(),
        address: Some([192, 0, 2, 10].into()),
    }
}

/// The name of the agent of `host:vm-1` in the audit log.
fn caller_name() -> String {
    "agent/host:vm-1".to_owned()
}

/// The holder of a certificate of `host:vm-1` that the record does not know.
fn unknown() -> AgentCaller {
    AgentCaller {
        target: vm(),
        key: KeyHash::of(b"another key"),
        certificate_issued_at: Timestamp::UNIX_EPOCH,
        certificate_not_after: Timestamp::UNIX_EPOCH,
        signers: Vec::new(),
        address: Some([192, 0, 2, 66].into()),
    }
}

/// Starts a session on a boot of the machine.
async fn connect_from(test: &TestApp, caller: &AgentCaller, boot: &str) -> Result<AgentSession, Error> {
    match arrive(&test.app, caller).await? {
        Arrival::Admitted(admission) => connect(&test.app, caller, *admission, "1".into(), boot).await,
        Arrival::Unrecorded => Err(Error::Forbidden { reason: "it has no record".into() }),
    }
}

/// Reports whether the broker would tell an agent to close its windows.
async fn is_unrecorded(test: &TestApp, caller: &AgentCaller) -> Result<bool, Error> {
    Ok(matches!(arrive(&test.app, caller).await?, Arrival::Unrecorded))
}

/// Starts a session on the machine's usual boot.
async fn session_of(test: &TestApp, caller: &AgentCaller) -> Result<AgentSession, Error> {
    connect_from(test, caller, "boot-1").await
}

/// Enrols the agent as if it were a while ago: an unknown key right after an enrolment is the former agent's.
async fn enrolled_long_ago(test: &TestApp) -> Issued {
    let issued = enrolled(test).await;
    change(test, |record| record.enrolled_at -= Duration::from_secs(3600)).await;
    issued
}

/// Changes the record of the agent.
async fn change(test: &TestApp, change: impl FnOnce(&mut AgentRecord)) {
    let Versioned { record: mut agent, version } = test.store.agent(&vm()).await.unwrap().unwrap();
    change(&mut agent);
    let event = AuditEvent::done(test.app.clock.now(), "a test", "a test");
    let put = Transaction::default().put_agent(agent, Expect::Version(version));
    test.store.commit(put.audit(event)).await.unwrap();
}

fn is_unproven<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Unproven { .. }))
}

fn is_forbidden<T>(outcome: &Result<T, Error>) -> bool {
    matches!(outcome, Err(Error::Forbidden { .. }))
}

#[tokio::test]
async fn i7_a_token_is_for_ten_minutes_at_most_and_the_log_never_has_it() {
    let test = TestApp::new();
    for (valid_for, fits) in [
        (None, true),
        (Some(Duration::from_secs(1)), true),
        (Some(JoinToken::MAX_VALIDITY), true),
        (Some(JoinToken::MAX_VALIDITY + Duration::from_millis(1)), false),
        (Some(Duration::from_millis(999)), false),
        (Some(Duration::ZERO), false),
    ] {
        let before = test.app.clock.now();
        let outcome = create_token(&test.app, &admin(), vm(), valid_for).await;
        assert_eq!(outcome.is_ok(), fits, "{valid_for:?}");
        let Ok((token, expires_at)) = outcome else { continue };
        assert!(expires_at >= before + valid_for.unwrap_or(JoinToken::MAX_VALIDITY));
        let secret = token.to_text().split('.').nth(1).unwrap().to_owned();
        let lines = test.store.audit_lines(0, 100).await.unwrap();
        assert!(lines.iter().all(|(_, line)| !line.contains(&secret)));
    }
    assert_eq!(test.audited("agent.invited").await.len(), 3);
}

#[tokio::test]
async fn i7_a_token_earns_one_certificate_for_the_target_that_it_names() {
    let test = TestApp::new();
    let token = a_token(&test).await;
    let (target, issued) = enroll(&test.app, &token, &csr()).await.unwrap();
    assert_eq!(target, vm());
    let identity = SpiffeId::of_certificate(&issued.chain[0], &test.app.trust_domain).unwrap();
    assert_eq!(identity, SpiffeId::Agent(vm()), "regardless of the request");
    assert_eq!(admitted(&test.app, &vm()).await.unwrap().record.certificate_not_after, issued.not_after);

    assert!(is_unproven(&enroll(&test.app, &token, &csr()).await), "it is used");
    let events = test.audited("agent.enrolled").await;
    assert_eq!(events, [("agent/host:vm-1".into(), Outcome::Done, String::new())]);
}

#[tokio::test]
async fn i7_a_token_that_is_expired_foreign_or_malformed_earns_nothing() {
    let test = TestApp::new();
    let now = test.app.clock.now();
    let stale = JoinToken::generate(test.app.authority.fingerprint()).unwrap();
    let record = TokenRecord { target: vm(), created_at: now, expires_at: now };
    let event = AuditEvent::done(now, "a test", "agent.invited");
    test.store
        .commit(Transaction::default().put_token(TokenHash(stale.hash()), record).audit(event))
        .await
        .unwrap();
    // Anyone who has had the token could fill the audit log with it otherwise (I10).
    for _ in 0..3 {
        assert!(is_unproven(&enroll(&test.app, &stale.to_text(), &csr()).await));
    }
    let denied = [("broker".into(), Outcome::Denied, "token expired".into())];
    assert_eq!(test.audited("agent.enrolled").await, denied);

    let other = TestApp::new();
    let foreign = a_token(&other).await;
    let unknown = JoinToken::generate(test.app.authority.fingerprint()).unwrap().to_text();
    let whole = a_token(&test).await;
    for token in [foreign.as_str(), &unknown, "", "postern1.a.b", &whole[..whole.len() - 1], &whole[1..]] {
        assert!(is_unproven(&enroll(&test.app, token, &csr()).await), "{token:?}");
    }
    assert_eq!(test.audited("agent.enrolled").await, denied, "an unknown caller cannot fill the log");
    assert!(test.store.agents().await.unwrap().is_empty());
    enroll(&test.app, &whole, &csr()).await.unwrap();
}

#[tokio::test]
async fn i8_only_a_good_exchange_consumes_the_token() {
    let test = TestApp::new();
    let token = a_token(&test).await;
    let refused = enroll(&test.app, &token, b"not a request").await;
    assert!(matches!(refused, Err(Error::Pki(_))), "{refused:?}");
    // A conflict that leaves the token comes from a ban at the same moment: the agent may try again.
    for fault in [Fault::Before, Fault::Full, Fault::Conflict] {
        test.store.fail_next([fault]);
        let failed = enroll(&test.app, &token, &csr()).await;
        assert!(matches!(failed, Err(Error::Store(_))), "{fault:?}: {failed:?}");
    }
    assert!(test.store.agents().await.unwrap().is_empty());
    enroll(&test.app, &token, &csr()).await.unwrap();
}

#[tokio::test]
async fn i7_a_ban_ends_the_session_and_keeps_the_agent_out_until_it_enrols_again() {
    let test = TestApp::new();
    let issued = enrolled(&test).await;
    let mut session = session_of(&test, &with(&issued)).await.unwrap();
    let renewed = renew(&test.app, &with(&issued), &csr()).await.unwrap();

    let banned = ban(&test.app, &admin(), &vm(), "stolen".into()).await.unwrap();
    assert_eq!(banned.record.banned.unwrap().by, admin().principal);
    let Outgoing::End(reason) = session.next().await else { panic!("the session goes on") };
    assert_eq!(reason, "the agent was banned");
    drop(session);
    assert!(is_forbidden(&admitted(&test.app, &vm()).await));
    for stolen in [&issued, &renewed] {
        assert!(is_forbidden(&renew(&test.app, &with(stolen), &csr()).await));
        assert!(is_forbidden(&session_of(&test, &with(stolen)).await));
    }
    assert!(!test.app.sessions.report(&vm()).online);
    let audited = test.audited("agent.banned").await;
    assert_eq!(audited, [("administrator/root".into(), Outcome::Done, "stolen".into())]);

    let again = enrolled(&test).await;
    session_of(&test, &with(&again)).await.unwrap();
    renew(&test.app, &with(&again), &csr()).await.unwrap();
    // The certificates that were stolen before the ban are valid for an hour still.
    for stolen in [&issued, &renewed] {
        assert!(is_forbidden(&renew(&test.app, &with(stolen), &csr()).await));
        assert!(is_forbidden(&session_of(&test, &with(stolen)).await));
    }
}

#[tokio::test]
async fn i7_a_token_that_was_made_before_the_ban_does_not_lift_it() {
    let test = TestApp::new();
    enrolled(&test).await;
    let before = a_token(&test).await;
    ban(&test.app, &admin(), &vm(), "stolen".into()).await.unwrap();
    assert!(is_unproven(&enroll(&test.app, &before, &csr()).await));
    assert!(is_forbidden(&admitted(&test.app, &vm()).await));
    let denied = test.audited("agent.enrolled").await.pop().unwrap();
    assert_eq!(denied, ("broker".into(), Outcome::Denied, "token is older than the ban".into()));
    enrolled(&test).await;
    admitted(&test.app, &vm()).await.unwrap();
}

#[tokio::test]
async fn i7_an_agent_that_never_enrolled_may_do_nothing() {
    let test = TestApp::new();
    assert!(is_forbidden(&admitted(&test.app, &vm()).await));
    assert!(is_forbidden(&renew(&test.app, &unknown(), &csr()).await));
    assert!(is_forbidden(&session_of(&test, &unknown()).await));
    let banned = ban(&test.app, &admin(), &vm(), "stolen".into()).await;
    assert!(matches!(banned, Err(Error::NotFound { .. })), "{banned:?}");
    assert!(test.events().await.is_empty());
}

#[tokio::test]
async fn i8_an_agent_that_enrols_again_takes_the_place_of_the_former() {
    let test = TestApp::new();
    let former = enrolled(&test).await;
    let mut before = session_of(&test, &with(&former)).await.unwrap();
    let issued = enrolled(&test).await;
    assert!(matches!(before.next().await, Outgoing::End("the target enrolled again")));
    drop(before);
    // Its agent takes the new identity up within seconds, and comes back with the former one meanwhile: that is no clone.
    let refused = session_of(&test, &with(&former)).await.unwrap_err();
    assert!(refused.to_string().contains("has just enrolled again"), "{refused}");
    assert!(test.audited("agent.cloned").await.is_empty());
    session_of(&test, &with(&issued)).await.unwrap();
}

#[tokio::test]
async fn a_renewal_is_kept_and_audited() {
    let test = TestApp::new();
    let first = enrolled(&test).await;
    let issued = renew(&test.app, &with(&first), &csr()).await.unwrap();
    let kept = admitted(&test.app, &vm()).await.unwrap();
    assert_eq!((kept.record.certificate_not_after, kept.version), (issued.not_after, 2));
    assert!(matches!(renew(&test.app, &with(&issued), b"not a request").await, Err(Error::Pki(_))));
    test.store.fail_next([Fault::Conflict]);
    assert!(
        matches!(renew(&test.app, &with(&issued), &csr()).await, Err(Error::Store(_))),
        "a ban came first, perhaps"
    );
    let audited = test.audited("agent.renewed").await;
    assert_eq!(audited, [("agent/host:vm-1".into(), Outcome::Done, String::new())]);
}

#[tokio::test]
async fn i10_an_agent_renews_ten_times_a_minute_at_most() {
    let test = TestApp::new();
    let (caller, csr, start) = (with(&enrolled_long_ago(&test).await), csr(), boottime());
    let mut passed = 0;
    for _ in 0..100 {
        match renew(&test.app, &caller, &csr).await {
            Ok(_) => passed += 1,
            Err(Error::Quota(quota)) => assert_eq!(quota.reason, "QUOTA_RENEWALS"),
            Err(error) => panic!("{error}"),
        }
    }
    // A token comes back every six seconds.
    let at_most = 11 + (boottime() - start).as_secs() / 6;
    assert!((10..=at_most).contains(&passed), "{passed}");
    let denied = (caller_name(), Outcome::Denied, "QUOTA_RENEWALS".to_owned());
    assert!(test.audited("agent.renewed").await.contains(&denied));
    // The machine keeps its session, and a clone's attempts take none of its tokens.
    session_of(&test, &caller).await.unwrap();
    let other = TestApp::new();
    let caller = with(&enrolled(&other).await);
    for _ in 0..20 {
        assert!(is_forbidden(&renew(&other.app, &unknown(), &csr).await));
    }
    renew(&other.app, &caller, &csr).await.unwrap();
}

#[tokio::test]
async fn i10_tampering_that_is_reported_without_end_is_counted_and_gives_way() {
    let test = TestApp::new();
    enrolled(&test).await;
    let report = || TamperingReport {
        what: "a rule was added".into(),
        process: "nft".into(),
        pid: 7,
        exposed_for: Duration::ZERO,
    };
    let start = boottime();
    for _ in 0..1_000 {
        record_tampering(&test.app, &vm(), report()).await.unwrap();
    }
    let recorded = test.audited("agent.tampering").await.len() as u64;
    // Two tokens come back each second.
    let at_most = u64::from(Limits::default().denials_per_caller) + 2 + 2 * (boottime() - start).as_secs();
    assert!((1..=at_most).contains(&recorded), "{recorded}");
    test.app.summarize_denials(true).await.unwrap();
    let summaries: Vec<_> =
        test.events().await.into_iter().filter(|event| event.action == "tampering.omitted").collect();
    let [summary] = &summaries[..] else { panic!("{summaries:?}") };
    assert_eq!(summary.details["count"], (1_000 - recorded).to_string());
    assert_eq!((summary.actor.clone(), summary.outcome), (caller_name(), Outcome::Done));
    assert!(test.audited("denials.omitted").await.is_empty(), "no call was refused");

    // A store without room counts them as well, and the agent is not told to send them again.
    let test = TestApp::new();
    test.store.fail_next([Fault::Full]);
    record_tampering(&test.app, &vm(), report()).await.unwrap();
    test.app.summarize_denials(true).await.unwrap();
    assert_eq!(test.audited("tampering.omitted").await.len(), 1);
}

#[tokio::test]
async fn i10_contradicting_checkpoints_that_are_reported_without_end_are_counted_and_other_logs_are_not() {
    let test = TestApp::new();
    let now = test.app.clock.now();
    let sign = |log: &str, digit: &str| {
        let head = Head { seq: 5, hash: digit.repeat(64).parse().unwrap() };
        let checkpoint = Checkpoint::of(&test.app.trust_domain.to_string(), log, head, now, None);
        test.app.authority.sign_checkpoint(checkpoint).unwrap().to_string()
    };
    let (kept, received) = (sign("postern", "1"), sign("postern", "2"));
    let start = boottime();
    for _ in 0..200 {
        record_contradiction(&test.app, &vm(), &kept, &received).await.unwrap();
    }
    let recorded = test.audited("agent.audit_contradicted").await.len() as u64;
    // Two tokens come back each second.
    let at_most = u64::from(Limits::default().denials_per_caller) + 2 + 2 * (boottime() - start).as_secs();
    assert!((1..=at_most).contains(&recorded), "{recorded}");
    test.app.summarize_denials(true).await.unwrap();
    assert_eq!(test.audited("tampering.omitted").await.len(), usize::from(recorded < 200));
    // A report by a thief of an intermediate that is revoked proves nothing.
    let events = test.events().await.len();
    test.app.revocations.learn_intermediates([test.app.authority.intermediate().key]);
    record_contradiction(&test.app, &vm(), &kept, &received).await.unwrap();
    assert_eq!(test.events().await.len(), events);
}

#[tokio::test]
async fn i9_tampering_is_recorded_with_its_process_and_its_duration() {
    let test = TestApp::new();
    let exposed_for = Duration::from_millis(12);
    let report =
        TamperingReport { what: "the table was deleted".into(), process: "nft".into(), pid: 7, exposed_for };
    record_tampering(&test.app, &vm(), report).await.unwrap();
    let events = test.events().await;
    assert_eq!((events[0].action.as_str(), events[0].target.as_ref()), ("agent.tampering", Some(&vm())));
    let details: Vec<_> =
        events[0].details.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expected =
        [("exposed_for_ms", "12"), ("pid", "7"), ("process", "nft"), ("what", "the table was deleted")];
    assert_eq!(details, expected);
}

#[tokio::test]
async fn agents_are_listed_page_by_page_with_the_report_on_their_host_layer() {
    let test = TestApp::new();
    let mut session = None;
    for target in ["host:vm-2", "host:vm-1", "host:vm-3"] {
        let token = create_token(&test.app, &admin(), target.parse().unwrap(), None).await.unwrap().0;
        let (target, issued) = enroll(&test.app, &token.to_text(), &csr()).await.unwrap();
        if target == vm() {
            session = Some(session_of(&test, &with(&issued)).await.unwrap());
        }
    }
    let (page, next) = list(&test.app, 2, None).await.unwrap();
    let shown: Vec<_> =
        page.iter().map(|agent| (agent.record.target.to_string(), agent.host.online)).collect();
    assert_eq!(shown, [("host:vm-1".to_owned(), true), ("host:vm-2".to_owned(), false)]);
    let (page, next) = list(&test.app, 2, next).await.unwrap();
    assert_eq!((page.len(), next), (1, None));
    drop(session);
}

#[tokio::test]
async fn i7_a_forged_record_admits_no_agent_and_the_host_can_be_enrolled_again() {
    let test = TestApp::new();
    enrolled(&test).await;
    let kind = <AgentRecord as postern_store::Record>::KIND;
    test.store.tamper(kind, &vm().to_string(), |text| text.replace("\"banned\":null", "\"banned\": null"));
    assert!(is_forbidden(&admitted(&test.app, &vm()).await), "as an agent that the store does not know");
    enrolled(&test).await;
    admitted(&test.app, &vm()).await.unwrap();
}
