//! The hub with sessions led by hand.

use postern_core::plan::desired_host;
use postern_core::policy::{Mode, Protection};

use super::*;
use crate::samples::a_grant;

/// How long what happens at once may take on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

/// The hub of a broker that started so many seconds ago, and the target of every test.
fn a_hub(started_ago: u64) -> (Arc<Hub>, TargetId) {
    let clock = Clock::start(Timestamp::UNIX_EPOCH);
    let started = clock.now() - Duration::from_secs(started_ago);
    let hub = Hub {
        slots: Mutex::default(),
        inherited: Mutex::default(),
        strangers: Mutex::default(),
        wakeups: Arc::default(),
        clock,
        started,
    };
    (Arc::new(hub), "host:vm-1".parse().unwrap())
}

/// A grant that was asked for now.
fn fresh(hub: &Hub) -> Grant {
    a_grant().asked_at(hub.clock.now()).build()
}

/// What the target must hold while these grants are open.
fn desired(target: &TargetId, grants: &[&Grant], now: Timestamp) -> DesiredHost {
    let protection = Protection { mode: Mode::Enforce, ports: ["tcp/22".parse().unwrap()].into() };
    desired_host(target, protection, grants.iter().copied(), now)
}

fn tell(hub: &Hub, target: &TargetId, generation: u64, grants: &[&Grant]) -> Option<Timestamp> {
    hub.tell(target, hub.session(target)?, generation, desired(target, grants, hub.clock.now()))
}

fn observed(hub: &Hub, grant: &Grant) -> Observed {
    hub.observe(grant, &grant.windows[0])
}

fn may_hold(observed: &Observed) -> bool {
    match observed {
        Observed::Unreachable { may_hold, .. } => *may_hold,
        Observed::Open | Observed::Absent | Observed::Unconfirmed | Observed::Refused { .. } => {
            panic!("the agent is away, and yet the window is {observed:?}")
        }
    }
}

/// The generation that the session is told next.
async fn told(session: &mut Session) -> u64 {
    match session.next().await {
        Outgoing::Tell(told) => told.generation,
        other @ (Outgoing::Nothing | Outgoing::End(_)) => panic!("{other:?}"),
    }
}

async fn ends(session: &mut Session) -> &'static str {
    let next = tokio::time::timeout(SOON, session.next()).await;
    match next.expect("the session ends") {
        Outgoing::End(reason) => reason,
        other @ (Outgoing::Nothing | Outgoing::Tell(_)) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn i8_after_its_start_a_broker_waits_for_agents_to_come_back() {
    for (started_ago, waits) in [(0, true), (9, true), (11, false)] {
        let (hub, _) = a_hub(started_ago);
        let seen = observed(&hub, &fresh(&hub));
        assert_eq!(seen == Observed::Unconfirmed, waits, "{started_ago} s: {seen:?}");
    }
    // One that came and went is not waited for.
    let (hub, target) = a_hub(0);
    drop(hub.connect(&target, "1".into()));
    assert!(!may_hold(&observed(&hub, &fresh(&hub))), "nobody told it of this one");
}

#[tokio::test]
async fn i6_an_absent_agent_may_hold_what_an_earlier_broker_told_it() {
    let (hub, _) = a_hub(60);
    let older = a_grant().asked_at(hub.started - Duration::from_secs(1)).build();
    assert!(may_hold(&observed(&hub, &older)));
    assert!(!may_hold(&observed(&hub, &fresh(&hub))));
}

#[tokio::test]
async fn i5_only_what_was_confirmed_is_open() {
    let (hub, target) = a_hub(60);
    let grant = fresh(&hub);
    let mut session = hub.connect(&target, "1".into());
    assert_eq!(observed(&hub, &grant), Observed::Unconfirmed, "a new session knows nothing");
    tell(&hub, &target, 5, &[&grant]);
    assert_eq!(told(&mut session).await, 5);
    assert_eq!(observed(&hub, &grant), Observed::Unconfirmed);
    session.applied(4, None);
    assert_eq!(observed(&hub, &grant), Observed::Unconfirmed, "an answer to something earlier");
    session.applied(5, None);
    assert_eq!(observed(&hub, &grant), Observed::Open);
    tell(&hub, &target, 6, &[]);
    assert_eq!(observed(&hub, &grant), Observed::Open, "told to close, and not yet confirmed");
    session.applied(6, None);
    assert_eq!(observed(&hub, &grant), Observed::Absent);
}

#[tokio::test]
async fn i8_a_reconnect_replaces_the_session_and_the_old_one_speaks_no_more() {
    let (hub, target) = a_hub(60);
    let grant = fresh(&hub);
    let mut old = hub.connect(&target, "1".into());
    tell(&hub, &target, 5, &[&grant]);
    let mut new = hub.connect(&target, "2".into());
    assert_eq!(ends(&mut old).await, "a newer session of this agent took over");
    assert_eq!(observed(&hub, &grant), Observed::Unconfirmed);

    tell(&hub, &target, 6, &[&grant]);
    assert_eq!(told(&mut new).await, 6, "told again, though nothing changed");
    old.applied(6, None);
    assert_eq!(observed(&hub, &grant), Observed::Unconfirmed, "the old session is not believed");
    drop(old);
    assert!(hub.report(&target).online, "the end of the old session ends nothing");
    new.applied(6, None);
    assert_eq!(observed(&hub, &grant), Observed::Open);
    assert_eq!(hub.report(&target).version, "2");
}

#[tokio::test]
async fn i7_an_end_reaches_the_session_whatever_else_it_is_told() {
    let (hub, target) = a_hub(60);
    let grant = fresh(&hub);
    let mut session = hub.connect(&target, "1".into());
    tell(&hub, &target, 5, &[]);
    hub.end(&target, "the agent was banned");
    // The reconciler looks at the target before the stream was polled.
    assert_eq!(tell(&hub, &target, 6, &[&grant]), None);
    assert_eq!(ends(&mut session).await, "the agent was banned");
    drop(session);
    assert!(!hub.report(&target).online);
    assert!(!may_hold(&observed(&hub, &grant)), "it was never sent");
}

#[tokio::test]
async fn i6_a_lost_session_may_hold_whatever_it_was_told_and_did_not_take_back() {
    let (hub, target) = a_hub(60);
    let (confirmed, sent, revoked, unsent) = (
        fresh(&hub),
        a_grant().number(2).from("192.0.2.8").asked_at(hub.clock.now()).build(),
        a_grant().number(3).from("192.0.2.9").asked_at(hub.clock.now()).build(),
        a_grant().number(4).from("192.0.2.10").asked_at(hub.clock.now()).build(),
    );
    let session = hub.connect(&target, "1".into());
    tell(&hub, &target, 5, &[&confirmed]);
    session.applied(5, None);
    tell(&hub, &target, 6, &[&confirmed, &revoked]);
    // Revoked before the agent had answered, and then the connection breaks.
    tell(&hub, &target, 7, &[&confirmed, &sent]);
    drop(session);
    tell(&hub, &target, 8, &[&unsent]);
    for (grant, held) in [(&confirmed, true), (&sent, true), (&revoked, true), (&unsent, false)] {
        assert_eq!(may_hold(&observed(&hub, grant)), held, "{}", grant.windows[0]);
    }

    // Only a confirmation of the whole takes it back.
    drop(hub.connect(&target, "1".into()));
    assert!(may_hold(&observed(&hub, &revoked)));
    let session = hub.connect(&target, "1".into());
    tell(&hub, &target, 9, &[&confirmed]);
    session.applied(9, None);
    drop(session);
    assert!(!may_hold(&observed(&hub, &revoked)));
    assert!(may_hold(&observed(&hub, &confirmed)));
}

#[tokio::test]
async fn whatever_happens_to_a_session_wakes_its_target() {
    let (hub, target) = a_hub(60);
    let woken = async || {
        let woken = tokio::time::timeout(SOON, hub.wakeups.take()).await;
        woken.expect("it was woken").contains(&target)
    };
    let session = hub.connect(&target, "1".into());
    assert!(woken().await, "it is there");
    tell(&hub, &target, 5, &[]);
    session.applied(5, None);
    assert!(woken().await, "it confirmed");
    drop(session);
    assert!(woken().await, "it is gone");
}

#[test]
fn a_target_without_an_agent_takes_no_room() {
    let (hub, target) = a_hub(60);
    assert_eq!(tell(&hub, &target, 5, &[]), None);
    hub.end(&target, "a test");
    assert!(hub.lock().is_empty());
    assert!(hub.report(&target).detail.contains("has not connected"));
}
