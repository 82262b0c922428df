//! Two machines with the identity of one agent, each at another broker of one store.

use std::fs;

use postern_tests::clock::wait_until;
use postern_tests::redis::Redis;
use postern_tests::{Agent, Net, ReplicaOptions, Replicas, STEP_TIMEOUT, VM, usual_policy};
use tempfile::TempDir;

#[test]
fn i7_two_machines_with_one_key_at_two_brokers_do_not_throw_each_other_out_for_ever() {
    let (dir, net) = (TempDir::with_prefix("postern-").unwrap(), Net::new());
    let redis = Redis::start(&net.hub);
    let options = ReplicaOptions { count: 2, named: true, checked: false, sections: "" };
    let replicas = Replicas::init(&net.hub, dir.path(), &redis, options);
    replicas.serve();
    let admin = replicas.admin(&net.alice);
    admin.put_policy(usual_policy().wire()).unwrap();
    let mut machine = Agent::new(&net.vm, replicas.replica(0).url(), &dir.path().join("agent"), &[]);
    machine.join(VM, &admin);
    assert!(admin.audited("agent.cloned").is_empty());

    let mut clone = Agent::new(&net.mallory, replicas.replica(1).url(), &dir.path().join("clone"), &[]);
    let identity = clone.state_dir().join("identity");
    fs::create_dir_all(&identity).unwrap();
    for name in ["key.pem", "cert.pem", "roots.pem"] {
        fs::copy(machine.state_dir().join("identity").join(name), identity.join(name)).unwrap();
    }
    clone.run();
    // Neither broker has a session of both: each learns of the other's through the store.
    let refused = "two machines use the key of this agent at the same time";
    wait_until("the clone to be noticed", STEP_TIMEOUT * 2, || !admin.audited("agent.cloned").is_empty());
    assert!(admin.audited("agent.cloned")[0].contains(refused));
    wait_until("one of the two to be refused", STEP_TIMEOUT, || {
        [machine.log(), clone.log()].iter().any(|log| log.contains(refused))
    });
    assert!(admin.agents()[0].cloned.is_some());

    // Once the clone is gone, the machine has a session that stays.
    drop(clone);
    admin.wait_in_sync(VM);
    assert!(machine.process().is_running());
}
