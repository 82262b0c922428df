//! I5: a grant is active once every layer has confirmed, and one that cannot open whole is rolled back whole.

use std::time::Duration;

use postern_proto::v1;
use postern_proto::v1::GrantState;
use postern_tests::clock::wait_until;
use postern_tests::{FakeAgent, HostWorld, Reach, STEP_TIMEOUT, TCP, VM, ask_for, usual_policy};

/// A second target, whose agent the test leads by hand.
const OTHER: &str = "host:vm-2";

fn other_agent(world: &HostWorld) -> FakeAgent {
    let token = world.admin.join_token(OTHER, None).unwrap();
    FakeAgent::enroll(&world.net.mallory, world.broker.url(), &token, &world.dir().join("other-agent"))
        .unwrap()
}

#[test]
fn i5_a_grant_whose_agent_is_away_fails_with_the_reason_where_policy_says_so() {
    let mut world = HostWorld::new();
    world.agent.process().kill9();
    wait_until("the broker to miss the agent", STEP_TIMEOUT, || {
        world.admin.host_layer(VM) == Some(v1::LayerStatus::Unreachable)
    });
    let answer = world.alice.request(&ask_for(&world.net.alice).waiting(STEP_TIMEOUT)).unwrap();
    let grant = answer.grant.unwrap();
    // What cannot be reached cannot confirm the close either: it stays closing until the agent is back (I6).
    assert!(matches!(grant.state(), GrantState::Closing | GrantState::Failed), "{grant:?}");
    assert!(grant.reason.contains(VM) && grant.reason.contains("not connected"), "{}", grant.reason);
    world.agent.run();
    world.alice.wait_for_state(&grant.id, GrantState::Failed);
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
}

#[test]
fn i5_a_grant_whose_agent_is_away_waits_where_policy_says_so() {
    let mut world = HostWorld::under(usual_policy().waiting_for_agents());
    world.agent.process().kill9();
    let asked =
        world.alice.request(&ask_for(&world.net.alice).seconds(60).waiting(Duration::from_secs(1))).unwrap();
    let grant = asked.grant.unwrap();
    assert_eq!(grant.state(), GrantState::Opening, "{}", grant.reason);
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
    world.agent.run();
    world.alice.wait_for_state(&grant.id, GrantState::Active);
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open);
}

#[test]
fn i5_one_refusal_closes_what_the_others_had_opened() {
    let world = HostWorld::under(usual_policy().on(OTHER));
    let other = other_agent(&world);
    let session = other.session().unwrap();
    session.applied(session.desired().generation);
    world.admin.wait_in_sync(OTHER);

    let asked = world.alice.request(&ask_for(&world.net.alice).on(OTHER)).unwrap().grant.unwrap();
    let desired = session.desired();
    assert!(!desired.windows.is_empty(), "{desired:?}");
    // The real agent has opened its part by now; the grant is not active for all that.
    wait_until("the first part to open", STEP_TIMEOUT, || {
        world.net.alice.reach(world.net.vm.tcp(TCP)) == Reach::Open
    });
    assert_eq!(world.alice.grant(&asked.id).unwrap().state(), GrantState::Opening);

    session.refused(desired.generation, "no room for another rule");
    wait_until("the first part to close", STEP_TIMEOUT, || {
        world.net.alice.reach(world.net.vm.tcp(TCP)) == Reach::Filtered
    });
    let desired = session.desired();
    assert!(desired.windows.is_empty(), "{desired:?}");
    session.applied(desired.generation);
    let failed = world.alice.wait_for_state(&asked.id, GrantState::Failed);
    assert!(
        failed.reason.contains("no room for another rule") && failed.reason.contains(OTHER),
        "{}",
        failed.reason
    );
}

#[test]
fn i5_a_silent_agent_leaves_a_grant_opening_and_then_failed() {
    let world = HostWorld::without_agent(usual_policy().on(OTHER));
    let session = other_agent(&world).session().unwrap();
    session.applied(session.desired().generation);
    let ask = postern_tests::a_request().on(OTHER).port("tcp/22").from("192.0.2.20").seconds(2);
    let grant = world.alice.request(&ask).unwrap().grant.unwrap();
    session.desired();
    assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Opening);
    world.alice.wait_for_state(&grant.id, GrantState::Closing);
    session.applied(session.desired().generation);
    let failed = world.alice.wait_for_state(&grant.id, GrantState::Failed);
    assert!(failed.reason.contains("its end passed"), "{}", failed.reason);
}
