//! Brokers that stop in the middle, and answers that are lost: all end where an undisturbed broker ends.

use futures_util::future::join_all;
use postern_core::audit::AuditRecord;
use postern_store::testing::memory::Fault::{self, After, Before, Conflict, Full, Nothing};

use super::*;
use crate::signals::grant_changes::GrantChange;

const OTHER_VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef1";

/// Every fault at the commit of every move of a grant: active, closing, closed.
fn faults() -> impl Iterator<Item = (Fault, usize)> {
    [Before, After, Full, Conflict].into_iter().flat_map(|fault| (0..3).map(move |step| (fault, step)))
}

/// A world with a grant of one second that meets the fault.
async fn meeting(fault: Fault, step: usize) -> (ReconcilerWorld, GrantId) {
    let world = ReconcilerWorld::new();
    let grant = world.ask(a_grant().seconds(1)).await;
    world.store.fail_next(std::iter::repeat_n(Nothing, step).chain([fault]));
    (world, grant.id)
}

/// The states that were reached, by the audit log.
async fn moves(world: &ReconcilerWorld) -> Vec<String> {
    let lines = world.store.audit_lines(0, 1000).await.unwrap();
    let record = |line: &str| serde_json::from_str::<AuditRecord>(line).unwrap();
    lines.iter().filter_map(|(_, line)| record(line).event.details.get("state").cloned()).collect()
}

#[tokio::test]
async fn i8_every_fault_of_the_store_at_every_step_converges() {
    let stories = faults().map(|(fault, step)| async move {
        let (world, grant) = meeting(fault, step).await;
        with_agent(&world, async {
            world.reaches(grant, "closed").await;
            world.cloud_holds(0).await;
        })
        .await;
        assert_eq!(moves(&world).await, ["active", "closing", "closed"], "{fault:?} at {step}");
    });
    join_all(stories).await;
}

#[tokio::test]
async fn i8_brokers_that_stop_after_every_fault_converge() {
    // Shorter than a broker waits before it tries again: whatever failed is left to the next one.
    let life = STORE_RETRY / 3;
    let stories = faults().map(|(fault, step)| async move {
        let (mut world, grant) = meeting(fault, step).await;
        for _ in 0..200 {
            with_agent(&world, tokio::time::sleep(life)).await;
            if world.state(grant).await.is_final() {
                break;
            }
            world = world.restarted();
        }
        let held = world.cloud.windows(&VM.parse().unwrap());
        assert!(held.is_empty(), "{fault:?} at {step}: {held:?}");
        assert_eq!(moves(&world).await, ["active", "closing", "closed"], "{fault:?} at {step}");
    });
    join_all(stories).await;
}

#[tokio::test]
async fn i8_a_broker_that_starts_in_the_middle_goes_on_from_there() {
    let first = ReconcilerWorld::new();
    let grant = with_agent(&first, async {
        let grant = first.ask(a_grant().seconds(2)).await;
        first.reaches(grant.id, "active").await;
        grant
    })
    .await;
    let second = first.restarted();
    with_agent(&second, async {
        pause(200).await;
        assert_eq!(second.state(grant.id).await, GrantState::Active, "nothing flaps");
        second.reaches(grant.id, "closed").await;
        second.cloud_holds(0).await;
    })
    .await;
}

#[tokio::test]
async fn i8_answers_of_the_cloud_that_were_lost_are_found_out() {
    let world = ReconcilerWorld::new();
    with_agent(&world, async {
        // The look, and then the opening: it takes effect, and its answer is lost.
        world.cloud.fail_next([fake::Fault::After, fake::Fault::After, fake::Fault::After]);
        let grant = world.ask(a_grant()).await;
        world.reaches(grant.id, "active").await;
        world.cloud_holds(1).await;
        world.cloud.fail_next([fake::Fault::After, fake::Fault::After]);
        world.revoke(grant.id).await;
        world.reaches(grant.id, "closed").await;
        world.cloud_holds(0).await;
    })
    .await;
}

#[tokio::test]
async fn i8_a_move_whose_answer_was_lost_reaches_every_target_and_every_watcher() {
    let world = ReconcilerWorld::new();
    let (gone, other): (TargetId, TargetId) = (VM.parse().unwrap(), OTHER_VM.parse().unwrap());
    world.cloud.terminate(&gone);
    world
        .during(async {
            // After the full pass with which a broker starts, only who is woken looks.
            pause(50).await;
            let now = world.reconciler.clock.now();
            let grant = a_grant().on(VM).and_on(OTHER_VM).layers(Layers::Cloud).asked_at(now).build();
            world.keep(&grant, Expect::Absent).await;
            world.reconciler.wakeups.wake(&other);
            while world.cloud.windows(&other).is_empty() {
                pause(5).await;
            }
            pause(50).await;
            // The pass over the target that is gone rolls the grant back, and does not get the answer.
            let mut changes = world.reconciler.grant_changes.watch();
            world.store.fail_next([After]);
            world.reconciler.wakeups.wake(&gone);
            assert_eq!(changes.recv().await, Ok(GrantChange::Of(grant.id)), "it closes");
            assert_eq!(world.state(grant.id).await.word(), "closing");
            assert_eq!(changes.recv().await, Ok(GrantChange::Of(grant.id)), "it is closed");
            assert_eq!(world.state(grant.id).await.word(), "failed");
            assert!(world.cloud.windows(&other).is_empty());
        })
        .await;
}
