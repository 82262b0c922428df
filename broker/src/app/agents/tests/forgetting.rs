//! Agents that are gone for good.

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
    assert!(matches!(observed(&grant), Observed::Refused { .. }), "it fails whatever its policy waits for");

    // Its certificate admits it no longer, no list has it, and enrolling makes a new agent.
    assert!(is_unrecorded(&test, &with(&issued)).await.unwrap(), "it is told to close its windows");
    assert!(is_forbidden(&is_unrecorded(&test, &with(&issued)).await));
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
