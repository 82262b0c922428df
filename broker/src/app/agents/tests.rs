//! Joining, renewing and banning, with real certificates.

use postern_core::Role;
use postern_core::audit::Outcome;
use postern_pki::KeyPair;
use postern_store::testing::memory::Fault;

use super::*;
use crate::layers::host::desired_state::Outgoing;
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
        certificate_not_after: issued.not_after,
        address: Some([192, 0, 2, 10].into()),
    }
}

/// The holder of a certificate of `host:vm-1` that the record does not know.
fn unknown() -> AgentCaller {
    AgentCaller {
        target: vm(),
        key: KeyHash::of(b"another key"),
        certificate_not_after: Timestamp::UNIX_EPOCH,
        address: Some([192, 0, 2, 66].into()),
    }
}

/// Starts a session on the machine's usual boot.
async fn session_of(test: &TestApp, caller: &AgentCaller) -> Result<AgentSession, Error> {
    connect(&test.app, caller, "1".into(), "boot-1").await
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

#[tokio::test(start_paused = true)]
async fn i7_a_copy_of_an_agent_is_refused_audited_and_shown_once_the_other_has_gone_on() {
    let test = TestApp::new();
    let stolen = enrolled_long_ago(&test).await;
    // The machine renews and uses the result; the copy comes after that.
    let renewed = renew(&test.app, &with(&stolen), &csr()).await.unwrap();
    session_of(&test, &with(&renewed)).await.unwrap();
    for _ in 0..3 {
        assert!(is_forbidden(&session_of(&test, &with(&stolen)).await));
        assert!(is_forbidden(&renew(&test.app, &with(&stolen), &csr()).await));
    }
    assert!(is_forbidden(&session_of(&test, &unknown()).await));

    let audited = test.audited("agent.cloned").await;
    let reason = "this key was renewed, and the renewed key has been used since".to_owned();
    assert_eq!(audited, [("agent/host:vm-1".into(), Outcome::Denied, reason.clone())], "one in a minute");
    let alarm = admitted(&test.app, &vm()).await.unwrap().record.cloned.unwrap();
    assert_eq!((alarm.attempts, alarm.reason), (1, reason));
    let (listed, _) = list(&test.app, 10, None).await.unwrap();
    assert!(listed[0].record.cloned.is_some());

    // A minute later the next attempt counts those in between.
    let minute = Duration::from_secs(61);
    change(&test, |record| record.cloned.as_mut().unwrap().last_at -= minute).await;
    assert!(is_forbidden(&session_of(&test, &with(&stolen)).await));
    let record = test.events().await.into_iter().rfind(|event| event.action == "agent.cloned").unwrap();
    assert_eq!(record.details["count"], "7");
    assert_eq!(record.details["address"], "192.0.2.10");
    assert_eq!(admitted(&test.app, &vm()).await.unwrap().record.cloned.unwrap().attempts, 8);

    // The machine goes on all the while, and a ban and an enrolment end the alarm.
    session_of(&test, &with(&renewed)).await.unwrap();
    enrolled(&test).await;
    assert_eq!(admitted(&test.app, &vm()).await.unwrap().record.cloned, None);
}

#[tokio::test(start_paused = true)]
async fn i7_the_answer_to_a_clone_waits_and_takes_no_session_away() {
    let test = TestApp::new();
    let stolen = enrolled_long_ago(&test).await;
    let renewed = renew(&test.app, &with(&stolen), &csr()).await.unwrap();
    let _machine = session_of(&test, &with(&renewed)).await.unwrap();
    let number = test.app.sessions.session_number(&vm());
    let mut waits = Vec::new();
    for _ in 0..5 {
        let start = postern_runtime::clock::instant();
        assert!(is_forbidden(&session_of(&test, &with(&stolen)).await));
        waits.push(start.elapsed().as_millis());
    }
    assert!(waits.is_sorted() && waits[0] >= 500 && (5000..5100).contains(&waits[4]), "{waits:?}");
    assert_eq!(test.app.sessions.session_number(&vm()), number);
    assert!(test.app.sessions.report(&vm()).online);
}

#[tokio::test(start_paused = true)]
async fn i7_two_machines_with_one_key_do_not_throw_each_other_out_for_ever() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    let (machine, mut clone) = (with(&issued), with(&issued));
    clone.address = Some([192, 0, 2, 66].into());
    let mut sessions = Vec::new();
    for number in 0..4 {
        let (caller, boot) = if number % 2 == 0 { (&machine, "boot-1") } else { (&clone, "boot-2") };
        sessions.push(connect(&test.app, caller, "1".into(), boot).await.unwrap());
    }
    let number = test.app.sessions.session_number(&vm());
    for _ in 0..5 {
        assert!(is_forbidden(&connect(&test.app, &machine, "1".into(), "boot-1").await));
    }
    assert_eq!(test.app.sessions.session_number(&vm()), number, "the session that is there stays");
    let reason = "two machines use the key of this agent at the same time".to_owned();
    assert_eq!(test.audited("agent.cloned").await, [("agent/host:vm-1".into(), Outcome::Denied, reason)]);
    // The one that is there may come back, and once it is gone so may the other.
    sessions.push(connect(&test.app, &clone, "1".into(), "boot-2").await.unwrap());
    sessions.clear();
    connect(&test.app, &machine, "1".into(), "boot-1").await.unwrap();
}

#[tokio::test]
async fn i8_a_machine_that_reboots_or_moves_is_no_clone() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    let mut sessions = Vec::new();
    for number in 0..20 {
        // The network breaks, and the agent reconnects from where it was; twice the machine boots.
        let boot = format!("boot-{}", number / 10);
        sessions.push(connect(&test.app, &with(&issued), "1".into(), &boot).await.unwrap());
    }
    assert!(test.audited("agent.cloned").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn i8_a_renewal_whose_answer_was_lost_is_repeated_also_after_the_end_of_the_certificate() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    let lost = renew(&test.app, &with(&issued), &csr()).await.unwrap();
    let repeated = renew(&test.app, &with(&issued), &csr()).await.unwrap();
    assert!(is_forbidden(&session_of(&test, &with(&lost)).await), "only a thief can have it");
    session_of(&test, &with(&repeated)).await.unwrap();

    // The machine was off for a week, and the answer to its late renewal was lost.
    let mut ended = with(&repeated);
    ended.certificate_not_after -= Duration::from_secs(7 * 24 * 3600);
    renew_late(&test.app, &ended, &csr()).await.unwrap();
    let renewed = renew_late(&test.app, &ended, &csr()).await.unwrap();
    session_of(&test, &with(&renewed)).await.unwrap();
}

#[tokio::test]
async fn i8_a_record_of_an_earlier_version_learns_the_key_that_it_sees_first() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    change(&test, |record| record.keys = None).await;
    session_of(&test, &with(&issued)).await.unwrap();
    assert_eq!(test.audited("agent.key_used").await.len(), 1);
    assert!(is_forbidden(&session_of(&test, &unknown()).await));
    let stored = r#"{"target":"host:vm-1","enrolled_at":"1970-01-01T00:00:00Z","certificate_not_after":"1970-01-01T01:00:00Z","banned":null}"#;
    let record: AgentRecord = serde_json::from_str(stored).unwrap();
    assert_eq!((record.keys, record.cloned, record.forgotten), (None, None, None));
}

#[tokio::test]
async fn i8_an_agent_whose_newest_key_the_store_has_lost_goes_on() {
    let test = TestApp::new();
    let issued = enrolled_long_ago(&test).await;
    let mut later = unknown();
    later.certificate_not_after = issued.not_after + Duration::from_secs(1);
    session_of(&test, &later).await.unwrap();
    assert!(is_forbidden(&session_of(&test, &with(&issued)).await), "the older copy is out");
}

#[tokio::test]
async fn i9_the_first_session_with_a_renewed_key_is_recorded_once() {
    let test = TestApp::new();
    let issued = enrolled(&test).await;
    session_of(&test, &with(&issued)).await.unwrap();
    assert!(test.audited("agent.key_used").await.is_empty(), "there is no key before");
    let renewed = renew(&test.app, &with(&issued), &csr()).await.unwrap();
    session_of(&test, &with(&issued)).await.unwrap();
    for _ in 0..3 {
        session_of(&test, &with(&renewed)).await.unwrap();
    }
    assert_eq!(test.audited("agent.key_used").await.len(), 1);
}

mod forgetting {
    use postern_core::plan::Observed;
    use postern_core::{Event, Grant, Justification};

    use super::*;
    use crate::testing::builders::a_grant;

    async fn put(test: &TestApp, grant: Grant) {
        let event = AuditEvent::done(test.app.clock.now(), "a test", "grant.requested").on_grant(grant.id);
        let put = Transaction::default().put_grant(grant, Expect::Absent);
        test.store.commit(put.audit(event)).await.unwrap();
    }

    /// A grant on the target that was asked for now and has this many seconds.
    fn a_grant_now(test: &TestApp, number: u8, seconds: u64) -> Grant {
        a_grant().number(number).asked_at(test.app.clock.now()).seconds(seconds).build()
    }

    #[tokio::test]
    async fn i6_nothing_waits_for_a_forgotten_agent_and_the_answer_says_what_it_may_hold() {
        let test = TestApp::new();
        let issued = enrolled(&test).await;
        let grant = a_grant_now(&test, 1, 600);
        let active = grant.after(Event::Confirmed, test.app.clock.now()).unwrap();
        put(&test, active.clone()).await;
        let session = session_of(&test, &with(&issued)).await.unwrap();
        let forgotten = async |accepts| forget(&test.app, &admin(), &vm(), "gone".into(), accepts).await;
        assert!(matches!(forgotten(true).await, Err(Error::Precondition { .. })), "it is connected");
        drop(session);
        let refused = forgotten(false).await.unwrap_err();
        assert!(refused.to_string().contains("--accept-held-windows"), "{refused}");
        assert!(test.audited("agent.forgotten").await.is_empty());
        let held = forgotten(true).await.unwrap();
        assert_eq!(held.grants, [(active.id, active.not_after)]);
        assert_eq!(held.until(), Some(active.not_after));
        assert_eq!(
            test.audited("agent.forgotten").await,
            [("administrator/root".into(), Outcome::Done, "gone".into())]
        );
        assert!(test.woken().await.contains(&vm()));

        let by = admin().principal;
        let reason: Option<Justification> = None;
        let revoked = Event::Close(postern_core::CloseReason::Revoked { by, reason });
        let closing = active.after(revoked, test.app.clock.now()).unwrap();
        let observed = |grant: &Grant| test.app.sessions.observe(grant, &grant.windows[0]);
        assert!(matches!(observed(&closing), Observed::Unreachable { may_hold: false, .. }));
        assert!(
            matches!(observed(&grant), Observed::Refused { .. }),
            "it fails whatever its policy waits for"
        );

        // Its certificate admits it no longer, no list has it, and enrolling makes a new agent.
        assert!(is_unrecorded(&test.app, &with(&issued)).await.unwrap(), "it is told to close its windows");
        assert!(is_forbidden(&is_unrecorded(&test.app, &with(&issued)).await));
        assert!(is_forbidden(&session_of(&test, &with(&issued)).await));
        assert!(is_forbidden(&renew(&test.app, &with(&issued), &csr()).await));
        assert!(list(&test.app, 10, None).await.unwrap().0.is_empty());
        assert!(matches!(forgotten(true).await, Err(Error::NotFound { .. })));
        assert!(matches!(ban(&test.app, &admin(), &vm(), String::new()).await, Err(Error::NotFound { .. })));
        let again = enrolled(&test).await;
        session_of(&test, &with(&again)).await.unwrap();
        assert!(is_forbidden(&session_of(&test, &with(&issued)).await));
    }

    #[tokio::test]
    async fn an_agent_that_holds_nothing_is_forgotten_without_more_ado() {
        let test = TestApp::new();
        enrolled(&test).await;
        let before = a_token(&test).await;
        let held = forget(&test.app, &admin(), &vm(), String::new(), false).await.unwrap();
        assert_eq!(held, HeldWindows::default());
        assert!(is_unproven(&enroll(&test.app, &before, &csr()).await), "the token is older");
        let later = a_grant().asked_at(test.app.clock.now() + Duration::from_secs(1)).build();
        let observed = test.app.sessions.observe(&later, &later.windows[0]);
        assert!(!matches!(observed, Observed::Refused { .. }), "a later grant waits as for any absent agent");
    }
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
