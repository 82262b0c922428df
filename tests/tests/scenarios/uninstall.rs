//! I6: an uninstalled agent leaves nothing of Postern's behind, and touches nothing of others.

use std::fs;

use postern_tests::clock::wait_until;
use postern_tests::{HostWorld, Reach, STEP_TIMEOUT, TCP};

#[test]
fn i6_uninstall_removes_posterns_table_and_state_and_nothing_else() {
    let mut world = HostWorld::new();
    let vm = &world.net.vm;
    vm.must("nft", &["add", "table", "inet", "someone_elses"]);
    vm.must("nft", &["add", "table", "ip", "filter"]);
    // The agent keeps a checkpoint of the audit log as well.
    let checkpoint = world.agent.state_dir().join("audit-checkpoint");
    wait_until("the kept checkpoint", STEP_TIMEOUT, || checkpoint.exists());
    world.agent.process().terminate();
    assert_eq!(world.net.mallory.reach(vm.tcp(TCP)), Reach::Filtered);
    // What a crash leaves: half of a key.
    fs::write(world.agent.state_dir().join("identity/key.tmp"), "half of a key").unwrap();

    world.agent.must(&["uninstall"]);
    assert_eq!(world.net.mallory.reach(vm.tcp(TCP)), Reach::Open);
    assert_eq!(vm.must("nft", &["list", "tables"]), "table inet someone_elses\ntable ip filter\n");
    assert!(!world.agent.state_dir().exists());
    // A second time there is nothing to do, and that is no error.
    world.agent.must(&["uninstall"]);
}

#[test]
fn i1_with_the_broker_gone_for_good_a_machine_stays_shut_until_its_console_opens_it() {
    let mut world = HostWorld::new();
    world.broker.process().terminate();
    fs::remove_dir_all(world.broker.data_dir()).unwrap();
    let port = world.net.vm.tcp(TCP);
    assert_eq!(world.net.mallory.reach(port), Reach::Filtered);
    // As docs/operations.md says: until the agent's next start.
    world.agent.process().terminate();
    world.net.vm.must("nft", &["delete", "table", "inet", "postern"]);
    assert_eq!(world.net.mallory.reach(port), Reach::Open);
    world.agent.run();
    wait_until("the agent to shut the port again", STEP_TIMEOUT, || {
        world.net.mallory.reach(port) == Reach::Filtered
    });
    // And for good.
    world.agent.process().terminate();
    world.agent.must(&["uninstall"]);
    assert_eq!(world.net.mallory.reach(port), Reach::Open);
}
