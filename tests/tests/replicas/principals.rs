//! The revocation of a principal, on every broker of a store.

use std::time::Duration;

use postern_core::Role;
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_tests::clock::{monotonic, wait_until};
use postern_tests::{Cli, Client, Refusal, STEP_TIMEOUT};

use crate::world::{Options, ReplicaWorld};

/// The time within which every broker knows a revocation.
const KNOWN_WITHIN: Duration = Duration::from_secs(2);

#[test]
fn i7_a_revocation_holds_on_every_broker_within_two_seconds_and_ends_its_streams() {
    let world = ReplicaWorld::new(&Options { brokers: 2, hosts: 1, instances: 0, agents_at: None });
    let identity = world.issue("alice", Role::Requester);
    let (one, other) = (world.replicas.replica(0).url(), world.replicas.replica(1).url());
    let alice = Client::new(&world.net.alice, other, &identity);
    let admin = Cli::new(&world.net.vm, one, world.admin.identity());
    assert!(alice.grants().is_empty());
    let watch = v1::WatchGrantsRequest { filter: None };
    let stream = alice.start(|channel| async move {
        let mut grants = AccessServiceClient::new(channel).watch_grants(watch).await.unwrap().into_inner();
        loop {
            if let Err(end) = grants.message().await {
                return (end, monotonic());
            }
        }
    });
    // The other broker knows its issued principals from the store, too.
    let others = Cli::new(&world.net.vm, other, world.admin.identity());
    wait_until("the other broker to know her", STEP_TIMEOUT, || {
        others.run(&["principals", "list"]).out.contains("alice")
    });

    assert!(admin.run(&["principals", "revoke", "alice", "--reason", "left"]).succeeded());
    let answered = monotonic();
    let (end, ended_at) = stream.join();
    assert_eq!(Refusal::from(end).reason, "PROOF_REVOKED");
    let late = ended_at.saturating_duration_since(answered);
    assert!(late < KNOWN_WITHIN, "{late:?}");
    let request = v1::ListGrantsRequest::default();
    let refused =
        alice.run(|channel| async move { AccessServiceClient::new(channel).list_grants(request).await });
    assert_eq!(Refusal::from(refused.unwrap_err()).reason, "PROOF_REVOKED");
}
