//! The reconciler with a store in memory, a fake cloud, and agents led by hand.

mod recovery;
mod world;

use postern_core::Layers;
use postern_core::{CloseReason, GrantId, GrantState};
use postern_provider::CloudError;
use postern_provider::fake;
use postern_store::Expect;

use super::*;
use crate::layers::host::desired_state::Outgoing;
use crate::testing::builders::a_grant;
use world::{ReconcilerWorld, VM, pause, with_agent};

fn unavailable() -> fake::Fault {
    fake::Fault::Before(CloudError::Unavailable { reason: "a test".to_owned() })
}

#[tokio::test]
async fn i5_a_grant_is_active_once_both_layers_have_confirmed_and_not_before() {
    let world = ReconcilerWorld::new();
    world.cloud.fail_next([unavailable(), unavailable()]);
    let mut session = world.connect();
    world
        .during(async {
            let grant = world.ask(a_grant()).await;
            let pushed = loop {
                if let Outgoing::Push(pushed) = session.next().await
                    && !pushed.desired.windows.is_empty()
                {
                    break pushed;
                }
            };
            world.cloud_holds(1).await;
            pause(100).await;
            assert_eq!(world.state(grant.id).await, GrantState::Opening, "the host layer has not confirmed");
            session.applied(pushed.generation, None);
            world.reaches(grant.id, "active").await;
        })
        .await;
}

#[tokio::test]
async fn i5_what_one_layer_refuses_is_rolled_back_in_the_other() {
    let world = ReconcilerWorld::new();
    let refused = || fake::Fault::Before(CloudError::Refused { reason: "the quota is used up".to_owned() });
    // The first call is the look at what is there.
    world.cloud.fail_next([refused()]);
    let failed = with_agent(&world, async {
        let grant = world.ask(a_grant()).await;
        world.reaches(grant.id, "failed").await
    });
    assert!(failed.await.reason().contains("the quota is used up"));

    let world = ReconcilerWorld::new();
    let mut session = world.connect();
    world
        .during(async {
            let grant = world.ask(a_grant()).await;
            let refusing = async {
                loop {
                    if let Outgoing::Push(pushed) = session.next().await {
                        let error =
                            (!pushed.desired.windows.is_empty()).then(|| "no nftables here".to_owned());
                        session.applied(pushed.generation, error);
                    }
                }
            };
            let state = tokio::select! {
                () = refusing => unreachable!(),
                state = world.reaches(grant.id, "failed") => state,
            };
            assert!(state.reason().contains("no nftables here"), "{state:?}");
            world.cloud_holds(0).await;
        })
        .await;
}

#[tokio::test]
async fn i6_a_failed_close_stays_closing_and_is_tried_until_it_succeeds() {
    let world = ReconcilerWorld::new();
    with_agent(&world, async {
        let grant = world.ask(a_grant()).await;
        world.reaches(grant.id, "active").await;
        world.cloud.fail_next([unavailable(), unavailable(), unavailable(), unavailable()]);
        world.revoke(grant.id).await;
        pause(300).await;
        assert_eq!(world.state(grant.id).await.word(), "closing");
        world.reaches(grant.id, "closed").await;
        world.cloud_holds(0).await;
    })
    .await;
}

#[tokio::test]
async fn i6_only_the_typed_not_found_counts_as_closed() {
    let world = ReconcilerWorld::new();
    with_agent(&world, async {
        let grant = world.ask(a_grant()).await;
        world.reaches(grant.id, "active").await;
        let refused = CloudError::Refused { reason: "not found, says a proxy on the way".to_owned() };
        world.cloud.fail_next([fake::Fault::Before(refused)]);
        world.revoke(grant.id).await;
        pause(150).await;
        assert_eq!(world.state(grant.id).await.word(), "closing");
        world.cloud.terminate(&VM.parse().unwrap());
        world.reaches(grant.id, "closed").await;
    })
    .await;
}

#[tokio::test]
async fn i2_the_end_closes_the_cloud_layer_though_the_agent_is_gone() {
    let world = ReconcilerWorld::new();
    let grant = with_agent(&world, async {
        let grant = world.ask(a_grant().seconds(1)).await;
        world.reaches(grant.id, "active").await;
        grant
    })
    .await;
    world
        .during(async {
            world.cloud_holds(0).await;
            let late = world.reconciler.clock.now().duration_since(grant.not_after);
            assert!(late.as_millis() < 500, "{late:?} late");
            assert_eq!(world.state(grant.id).await.word(), "closing", "the agent may hold it still");
        })
        .await;
}

#[tokio::test]
async fn i2_a_window_that_the_store_does_not_know_is_closed_after_the_first_sweep() {
    let lost = ReconcilerWorld::new();
    let grant = with_agent(&lost, async {
        let grant = lost.ask(a_grant()).await;
        lost.reaches(grant.id, "active").await;
        grant
    })
    .await;
    let world = ReconcilerWorld::over(Default::default(), Arc::clone(&lost.cloud));
    world
        .during(async {
            world.sweep().await;
            world.cloud_holds(0).await;
        })
        .await;
    assert!(world.store.grant(grant.id).await.unwrap().is_none());
}

#[tokio::test]
async fn an_older_grant_closes_once_the_newer_is_active_and_stays_where_it_fails() {
    let world = ReconcilerWorld::new();
    let story = async {
        let older = world.ask(a_grant().seconds(60)).await;
        world.reaches(older.id, "active").await;
        let refused = CloudError::Refused { reason: "a test".to_owned() };
        world.cloud.fail_next([fake::Fault::Before(refused)]);
        let failing = world.ask(a_grant().number(2).seconds(120)).await;
        world.reaches(failing.id, "failed").await;
        assert_eq!(world.state(older.id).await, GrantState::Active, "the newer one failed");

        let newer = world.ask(a_grant().number(3).seconds(120)).await;
        let closed = world.reaches(older.id, "closed").await;
        assert_eq!(closed, GrantState::Closed(CloseReason::Superseded { by: newer.id }));
        assert_eq!(world.state(newer.id).await, GrantState::Active);

        let shorter = world.ask(a_grant().number(4).seconds(30)).await;
        world.reaches(shorter.id, "active").await;
        pause(100).await;
        assert_eq!(world.state(newer.id).await, GrantState::Active, "a shorter one takes nothing away");
        let others = world.ask(a_grant().number(5).of("bob").from("192.0.2.7").seconds(600)).await;
        world.reaches(others.id, "active").await;
        pause(100).await;
        assert_eq!(world.state(newer.id).await, GrantState::Active, "it is another's");
    };
    with_agent(&world, Box::pin(story)).await;
}

#[tokio::test]
async fn i5_a_grant_for_an_absent_agent_fails_at_once_and_one_that_may_wait_waits() {
    let world = ReconcilerWorld::new();
    drop(world.connect());
    world
        .during(async {
            let failing = world.ask(a_grant()).await;
            let failed = world.reaches(failing.id, "failed").await;
            assert!(failed.reason().contains("not connected"), "{failed:?}");
            world.cloud_holds(0).await;
            let waiting = world.ask(a_grant().number(2).waiting()).await;
            world.cloud_holds(1).await;
            pause(100).await;
            assert_eq!(world.state(waiting.id).await, GrantState::Opening);
        })
        .await;
}

#[tokio::test]
async fn i1_while_the_policies_cannot_be_read_the_host_keeps_its_protection_and_closes_go_on() {
    let world = ReconcilerWorld::new();
    let policy = crate::testing::builders::a_policy().on(VM).build();
    let event = postern_core::audit::AuditEvent::done(world.reconciler.clock.now(), "a test", "policy.put");
    let put = postern_store::Transaction::default().put_policy(policy, Expect::Absent).audit(event);
    world.store.commit(put).await.unwrap();
    let mut session = world.connect();
    world
        .during(async {
            let grant = world.ask(a_grant()).await;
            loop {
                let Outgoing::Push(pushed) = session.next().await else { continue };
                assert!(pushed.desired.protection.is_some() && pushed.policies == 1);
                session.applied(pushed.generation, None);
                if !pushed.desired.windows.is_empty() {
                    break;
                }
            }
            world.reaches(grant.id, "active").await;
            world.store.lose(<postern_core::Policy as postern_store::Record>::KIND, "usual");
            world.revoke(grant.id).await;
            let closed = async {
                loop {
                    let Outgoing::Push(pushed) = session.next().await else { continue };
                    assert!(pushed.desired.protection.is_none(), "nothing takes the protection off");
                    session.applied(pushed.generation, None);
                }
            };
            tokio::select! {
                () = closed => {}
                _ = world.reaches(grant.id, "closed") => {}
            }
            let report = world.reconciler.sessions.report(&VM.parse().unwrap());
            assert!(report.detail.contains("keeps its protection"), "{}", report.detail);
        })
        .await;
}
