//! A broker's loops over a store and a cloud that tests lead.

use std::future::Future;

use postern_core::Layers;
use postern_core::target::CloudKind;
use postern_core::{CloseReason, Event, GrantId, GrantState};
use postern_provider::Provider as _;
use postern_provider::fake::FakeCloud;
use postern_store::testing::memory::Memory;
use postern_store::{Expect, Transaction};

use super::super::*;
use crate::layers::host::desired_state::Outgoing;
use crate::layers::host::session_state::SessionOrigin;
use crate::layers::host::sessions::AgentSession;
use crate::signals::rounds::Task;
use crate::testing::builders::GrantBuilder;
use crate::testing::observer_over;
use crate::testing::reporter;

/// The VM that every test is about.
pub(super) const VM: &str = "aws:123456789012/eu-central-1/i-0123456789abcdef0";

/// A broker's loops over a store and a cloud that outlive it.
pub(super) struct ReconcilerWorld {
    pub(super) store: Memory,
    pub(super) cloud: Arc<FakeCloud>,
    pub(super) reconciler: Reconciler,
}

impl ReconcilerWorld {
    pub(super) fn new() -> Self {
        Self::over(Memory::default(), Arc::default())
    }

    /// Another broker process over the same store and cloud.
    pub(super) fn restarted(&self) -> Self {
        Self::over(self.store.clone(), Arc::clone(&self.cloud))
    }

    pub(super) fn over(store: Memory, cloud: Arc<FakeCloud>) -> Self {
        let (clock, wakeups) = (Clock::start(Timestamp::UNIX_EPOCH), Arc::new(Wakeups::default()));
        let cluster = Cluster::alone();
        let observer = observer_over(&cloud, clock, &wakeups, &cluster);
        let reconciler = Reconciler {
            store: store.store(),
            sessions: Arc::clone(&observer.sessions),
            cloud: Arc::clone(&observer.cloud),
            observer,
            cluster,
            wakeups,
            grant_changes: GrantChanges::default(),
            clock,
            progress: Arc::default(),
        };
        Self { store, cloud, reconciler }
    }

    /// Runs the broker's loops until the story ends.
    pub(super) async fn during<T>(&self, story: impl Future<Output = T>) -> T {
        let outcome = tokio::time::timeout(Duration::from_secs(60), async {
            tokio::select! {
                ended = self.reconciler.clone().run(reporter(Task::Reconciler)) => panic!("the reconciler ended: {ended:?}"),
                ended = Arc::clone(&self.reconciler.cloud).run(reporter(Task::CloudLayer)) => panic!("the driver ended: {ended:?}"),
                outcome = story => outcome,
            }
        });
        outcome.await.expect("the story comes to its end")
    }

    /// A sweep of the cloud, as happens when a broker starts.
    pub(super) async fn sweep(&self) {
        self.reconciler.cloud.sweep(CloudKind::Aws, &mut BTreeSet::new()).await;
    }

    pub(super) fn connect(&self) -> AgentSession {
        self.reconciler.sessions.connect(&VM.parse().unwrap(), "test".to_owned(), SessionOrigin::default())
    }

    /// Stores a grant on the VM in both layers, requested now.
    pub(super) async fn ask(&self, grant: GrantBuilder) -> Grant {
        let grant = grant.on(VM).layers(Layers::Both).asked_at(self.reconciler.clock.now()).build();
        self.put(&grant, Expect::Absent).await;
        grant
    }

    pub(super) async fn put(&self, grant: &Grant, expect: Expect) {
        self.keep(grant, expect).await;
        self.reconciler.wakeups.wake(&VM.parse().unwrap());
    }

    /// Stores a grant, and wakes no target.
    pub(super) async fn keep(&self, grant: &Grant, expect: Expect) {
        let event = postern_core::audit::AuditEvent::done(grant.requested_at, "a test", "put");
        let changes = Transaction::default().put_grant(grant.clone(), expect).audit(event);
        // Boxed: the futures of the stories hold its size.
        Box::pin(self.store.commit(changes)).await.unwrap();
    }

    pub(super) async fn revoke(&self, id: GrantId) {
        let found = self.store.grant(id).await.unwrap().unwrap();
        let next =
            found.record.after(Event::Close(CloseReason::Expired), self.reconciler.clock.now()).unwrap();
        self.put(&next, Expect::Version(found.version)).await;
    }

    pub(super) async fn state(&self, id: GrantId) -> GrantState {
        self.store.grant(id).await.unwrap().unwrap().record.state
    }

    pub(super) async fn reaches(&self, id: GrantId, word: &str) -> GrantState {
        loop {
            let state = self.state(id).await;
            if state.word() == word {
                return state;
            }
            assert!(!state.is_final(), "{id} is {state:?} and will never be {word}");
            pause(10).await;
        }
    }

    pub(super) async fn cloud_holds(&self, count: usize) {
        while self.cloud.observe(&VM.parse().unwrap()).await.map_or(0, |held| held.windows.len()) != count {
            pause(10).await;
        }
    }
}

pub(super) async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// An agent that holds every state that is pushed to it.
pub(super) async fn obey(mut session: AgentSession) {
    loop {
        match session.next().await {
            Outgoing::Push(pushed) => session.applied(pushed.generation, None),
            Outgoing::Nothing => {}
            Outgoing::End(_) => return,
        }
    }
}

/// The story, with an agent that obeys meanwhile.
pub(super) async fn with_agent<T>(world: &ReconcilerWorld, story: impl Future<Output = T>) -> T {
    let session = world.connect();
    // Boxed: the future of a story would be large otherwise.
    let run = Box::pin(world.during(async {
        tokio::select! {
            () = obey(session) => panic!("the session ended"),
            outcome = story => outcome,
        }
    }));
    run.await
}
