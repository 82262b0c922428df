//! The authority of several brokers: each renews an intermediate of its own under the one root.

use postern_core::Role;
use postern_tests::clock::wait_until;
use postern_tests::{Cli, STEP_TIMEOUT};

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
