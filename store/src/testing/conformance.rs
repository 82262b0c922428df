//! The promises of every store, as tests that each implementation runs.

mod at_once;
mod commits;
mod looks;
mod records;

use jiff::Timestamp;
use postern_core::audit::AuditEvent;
use postern_core::{CloseReason, Event, Grant, Policy, TargetId};

use crate::testing::builders::{at, start};
use crate::{AgentRecord, Expect, Lease, Store, StoreError, Transaction};

/// A store from which a test takes leases.
pub trait Leasing {
    /// Returns the store.
    fn store(&self) -> &Store;

    /// Returns the lease of a target. A single broker holds every lease.
    fn lease(&self, target: &TargetId) -> impl Future<Output = Lease> + Send {
        let lease = Lease { target: target.clone(), token: 0 };
        std::future::ready(lease)
    }
}

impl Leasing for Store {
    fn store(&self) -> &Store {
        self
    }
}

/// Runs every test, each on a store of its own. `open` makes an empty store.
pub async fn run<S: Leasing>(open: impl AsyncFn() -> S) {
    records::a_grant_is_kept_and_changed_by_its_version(open().await.store()).await;
    records::a_policy_is_kept_and_changed_by_its_version(open().await.store()).await;
    records::agents_are_kept_in_the_order_of_their_targets(open().await.store()).await;
    records::a_request_is_remembered_for_its_principal_alone(open().await.store()).await;
    records::a_policys_versions_count_on_after_it_was_deleted(open().await.store()).await;
    commits::a_transaction_happens_whole_or_not_at_all(open().await.store()).await;
    commits::a_transaction_may_depend_on_records_that_it_does_not_write(open().await.store()).await;
    commits::changes_see_those_before_them_in_their_transaction(open().await.store()).await;
    commits::changes_without_an_audit_event_are_refused(open().await.store()).await;
    commits::what_an_audit_event_says_is_what_the_log_says(open().await.store()).await;
    looks::an_empty_store_has_nothing(&open().await).await;
    looks::grants_are_listed_by_what_is_asked(&open().await).await;
    looks::pages_of_grants_meet_without_a_gap(&open().await).await;
    looks::a_scan_finds_every_record_with_its_key(open().await.store()).await;
    commits::i9_the_first_records_of_the_log_leave_and_the_chain_goes_on(open().await.store()).await;
    looks::a_snapshot_has_one_targets_part(&open().await).await;
    at_once::a_token_is_taken_once(open().await.store()).await;
    at_once::the_audit_log_is_one_chain_under_many_writers(open().await.store()).await;
    at_once::of_two_that_change_one_record_one_succeeds(open().await.store()).await;
    at_once::a_conflict_is_answered_once_its_cause_can_be_read(open().await.store()).await;
    at_once::of_two_requests_with_one_key_one_makes_its_grant(open().await.store()).await;
}

fn event() -> AuditEvent {
    AuditEvent::done(start(), "a test", "tested")
}

fn put(grant: &Grant, expect: Expect) -> Transaction {
    Transaction::default().put_grant(grant.clone(), expect).audit(event())
}

fn put_policy(policy: &Policy, expect: Expect) -> Transaction {
    Transaction::default().put_policy(policy.clone(), expect).audit(event())
}

fn is_conflict<T>(outcome: &Result<T, StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Conflict { .. }))
}

/// Returns the grant after it was closed for good.
fn closed(grant: &Grant, now: Timestamp) -> Grant {
    let closing = grant.after(Event::Close(CloseReason::Expired), now).unwrap();
    closing.after(Event::ClosedEverywhere, now).unwrap()
}

fn agent(target: &str) -> AgentRecord {
    AgentRecord {
        target: target.parse().unwrap(),
        enrolled_at: start(),
        certificate_not_after: at(3600),
        banned: None,
        keys: None,
        cloned: None,
        forgotten: None,
        roots: Vec::new(),
        certificate_root: None,
    }
}
