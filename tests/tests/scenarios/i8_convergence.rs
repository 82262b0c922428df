//! I8: restart, duplicate delivery, reordering and retry converge to the same state.

use std::collections::BTreeSet;
use std::time::Duration;

use postern_proto::v1::GrantState;
use postern_tests::clock::sleep_until;
use postern_tests::{
    FakeAgent, FakeSession, HostWorld, Reach, Refusal, STEP_TIMEOUT, TCP, VM, a_request, ask_for, end_of,
    usual_policy,
};
use tonic::Code;

/// A world whose agent the test leads by hand, connected and in sync.
fn led_by_hand() -> (HostWorld, FakeAgent, FakeSession) {
    let world = HostWorld::without_agent(usual_policy());
    let token = world.admin.join_token(VM, None).unwrap();
    let agent = FakeAgent::enroll(&world.net.vm, world.broker.url(), &token, &world.dir().join("fake-agent"))
        .unwrap();
    let session = agent.session().unwrap();
    session.applied(session.desired().generation);
    world.admin.wait_in_sync(VM);
    (world, agent, session)
}

fn ask_from(source: &str) -> postern_tests::RequestBuilder {
    a_request().on(VM).port("tcp/22").from(source).seconds(60)
}

#[test]
fn i8_answers_that_come_twice_late_or_out_of_order_confirm_only_what_they_are_about() {
    let (world, _agent, session) = led_by_hand();
    let state = |id: &str| world.alice.grant(id).unwrap().state();
    let first = world.alice.request(&ask_from("192.0.2.20")).unwrap().grant.unwrap();
    let first_desired = session.desired();
    let second = world.alice.request(&ask_from("192.0.2.21")).unwrap().grant.unwrap();
    let second_desired = session.desired();
    assert!(second_desired.generation > first_desired.generation);
    assert_eq!(
        (first_desired.windows.len(), second_desired.windows.len()),
        (1, 2),
        "a whole state each time"
    );

    // The answer to a state that is out of date, one to a state that was never sent, and the first one again.
    for generation in [first_desired.generation, second_desired.generation + 1000, first_desired.generation] {
        session.applied(generation);
    }
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(state(&second.id), GrantState::Opening);

    for _ in 0..3 {
        session.applied(second_desired.generation);
    }
    world.alice.wait_for_state(&first.id, GrantState::Active);
    world.alice.wait_for_state(&second.id, GrantState::Active);
    // An old answer that arrives now takes nothing back.
    session.applied(first_desired.generation);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((state(&first.id), state(&second.id)), (GrantState::Active, GrantState::Active));
}

#[test]
fn i8_a_new_session_receives_the_whole_state_and_the_old_one_counts_no_more() {
    let (world, agent, old) = led_by_hand();
    let grant = world.alice.request(&ask_from("192.0.2.20")).unwrap().grant.unwrap();
    let desired = old.desired();
    let new = agent.session().unwrap();
    let desired_again = new.desired();
    assert_eq!(desired_again.windows.len(), 1);
    assert!(desired_again.generation >= desired.generation);
    old.applied(desired.generation);
    old.end();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        world.alice.grant(&grant.id).unwrap().state(),
        GrantState::Opening,
        "the old session spoke for the new"
    );
    new.applied(desired_again.generation);
    world.alice.wait_for_state(&grant.id, GrantState::Active);
}

#[test]
fn i8_a_refused_state_is_sent_again_until_it_is_accepted() {
    let (world, _agent, session) = led_by_hand();
    let grant = world.alice.open_led_by(&session, &ask_from("192.0.2.20"));
    world.alice.start_request(&ask_from("192.0.2.99").seconds(1)).join().unwrap();
    // A close that fails is tried for ever, and the grant is not closed before it has worked.
    let _ = session.desired();
    world
        .alice
        .start(|channel| {
            let request =
                postern_proto::v1::RevokeAccessRequest { grant_id: grant.clone(), ..Default::default() };
            async move {
                postern_proto::v1::access_service_client::AccessServiceClient::new(channel)
                    .revoke_access(request)
                    .await
            }
        })
        .join()
        .unwrap();
    let mut desired = session.desired();
    for _ in 0..2 {
        session.refused(desired.generation, "device or resource busy");
        desired = session.desired();
        assert_eq!(world.alice.grant(&grant).unwrap().state(), GrantState::Closing);
    }
    session.applied(desired.generation);
    world.alice.wait_for_state(&grant, GrantState::Closed);
}

trait LedByHand {
    fn open_led_by(&self, session: &FakeSession, ask: &postern_tests::RequestBuilder) -> String;
}

impl LedByHand for postern_tests::Client {
    fn open_led_by(&self, session: &FakeSession, ask: &postern_tests::RequestBuilder) -> String {
        let asked = self.start_request(&ask.clone().waiting(STEP_TIMEOUT));
        session.applied(session.desired().generation);
        let grant = asked.join().unwrap().grant.unwrap();
        assert_eq!(grant.state(), GrantState::Active);
        grant.id
    }
}

#[test]
fn i8_one_idempotency_key_makes_one_grant_however_often_it_comes() {
    let mut world = HostWorld::new();
    let ask = ask_for(&world.net.alice).seconds(60).key("retry-1");
    let asked: Vec<_> = (0..20).map(|_| world.alice.start_request(&ask)).collect();
    let answers: Vec<_> = asked.into_iter().map(|answer| answer.join().unwrap()).collect();
    let ids: BTreeSet<_> = answers.iter().map(|answer| answer.grant.as_ref().unwrap().id.clone()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(answers.iter().filter(|answer| !answer.repeated_request).count(), 1);

    world.broker.process().kill9();
    world.broker.serve();
    let again = world.alice.request(&ask).unwrap();
    assert!(
        again.repeated_request && ids.contains(&again.grant.unwrap().id),
        "the key did not survive a kill"
    );
    let refused = Refusal::from(world.alice.request(&ask.clone().seconds(61)).unwrap_err());
    assert_eq!((refused.code, refused.field.as_str()), (Code::InvalidArgument, "idempotency_key"));
    assert_eq!(world.alice.grants().len(), 1);
    // Keys belong to the caller that made them.
    let bob = world.broker.client(&world.net.mallory, "bob", postern_core::Role::Requester);
    assert!(!bob.request(&ask).unwrap().repeated_request);
}

#[test]
fn i8_restarts_of_broker_and_agent_leave_an_open_window_as_it_is() {
    let mut world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(9));
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    world.broker.process().kill9();
    world.broker.serve();
    world.admin.wait_in_sync(VM);
    assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Active);
    world.agent.restart();
    world.admin.wait_in_sync(VM);
    assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Active);
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
}

#[test]
fn i8_a_revocation_during_a_cut_reaches_the_agent_when_the_network_is_back() {
    let world = HostWorld::new();
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(600));
    // The agent receives nothing, the client's own way to the broker stays: only what the broker sends to the VM is lost.
    let vm = world.net.vm.v4().to_string();
    world.net.hub.must("ip", &["route", "add", "blackhole", &format!("{vm}/32")]);
    let request = postern_proto::v1::RevokeAccessRequest { grant_id: grant.id.clone(), ..Default::default() };
    let revoked = world.alice.run(|channel| async move {
        postern_proto::v1::access_service_client::AccessServiceClient::new(channel)
            .revoke_access(request)
            .await
    });
    assert_eq!(revoked.unwrap().into_inner().grant.unwrap().state(), GrantState::Closing);
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open, "no broker could reach the agent");
    assert_eq!(
        world.alice.grant(&grant.id).unwrap().state(),
        GrantState::Closing,
        "closed without a confirmation"
    );
    world.net.hub.must("ip", &["route", "del", "blackhole", &format!("{vm}/32")]);
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
}
