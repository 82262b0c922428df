//! A store with metrics: the time of its answers, its failures, and the events of grants in it.
//!
//! Every call goes to the store under it, and the same conformance suite holds.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use postern_core::audit::{AuditEvent, Head, Outcome};
use postern_core::{Grant, GrantId, GrantState, Name, Policy, TargetId};

use super::{ACTIVATION, GRANT_TRANSITIONS, STORE_CALLS, STORE_FAILURES};
use crate::clock::boottime;
use postern_store::{
    AgentRecord, Change, Durable, GrantQuery, Lease, Store, StoreError, TargetSnapshot, TokenHash,
    TokenRecord, Transaction, Versioned,
};

/// A store with metrics.
pub struct InstrumentedStore {
    store: Arc<dyn Store>,
}

impl InstrumentedStore {
    /// Adds metrics to a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }
}

#[async_trait]
impl Store for InstrumentedStore {
    async fn commit(&self, transaction: Transaction) -> Result<Head, StoreError> {
        let moves = moves(&transaction);
        let head = timed("commit", self.store.commit(transaction)).await?;
        moves.into_iter().for_each(Move::count);
        Ok(head)
    }

    async fn grant(&self, id: GrantId) -> Result<Option<Versioned<Grant>>, StoreError> {
        read(self.store.grant(id)).await
    }

    async fn durable_grant(&self, id: GrantId) -> Result<Durable<Option<Versioned<Grant>>>, StoreError> {
        read(self.store.durable_grant(id)).await
    }

    async fn grants(&self, query: GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError> {
        read(self.store.grants(query)).await
    }

    async fn open_grants(&self) -> Result<Vec<Versioned<Grant>>, StoreError> {
        read(self.store.open_grants()).await
    }

    async fn grant_of_request(&self, principal: &Name, key: &str) -> Result<Option<GrantId>, StoreError> {
        read(self.store.grant_of_request(principal, key)).await
    }

    async fn snapshot(&self, lease: &Lease) -> Result<TargetSnapshot, StoreError> {
        read(self.store.snapshot(lease)).await
    }

    async fn policies(&self) -> Result<Vec<Versioned<Policy>>, StoreError> {
        read(self.store.policies()).await
    }

    async fn policy(&self, name: &Name) -> Result<Option<Versioned<Policy>>, StoreError> {
        read(self.store.policy(name)).await
    }

    async fn durable_policy(&self, name: &Name) -> Result<Durable<Option<Versioned<Policy>>>, StoreError> {
        read(self.store.durable_policy(name)).await
    }

    async fn agents(&self) -> Result<Vec<Versioned<AgentRecord>>, StoreError> {
        read(self.store.agents()).await
    }

    async fn agent(&self, target: &TargetId) -> Result<Option<Versioned<AgentRecord>>, StoreError> {
        read(self.store.agent(target)).await
    }

    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        read(self.store.token(hash)).await
    }

    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        read(self.store.audit_lines(after, limit)).await
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        read(self.store.audit_head()).await
    }

    async fn lost(&self) -> String {
        self.store.lost().await
    }

    async fn ended(&self) -> String {
        self.store.ended().await
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
        Ok(_) | Err(StoreError::Conflict { .. } | StoreError::Fenced { .. }) => {}
        Err(
            StoreError::Migration(_)
            | StoreError::Unaudited
            | StoreError::Full
            | StoreError::NewerSchema { .. }
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

fn moves(transaction: &Transaction) -> Vec<Move> {
    let events = transaction.audit.iter().filter_map(event).map(Move::Event);
    let is_activation = transaction.audit.iter().any(|event| event.action == "grant.activated");
    let activated = transaction.changes.iter().filter(|_| is_activation).filter_map(|change| match change {
        Change::PutGrant { grant, .. } if grant.state == GrantState::Active => {
            Some(Move::Active(seconds(grant.requested_at, grant.opened_at?)))
        }
        Change::PutGrant { .. }
        | Change::RememberRequest { .. }
        | Change::PutPolicy { .. }
        | Change::DeletePolicy { .. }
        | Change::PutAgent { .. }
        | Change::PutToken { .. }
        | Change::TakeToken { .. } => None,
    });
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

    use super::*;
    use crate::telemetry;
    use crate::testing::builders::{a_grant, at, start};
    use postern_store::Expect;
    use postern_store::testing::conformance;
    use postern_store::testing::memory::{Fault, Memory};

    impl conformance::Leasing for InstrumentedStore {}

    #[tokio::test(flavor = "multi_thread")]
    async fn it_conforms() {
        conformance::run(async || InstrumentedStore::new(Arc::new(Memory::default()))).await;
    }

    #[tokio::test]
    async fn calls_failures_and_what_became_of_grants_are_counted() {
        let recorder = telemetry::recorder().unwrap();
        let _guard = metrics::set_default_local_recorder(&recorder);
        telemetry::begin();
        let memory = Arc::new(Memory::default());
        let store = InstrumentedStore::new(Arc::clone(&memory) as _);
        let put = |grant: &Grant, expect, action: &str| {
            let change = Change::PutGrant { grant: grant.clone(), expect };
            Transaction::default().change(change).audit(AuditEvent::done(at(0), "a test", action))
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
