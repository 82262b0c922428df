//! With `replicas = 1` no caller gets the answer "it is so already" before a replica has the record that says so (I4).

use std::time::Duration;

use postern_core::Role;
use postern_proto::v1;
use postern_proto::v1::GrantState;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_tests::clock::wait_until;
use postern_tests::redis::Group;
use postern_tests::{Broker, Client, Net, Refusal, RequestBuilder, VM, a_request, usual_policy};
use tempfile::TempDir;
use tonic::Status;

/// The longest time until a broker has found the new primary, and that has a replica.
const RECOVERY: Duration = Duration::from_secs(60);

fn ask(net: &Net, key: &str) -> RequestBuilder {
    a_request().on(VM).port("tcp/22").from(net.alice.v4()).key(key)
}

/// Revokes a grant without waiting until it is closed.
fn revoke(client: &Client, grant_id: &str) -> Result<v1::Grant, Status> {
    let request =
        v1::RevokeAccessRequest { grant_id: grant_id.to_owned(), ..v1::RevokeAccessRequest::default() };
    let answer = client
        .run(|channel| async move { AccessServiceClient::new(channel).revoke_access(request).await })?;
    Ok(answer.into_inner().grant.unwrap())
}

fn is_unconfirmed<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let refused = Refusal::from(answer.unwrap_err());
    assert_eq!(refused.reason, "STORE_UNAVAILABLE", "{refused:?}");
}

#[test]
fn i4_a_repeated_call_is_not_answered_from_a_record_that_only_the_primary_has() {
    let (net, dir) = (Net::new(), TempDir::with_prefix("postern-").unwrap());
    let mut group = Group::start(&net.hub, 1);
    let mut broker = Broker::init_with(&net.hub, &dir.path().join("broker"), &group.configuration(1));
    broker.serve();
    let (admin, alice) = (broker.admin(&net.hub), broker.client(&net.alice, "alice", Role::Requester));
    let policy = usual_policy().waiting_for_agents();
    admin.put_policy(policy.clone().wire()).unwrap();
    let kept = alice.request(&ask(&net, "kept")).unwrap().grant.unwrap();

    group.cut_replication();
    let more = policy.port("tcp/3389").wire();
    for _ in 0..2 {
        is_unconfirmed(alice.request(&ask(&net, "lost")));
        is_unconfirmed(revoke(&alice, &kept.id));
        is_unconfirmed(admin.put_policy(more.clone()));
    }
    group.kill9(0);
    group.resume(1);
    group.wait_for_primary(1);
    group.restart(0);

    // The new primary has no record of those calls. A caller that repeats them now gets what it asks for.
    wait_until("the store to answer", RECOVERY, || alice.request(&ask(&net, "after")).is_ok());
    assert_eq!(alice.grant(&kept.id).unwrap().state(), GrantState::Opening);
    assert!(!alice.request(&ask(&net, "lost")).unwrap().repeated_request);
    assert_eq!(revoke(&alice, &kept.id).unwrap().state(), GrantState::Closing);
    assert!(!broker.log().contains("store.went_back"), "{}", broker.log());
}
