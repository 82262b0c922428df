//! The authority of several brokers: each renews an intermediate of its own under the one root, and all refuse a revoked one.

use postern_core::Role;
use postern_pki::{Authority, TrustDomain};
use postern_proto::v1;
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_tests::clock::wait_until;
use postern_tests::{Cli, Client, Refusal, STEP_TIMEOUT};

use crate::world::{Options, ReplicaWorld};

/// The serial number of the intermediate with which a replica signs and serves.
fn intermediate(world: &ReplicaWorld, replica: usize) -> String {
    let cli = Cli::new(&world.net.alice, world.replicas.replica(replica).url(), world.admin.identity());
    let status = cli.json(&["status"]).remove(0);
    status["authority"]["intermediate"]["serial"].as_str().unwrap().to_owned()
}

#[test]
fn certificates_of_an_old_and_a_new_intermediate_are_good_on_every_broker_of_a_store() {
    let world = ReplicaWorld::new(&Options { brokers: 2, hosts: 4, instances: 0, agents_at: None });
    let old = intermediate(&world, 0);
    assert_eq!(intermediate(&world, 1), old, "both began with the first one's files");

    let first = world.replicas.replica(0).broker().data_dir().join("ca");
    let root_key = first.join("root.key").to_string_lossy().into_owned();
    world.replicas.replica(0).broker().must(&["authority", "renew", "--root-key", &root_key]);
    wait_until("the first broker to take it up", STEP_TIMEOUT * 2, || intermediate(&world, 0) != old);
    assert_eq!(intermediate(&world, 1), old, "the other one's files are its own");

    // People of the old one and of the new at both brokers, one of which serves under the new one.
    let (of_old, of_new) = (world.admin.identity().to_owned(), world.issue("new", Role::Administrator));
    for identity in [of_old, of_new] {
        for replica in [0, 1] {
            let url = world.replicas.replica(replica).url();
            let checked = Cli::new(&world.net.alice, url, &identity).run(&["status", "--check"]);
            assert!(checked.succeeded(), "{identity:?} at {replica}: {checked:?}");
        }
    }
    // Agents of the old one at the broker with the new one.
    world.replicas.replica(1).kill9();
    let admin = Cli::new(&world.net.alice, world.replicas.replica(0).url(), world.admin.identity());
    wait_until("every agent to come to the first broker", STEP_TIMEOUT, || {
        let replicas = admin.json(&["status"]).remove(0)["replicas"].clone();
        replicas
            .as_array()
            .unwrap()
            .iter()
            .any(|replica| replica["answers"] == true && replica["agents"] == 4)
    });
}

#[test]
fn i7_an_intermediate_that_is_revoked_on_one_broker_is_refused_by_the_others() {
    let world = ReplicaWorld::new(&Options { brokers: 2, hosts: 1, instances: 0, agents_at: None });
    let other = world.replicas.replica(1).url().to_owned();
    let alice = Client::new(&world.net.alice, &other, &world.issue("alice", Role::Requester));
    assert!(alice.grants().is_empty());
    let stream = alice.start(|channel| async move {
        let watch = v1::WatchGrantsRequest { filter: None };
        let mut grants = AccessServiceClient::new(channel).watch_grants(watch).await.unwrap().into_inner();
        loop {
            if let Err(end) = grants.message().await {
                return end;
            }
        }
    });
    let dir = world.replicas.replica(0).broker().data_dir().join("ca");
    let authority = Authority::load(&dir, &TrustDomain::default()).unwrap();
    let (people, agents) =
        (authority.people().unwrap().unwrap().key.to_string(), authority.intermediate().key.to_string());
    let root_key = dir.join("root.key").to_string_lossy().into_owned();
    let revoke = |key: &str| {
        let command = ["authority", "revoke-intermediate", key, "--root-key", &root_key];
        world.replicas.replica(0).broker().must(&command);
    };
    revoke(&people);
    assert_eq!(Refusal::from(stream.join()).reason, "PROOF_REVOKED", "on the broker without the list");

    // The other broker has a copy of the stolen key, and says that it still signs with it.
    revoke(&agents);
    let admin = Cli::new(&world.net.alice, &other, &world.issue("another", Role::Administrator));
    wait_until("the other broker to warn of its own intermediate", STEP_TIMEOUT * 2, || {
        admin.run(&["status", "--check"]).out.contains("is revoked, and still signs")
    });
    // As the documentation says: copy the new one.
    let to = world.replicas.replica(1).broker().data_dir().join("ca/intermediate.key");
    let new = std::fs::read(dir.join("intermediate.key")).unwrap();
    std::fs::write(to.with_extension("new"), new).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(to.with_extension("new"), private).unwrap();
    std::fs::rename(to.with_extension("new"), &to).unwrap();
    wait_until("the other broker to take up the new one", STEP_TIMEOUT * 2, || {
        !admin.run(&["status", "--check"]).out.contains("is revoked, and still signs")
    });
}
