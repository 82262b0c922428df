//! I6: an uninstalled agent leaves nothing of Postern's behind, and touches nothing of others.

use postern_tests::{HostWorld, Reach, TCP};

#[test]
fn i6_uninstall_removes_posterns_table_and_state_and_nothing_else() {
    let mut world = HostWorld::new();
    let vm = &world.net.vm;
    vm.must("nft", &["add", "table", "inet", "someone_elses"]);
    vm.must("nft", &["add", "table", "ip", "filter"]);
    world.agent.process().terminate();
    assert_eq!(world.net.mallory.reach(vm.tcp(TCP)), Reach::Filtered);

    world.agent.must(&["uninstall"]);
    assert_eq!(world.net.mallory.reach(vm.tcp(TCP)), Reach::Open);
    assert_eq!(vm.must("nft", &["list", "tables"]), "table inet someone_elses\ntable ip filter\n");
    assert!(!world.agent.state_dir().join("identity/key.pem").exists());
    assert!(!world.agent.state_dir().join("state.json").exists());
    // A second time there is nothing to do, and that is no error.
    world.agent.must(&["uninstall"]);
}
