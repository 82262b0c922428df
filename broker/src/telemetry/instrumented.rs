//! A store with metrics: the time of its answers, its failures, and the events of grants in it.
//!
//! Every call goes to the store under it, and the same conformance suite holds.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use postern_core::audit::{AuditEvent, Head, Outcome};
use postern_core::{Grant, GrantState};
use postern_store::{
    Backend, Batch, Document, DocumentPage, Durable, Kind, LastVersion, Lease, Range, Room, Snapshot,
    SnapshotQuery, Store, StoreError,
};

use super::{ACTIVATION, GRANT_TRANSITIONS, STORE_CALLS, STORE_FAILURES};
use crate::clock::boottime;

/// A backend with metrics.
pub struct InstrumentedStore {
    backend: Arc<dyn Backend>,
}

impl InstrumentedStore {
    /// Adds metrics to a store.
    pub fn over(store: &Store) -> Store {
        store.wrapped(|backend| Arc::new(Self { backend }))
    }
}

#[async_trait]
impl Backend for InstrumentedStore {
    async fn apply(&self, batch: Batch) -> Result<Head, StoreError> {
        let moves = moves(&batch);
        let head = timed("commit", self.backend.apply(batch)).await?;
        moves.into_iter().for_each(Move::count);
        Ok(head)
    }

    async fn get(&self, kind: Kind, key: &str) -> Result<Option<Document>, StoreError> {
        read(self.backend.get(kind, key)).await
    }

    async fn get_durable(&self, kind: Kind, key: &str) -> Result<Durable<Option<Document>>, StoreError> {
        read(self.backend.get_durable(kind, key)).await
    }

    async fn last_version(&self, kind: Kind, key: &str) -> Result<LastVersion, StoreError> {
        read(self.backend.last_version(kind, key)).await
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Document>, StoreError> {
        read(self.backend.list(kind)).await
    }

    async fn range(&self, kind: Kind, range: Range<'_>) -> Result<DocumentPage, StoreError> {
        read(self.backend.range(kind, range)).await
    }

    async fn scan(&self, kind: Kind, from: Option<&str>, limit: usize) -> Result<DocumentPage, StoreError> {
        read(self.backend.scan(kind, from, limit)).await
    }

    async fn count(&self, kind: Kind, index: &str) -> Result<usize, StoreError> {
        read(self.backend.count(kind, index)).await
    }

    async fn snapshot(&self, lease: &Lease, wanted: SnapshotQuery<'_>) -> Result<Snapshot, StoreError> {
        read(self.backend.snapshot(lease, wanted)).await
    }

    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        read(self.backend.audit_lines(after, limit)).await
    }

    async fn audit_base(&self) -> Result<Head, StoreError> {
        read(self.backend.audit_base()).await
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        read(self.backend.audit_head()).await
    }

    async fn room(&self) -> Result<Option<Room>, StoreError> {
        read(self.backend.room()).await
    }

    async fn lost(&self) -> String {
        self.backend.lost().await
    }

    async fn ended(&self) -> String {
        self.backend.ended().await
    }
}

async fn read<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timed("read", call).await
}

async fn timed<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let began = boottime();
    let answer = call.await;
    let took = boottime().saturating_sub(began);
    metrics::histogram!(STORE_CALLS, "operation" => operation).record(took.as_secs_f64());
    match &answer {
        Ok(_)
        | Err(StoreError::Conflict { .. } | StoreError::Fenced { .. } | StoreError::LowOnSpace { .. }) => {}
        Err(
            StoreError::Migration(_)
            | StoreError::Unaudited
            | StoreError::Full(_)
            | StoreError::NewerSchema { .. }
            | StoreError::Forged { .. }
            | StoreError::OtherKey
            | StoreError::Lacking { .. }
            | StoreError::PoliciesLost { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Unavailable { .. },
        ) => metrics::counter!(STORE_FAILURES, "operation" => operation).increment(1),
    }
    answer
}

/// A change of a grant that the metrics count.
#[derive(Debug, PartialEq)]
enum Move {
    /// An event of the grant.
    Event(String),
    /// The grant became active so many seconds after its request.
    Active(f64),
}

impl Move {
    fn count(self) {
        match self {
            Self::Event(event) => metrics::counter!(GRANT_TRANSITIONS, "event" => event).increment(1),
            Self::Active(seconds) => metrics::histogram!(ACTIVATION).record(seconds),
        }
    }
}

fn moves(batch: &Batch) -> Vec<Move> {
    let events = batch.audit.iter().filter_map(event).map(Move::Event);
    let is_activation = batch.audit.iter().any(|event| event.action == "grant.activated");
    let grants = batch.writes.iter().filter_map(|write| write.put.as_ref()?.record::<Grant>());
    let activated = grants.filter(|grant| is_activation && grant.state == GrantState::Active);
    let activated =
        activated.filter_map(|grant| Some(Move::Active(seconds(grant.requested_at, grant.opened_at?))));
    events.chain(activated).collect()
}

/// Returns the metric's label for an audit event about a grant.
fn event(event: &AuditEvent) -> Option<String> {
    let word = event.action.strip_prefix("grant.")?;
    match (event.outcome, word) {
        (Outcome::Done, _) => Some(word.to_owned()),
        (Outcome::Denied, "requested") => Some("refused".to_owned()),
        (Outcome::Denied, _) => None,
    }
}

fn seconds(since: Timestamp, until: Timestamp) -> f64 {
    until.duration_since(since).as_secs_f64().max(0.0)
}

#[cfg(test)]
mod tests {
    use postern_core::Event;
    use postern_store::testing::conformance;
    use postern_store::testing::memory::{Fault, Memory};
    use postern_store::{Expect, Transaction};

    use super::*;
    use crate::telemetry;
    use crate::testing::builders::{a_grant, at, start};

    #[tokio::test(flavor = "multi_thread")]
    async fn it_conforms() {
        conformance::run(async || InstrumentedStore::over(&Memory::default())).await;
    }

    #[tokio::test]
    async fn calls_failures_and_what_became_of_grants_are_counted() {
        let recorder = telemetry::recorder().unwrap();
        let _guard = metrics::set_default_local_recorder(&recorder);
        telemetry::begin();
        let memory = Memory::default();
        let store = InstrumentedStore::over(&memory);
        let put = |grant: &Grant, expect, action: &str| {
            Transaction::default().put_grant(grant.clone(), expect).audit(AuditEvent::done(
                at(0),
                "a test",
                action,
            ))
        };
        let grant = a_grant().build();
        let active = grant.after(Event::Confirmed, at(3)).unwrap();
        let denied = AuditEvent::denied(start(), "a test", "grant.requested");

        store.commit(put(&grant, Expect::Absent, "grant.requested")).await.unwrap();
        memory.fail_next([Fault::Before]);
        store.commit(put(&active, Expect::Version(1), "grant.activated")).await.unwrap_err();
        store.commit(put(&active, Expect::Version(7), "grant.activated")).await.unwrap_err();
        store.commit(put(&active, Expect::Version(1), "grant.activated")).await.unwrap();
        store.commit(Transaction::default().audit(denied)).await.unwrap();
        store.open_grants().await.unwrap();

        let scrape = recorder.handle().render();
        for line in [
            "postern_store_seconds_count{operation=\"commit\"} 5",
            "postern_store_seconds_count{operation=\"read\"} 1",
            "postern_store_failures_total{operation=\"commit\"} 1",
            "postern_store_failures_total{operation=\"read\"} 0",
            "postern_grant_transitions_total{event=\"requested\"} 1",
            "postern_grant_transitions_total{event=\"activated\"} 1",
            "postern_grant_transitions_total{event=\"refused\"} 1",
            "postern_activation_seconds_count 1",
            "postern_activation_seconds_sum 3",
        ] {
            assert!(scrape.lines().any(|found| found == line), "no {line:?} in\n{scrape}");
        }
    }
}
