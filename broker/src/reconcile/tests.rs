//! The reconciler with a store in memory, a fake cloud, and agents led by hand.

use std::collections::BTreeMap;
use std::future::Future;

use postern_core::policy::Layers;
use postern_core::target::CloudKind;
use postern_core::{CloseReason, Event, GrantId, GrantState};

use super::*;
use crate::cloud::fake::{self, FakeCloud};
use crate::cloud::{CloudError, Provider};
use crate::hub::{Outgoing, Session};
use crate::samples::{GrantBuilder, a_grant};
use crate::store::memory::{self, Memory};
use crate::store::{Change, Expect, Transaction};

const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

/// A broker's loops over a store and a cloud that outlive it.
struct World {
    store: Arc<Memory>,
    cloud: Arc<FakeCloud>,
    reconciler: Reconciler,
}

impl World {
    fn new() -> Self {
        Self::over(Arc::default(), Arc::default())
    }

    /// Another broker process over the same store and cloud.
    fn restarted(&self) -> Self {
        Self::over(Arc::clone(&self.store), Arc::clone(&self.cloud))
    }

    fn over(store: Arc<Memory>, cloud: Arc<FakeCloud>) -> Self {
        let (clock, wakeups) = (Clock::start(Timestamp::UNIX_EPOCH), Arc::new(Wakeups::default()));
        let aws: Arc<dyn Provider> = Arc::clone(&cloud) as _;
        let reconciler = Reconciler {
            store: Arc::clone(&store) as _,
            hub: Hub::new(clock, Arc::clone(&wakeups)),
            clouds: Clouds::new(BTreeMap::from([(CloudKind::Aws, aws)]), clock, Arc::clone(&wakeups)),
            wakeups,
            feed: Feed::default(),
            clock,
            pulse: Arc::default(),
        };
        Self { store, cloud, reconciler }
    }

    /// Runs the broker's loops until the story is told.
    async fn during<T>(&self, story: impl Future<Output = T>) -> T {
        let told = tokio::time::timeout(Duration::from_secs(20), async {
            tokio::select! {
                ended = self.reconciler.clone().run() => panic!("the reconciler ended: {ended:?}"),
                ended = Arc::clone(&self.reconciler.clouds).run() => panic!("the driver ended: {ended:?}"),
                told = story => told,
            }
        });
        told.await.expect("the story comes to its end")
    }

    fn connect(&self) -> Session {
        self.reconciler.hub.connect(&VM.parse().unwrap(), "test".to_owned())
    }

    /// A grant on the VM in both layers, asked for now and kept.
    async fn ask(&self, grant: GrantBuilder) -> Grant {
        let grant = grant.on(VM).layers(Layers::Both).asked_at(self.reconciler.clock.now()).build();
        self.put(&grant, Expect::Absent).await;
        grant
    }

    async fn put(&self, grant: &Grant, expect: Expect) {
        let change = Change::PutGrant { grant: grant.clone(), expect };
        let event = postern_core::audit::AuditEvent::done(grant.requested_at, "a test", "put");
        self.store.commit(Transaction::default().change(change).audit(event)).await.unwrap();
        self.reconciler.wakeups.wake(&VM.parse().unwrap());
    }

    async fn revoke(&self, id: GrantId) {
        let found = self.store.grant(id).await.unwrap().unwrap();
        let next =
            found.record.after(Event::Close(CloseReason::Expired), self.reconciler.clock.now()).unwrap();
        self.put(&next, Expect::Version(found.version)).await;
    }

    async fn state(&self, id: GrantId) -> GrantState {
        self.store.grant(id).await.unwrap().unwrap().record.state
    }

    async fn reaches(&self, id: GrantId, word: &str) -> GrantState {
        loop {
            let state = self.state(id).await;
            if state.word() == word {
                return state;
            }
            assert!(!state.is_final(), "{id} is {state:?} and will never be {word}");
            pause(10).await;
        }
    }

    async fn cloud_holds(&self, count: usize) {
        while self.cloud.observe(&VM.parse().unwrap()).await.map_or(0, |windows| windows.len()) != count {
            pause(10).await;
        }
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// An agent that holds whatever it is told.
async fn obey(mut session: Session) {
    loop {
        match session.next().await {
            Outgoing::Tell(told) => session.applied(told.generation, None),
            Outgoing::Nothing => {}
            Outgoing::End(_) => return,
        }
    }
}

/// The story, with an agent that obeys meanwhile.
async fn with_agent<T>(world: &World, story: impl Future<Output = T>) -> T {
    let session = world.connect();
    world
        .during(async {
            tokio::select! {
                () = obey(session) => panic!("the session ended"),
                told = story => told,
            }
        })
        .await
}

fn unavailable() -> fake::Fault {
    fake::Fault::Before(CloudError::Unavailable { reason: "a test".to_owned() })
}

#[tokio::test]
async fn i5_a_grant_is_active_once_both_layers_have_confirmed_and_not_before() {
    let world = World::new();
    world.cloud.fail_next([unavailable(), unavailable()]);
    let mut session = world.connect();
    world
        .during(async {
            let grant = world.ask(a_grant()).await;
            let told = loop {
                if let Outgoing::Tell(told) = session.next().await
                    && !told.desired.windows.is_empty()
                {
                    break told;
                }
            };
            world.cloud_holds(1).await;
            pause(100).await;
            assert_eq!(world.state(grant.id).await, GrantState::Opening, "the host layer has not confirmed");
            session.applied(told.generation, None);
            world.reaches(grant.id, "active").await;
        })
        .await;
}

#[tokio::test]
async fn i5_what_one_layer_refuses_is_rolled_back_in_the_other() {
    let world = World::new();
    let refused = || fake::Fault::Before(CloudError::Refused { reason: "the quota is used up".to_owned() });
    // The first call is the look at what is there.
    world.cloud.fail_next([refused()]);
    let failed = with_agent(&world, async {
        let grant = world.ask(a_grant()).await;
        world.reaches(grant.id, "failed").await
    });
    assert!(failed.await.reason().contains("the quota is used up"));

    let world = World::new();
    let mut session = world.connect();
    world
        .during(async {
            let grant = world.ask(a_grant()).await;
            let refusing = async {
                loop {
                    if let Outgoing::Tell(told) = session.next().await {
                        let error = (!told.desired.windows.is_empty()).then(|| "no nftables here".to_owned());
                        session.applied(told.generation, error);
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
    let world = World::new();
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
    let world = World::new();
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
    let world = World::new();
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
async fn i2_a_window_that_the_store_knows_nothing_of_is_closed_at_the_first_look() {
    let lost = World::new();
    let grant = with_agent(&lost, async {
        let grant = lost.ask(a_grant()).await;
        lost.reaches(grant.id, "active").await;
        grant
    })
    .await;
    let world = World::over(Arc::default(), Arc::clone(&lost.cloud));
    world
        .during(async {
            world.reconciler.wakeups.wake(&VM.parse().unwrap());
            world.cloud_holds(0).await;
        })
        .await;
    assert!(world.store.grant(grant.id).await.unwrap().is_none());
}

#[tokio::test]
async fn i8_every_fault_of_the_store_at_every_step_converges() {
    use memory::Fault::{After, Before, Conflict, Full};
    for fault in [Before, After, Full, Conflict] {
        for step in 0..3 {
            let world = World::new();
            with_agent(&world, async {
                let grant = world.ask(a_grant().seconds(1)).await;
                // To be committed are: active, closing, closed.
                world.store.fail_next(std::iter::repeat_n(memory::Fault::Nothing, step).chain([fault]));
                world.reaches(grant.id, "closed").await;
                world.cloud_holds(0).await;
            })
            .await;
            let lines = world.store.audit_lines(0, 100).await.unwrap();
            let moves = lines.iter().filter(|(_, line)| line.contains("\"grant.")).count();
            assert_eq!(moves, 3, "{fault:?} at {step}: each move has one record: {lines:#?}");
        }
    }
}

#[tokio::test]
async fn i8_a_broker_that_starts_in_the_middle_goes_on_from_there() {
    let first = World::new();
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
    let world = World::new();
    with_agent(&world, async {
        // The look, and then the opening: it takes effect, and nobody hears of it.
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
async fn an_older_grant_closes_once_the_newer_is_active_and_stays_where_it_fails() {
    let world = World::new();
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
async fn i5_a_grant_for_an_agent_that_never_heard_of_it_fails_at_once_and_one_that_may_wait_waits() {
    let world = World::new();
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
