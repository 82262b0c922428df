//! Sessions led by hand.

use postern_core::plan::desired_host;
use postern_core::policy::{Mode, Protection};

use super::*;
use crate::testing::builders::a_grant;

/// The time that an immediate reaction may take on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// The sessions of a broker that started so many seconds ago, and the target of every test.
fn some_sessions(started_ago: u64) -> (Arc<AgentSessions>, TargetId) {
    let clock = Clock::start(Timestamp::UNIX_EPOCH);
    let started = clock.now() - Duration::from_secs(started_ago);
    let sessions = AgentSessions {
        states: Mutex::default(),
        inherited: Mutex::default(),
        strangers: Mutex::default(),
        forgotten: Mutex::default(),
        wakeups: Arc::default(),
        clock,
        started,
    };
    (Arc::new(sessions), "host:vm-1".parse().unwrap())
}

/// A grant that was asked for now.
fn fresh(sessions: &AgentSessions) -> Grant {
    a_grant().asked_at(sessions.clock.now()).build()
}

/// The state that the target must hold while these grants are open.
fn desired(target: &TargetId, grants: &[&Grant], now: Timestamp) -> DesiredHost {
    let protection = Protection { mode: Mode::Enforce, ports: ["tcp/22".parse().unwrap()].into() };
    desired_host(target, Some(protection), grants.iter().copied(), now)
}

fn push(
    sessions: &AgentSessions,
    target: &TargetId,
    generation: u64,
    grants: &[&Grant],
) -> Option<Timestamp> {
    sessions.push(
        target,
        sessions.session_number(target)?,
        StateNumber { generation, policies: 0 },
        desired(target, grants, sessions.clock.now()),
    )
}

fn observed(sessions: &AgentSessions, grant: &Grant) -> Observed {
    sessions.observe(grant, &grant.windows[0])
}

fn may_hold(observed: &Observed) -> bool {
    match observed {
        Observed::Unreachable { may_hold, .. } => *may_hold,
        Observed::Open | Observed::Absent | Observed::Unconfirmed | Observed::Refused { .. } => {
            panic!("the agent is away, and yet the window is {observed:?}")
        }
    }
}

/// Returns the generation that is pushed to the session next.
async fn pushed(session: &mut AgentSession) -> u64 {
    match session.next().await {
        Outgoing::Push(pushed) => pushed.generation,
        other @ (Outgoing::Nothing | Outgoing::End(_)) => panic!("{other:?}"),
    }
}

async fn ends(session: &mut AgentSession) -> &'static str {
    let next = tokio::time::timeout(SOON, session.next()).await;
    match next.expect("the session ends") {
        Outgoing::End(reason) => reason,
        other @ (Outgoing::Nothing | Outgoing::Push(_)) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn i8_after_its_start_a_broker_waits_for_agents_to_come_back() {
    for (started_ago, waits) in [(0, true), (9, true), (11, false)] {
        let (sessions, _) = some_sessions(started_ago);
        let seen = observed(&sessions, &fresh(&sessions));
        assert_eq!(seen == Observed::Unconfirmed, waits, "{started_ago} s: {seen:?}");
    }
    // One that came and went is not waited for.
    let (sessions, target) = some_sessions(0);
    drop(sessions.connect(&target, "1".into(), SessionOrigin::default()));
    assert!(!may_hold(&observed(&sessions, &fresh(&sessions))), "this one was never pushed");
}

#[tokio::test]
async fn i6_an_absent_agent_may_hold_what_an_earlier_broker_pushed() {
    let (sessions, _) = some_sessions(60);
    let older = a_grant().asked_at(sessions.started - Duration::from_secs(1)).build();
    assert!(may_hold(&observed(&sessions, &older)));
    assert!(!may_hold(&observed(&sessions, &fresh(&sessions))));
}

#[tokio::test]
async fn i5_only_what_was_confirmed_is_open() {
    let (sessions, target) = some_sessions(60);
    let grant = fresh(&sessions);
    let mut session = sessions.connect(&target, "1".into(), SessionOrigin::default());
    assert_eq!(observed(&sessions, &grant), Observed::Unconfirmed, "a new session knows nothing");
    push(&sessions, &target, 5, &[&grant]);
    assert_eq!(pushed(&mut session).await, 5);
    assert_eq!(observed(&sessions, &grant), Observed::Unconfirmed);
    session.applied(4, None);
    assert_eq!(observed(&sessions, &grant), Observed::Unconfirmed, "an answer to something earlier");
    session.applied(5, None);
    assert_eq!(observed(&sessions, &grant), Observed::Open);
    push(&sessions, &target, 6, &[]);
    assert_eq!(observed(&sessions, &grant), Observed::Open, "the close is pushed, and not yet confirmed");
    session.applied(6, None);
    assert_eq!(observed(&sessions, &grant), Observed::Absent);
}

#[tokio::test]
async fn i8_a_reconnect_replaces_the_session_and_the_old_one_speaks_no_more() {
    let (sessions, target) = some_sessions(60);
    let grant = fresh(&sessions);
    let mut old = sessions.connect(&target, "1".into(), SessionOrigin::default());
    push(&sessions, &target, 5, &[&grant]);
    let mut new = sessions.connect(&target, "2".into(), SessionOrigin::default());
    assert_eq!(ends(&mut old).await, "a newer session of this agent took over");
    assert_eq!(observed(&sessions, &grant), Observed::Unconfirmed);

    push(&sessions, &target, 6, &[&grant]);
    assert_eq!(pushed(&mut new).await, 6, "pushed again, though nothing changed");
    old.applied(6, None);
    assert_eq!(observed(&sessions, &grant), Observed::Unconfirmed, "the old session is not believed");
    drop(old);
    assert!(sessions.report(&target).online, "the end of the old session ends nothing");
    new.applied(6, None);
    assert_eq!(observed(&sessions, &grant), Observed::Open);
    assert_eq!(sessions.report(&target).version, "2");
}

#[tokio::test]
async fn i7_an_end_reaches_the_session_whatever_is_pushed_besides() {
    let (sessions, target) = some_sessions(60);
    let grant = fresh(&sessions);
    let mut session = sessions.connect(&target, "1".into(), SessionOrigin::default());
    push(&sessions, &target, 5, &[]);
    sessions.end(&target, "the agent was banned");
    // The reconciler looks at the target before the stream was polled.
    assert_eq!(push(&sessions, &target, 6, &[&grant]), None);
    assert_eq!(ends(&mut session).await, "the agent was banned");
    drop(session);
    assert!(!sessions.report(&target).online);
    assert!(!may_hold(&observed(&sessions, &grant)), "it was never sent");
}

#[tokio::test]
async fn i6_a_lost_session_may_hold_every_window_that_was_pushed_and_not_taken_back() {
    let (sessions, target) = some_sessions(60);
    let (confirmed, sent, revoked, unsent) = (
        fresh(&sessions),
        a_grant().number(2).from("192.0.2.8").asked_at(sessions.clock.now()).build(),
        a_grant().number(3).from("192.0.2.9").asked_at(sessions.clock.now()).build(),
        a_grant().number(4).from("192.0.2.10").asked_at(sessions.clock.now()).build(),
    );
    let session = sessions.connect(&target, "1".into(), SessionOrigin::default());
    push(&sessions, &target, 5, &[&confirmed]);
    session.applied(5, None);
    push(&sessions, &target, 6, &[&confirmed, &revoked]);
    // Revoked before the agent had answered, and then the connection breaks.
    push(&sessions, &target, 7, &[&confirmed, &sent]);
    drop(session);
    push(&sessions, &target, 8, &[&unsent]);
    for (grant, held) in [(&confirmed, true), (&sent, true), (&revoked, true), (&unsent, false)] {
        assert_eq!(may_hold(&observed(&sessions, grant)), held, "{}", grant.windows[0]);
    }

    // Only a confirmation of the whole takes it back.
    drop(sessions.connect(&target, "1".into(), SessionOrigin::default()));
    assert!(may_hold(&observed(&sessions, &revoked)));
    let session = sessions.connect(&target, "1".into(), SessionOrigin::default());
    push(&sessions, &target, 9, &[&confirmed]);
    session.applied(9, None);
    drop(session);
    assert!(!may_hold(&observed(&sessions, &revoked)));
    assert!(may_hold(&observed(&sessions, &confirmed)));
}

#[tokio::test]
async fn every_event_of_a_session_wakes_its_target() {
    let (sessions, target) = some_sessions(60);
    let woken = async || {
        let woken = tokio::time::timeout(SOON, sessions.wakeups.take()).await;
        woken.expect("it was woken").contains(&target)
    };
    let session = sessions.connect(&target, "1".into(), SessionOrigin::default());
    assert!(woken().await, "it is there");
    push(&sessions, &target, 5, &[]);
    session.applied(5, None);
    assert!(woken().await, "it confirmed");
    drop(session);
    assert!(woken().await, "it is gone");
}

#[test]
fn a_target_without_an_agent_takes_no_room() {
    let (sessions, target) = some_sessions(60);
    assert_eq!(push(&sessions, &target, 5, &[]), None);
    sessions.end(&target, "a test");
    assert!(sessions.lock().is_empty());
    assert!(sessions.report(&target).detail.contains("has not connected"));
}

#[tokio::test]
async fn i1_an_agent_that_loses_its_record_again_is_a_stranger_again() {
    let (sessions, target) = some_sessions(0);
    let now = sessions.clock.now();
    assert!(sessions.meets_stranger(&target) && !sessions.meets_stranger(&target));
    sessions.set_forgotten(&target, Some(now));
    assert!(sessions.meets_stranger(&target), "it was enrolled and forgotten since");
    // Each pass over the target sets that again.
    sessions.set_forgotten(&target, Some(now));
    assert!(!sessions.meets_stranger(&target), "asked once, and refused from then on");
    sessions.set_forgotten(&target, None);
    assert!(sessions.meets_stranger(&target));
    drop(sessions.connect(&target, "1".into(), SessionOrigin::default()));
    assert!(sessions.meets_stranger(&target), "the store has lost its record once more");
}

#[test]
fn i10_the_agents_without_a_record_that_are_remembered_are_bounded() {
    let (sessions, _) = some_sessions(0);
    for number in 0..MAX_STRANGERS + 10 {
        assert!(sessions.meets_stranger(&format!("host:vm-{number}").parse().unwrap()));
    }
    assert_eq!(sessions.strangers().len(), MAX_STRANGERS);
}
