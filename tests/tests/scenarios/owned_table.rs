//! The table of an agent that owns it (Linux 6.9 and later): another program's flush opens nothing, whatever the agent does.

use std::thread::sleep;
use std::time::Duration;

use postern_tests::clock::wait_until;
use postern_tests::{HostWorld, Reach, STEP_TIMEOUT, ServiceManager, TCP, VM, ask_for, usual_policy};
use rustix::process::Signal;

/// The time for which the port is watched after each flush: more than an agent takes to put a table back.
const AFTER_FLUSH: Duration = Duration::from_millis(300);

/// Flushes the ruleset in each state of the agent, while the service manager keeps the owning socket.
#[test]
fn i1_a_flush_opens_nothing_while_the_agent_runs_hangs_is_dead_or_starts_again() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    let manager = ServiceManager::start(world.dir());
    manager.run(&mut world.agent);
    world.admin.wait_in_sync(VM);
    let (vm, mallory) = (&world.net.vm, &world.net.mallory);
    wait_until("the owning socket to be handed over", STEP_TIMEOUT, || !manager.names().is_empty());
    assert_eq!(manager.names(), ["postern-table"]);
    let flush = || {
        vm.must("nft", &["flush", "ruleset"]);
        assert!(!vm.output("nft", &["delete", "table", "inet", "postern"]).status.success());
        sleep(AFTER_FLUSH);
    };
    let watch = mallory.watch_from(mallory.v4(), vm.tcp(TCP), Duration::from_millis(2));
    flush();
    world.agent.process().signal(Signal::STOP);
    flush();
    world.agent.process().kill9();
    flush();
    manager.run(&mut world.agent);
    for _ in 0..20 {
        vm.must("nft", &["flush", "ruleset"]);
    }
    // The next agent changes the table that its predecessor owned.
    world.agent.process().wait_for("connected to the broker");
    world.admin.wait_in_sync(VM);
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(600));
    assert_eq!(world.net.alice.reach(vm.tcp(TCP)), Reach::Open);
    flush();
    assert_eq!(world.net.alice.reach(vm.tcp(TCP)), Reach::Open, "the window stays");
    world.alice.revoke(&grant.id).unwrap();
    assert_eq!(world.net.alice.reach(vm.tcp(TCP)), Reach::Filtered);
    let timeline = watch.stop();
    let open = timeline.samples().iter().filter(|sample| sample.reach != Reach::Filtered).count();
    assert_eq!(open, 0, "of {} probes", timeline.samples().len());
    assert_eq!(manager.names(), ["postern-table"], "the socket is the same");
    assert!(!world.admin.audit().iter().any(|line| line.contains("agent.tampering")));
}

/// The way out that docs/operations.md has for an emergency, and an uninstall.
#[test]
fn an_owned_table_can_be_removed_once_the_service_is_stopped() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    let manager = ServiceManager::start(world.dir());
    manager.run(&mut world.agent);
    world.admin.wait_in_sync(VM);
    wait_until("the owning socket to be handed over", STEP_TIMEOUT, || !manager.names().is_empty());
    let port = world.net.vm.tcp(TCP);

    world.agent.process().terminate();
    let refused = world.agent.command(&["uninstall"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("systemctl stop postern-agent"), "{said}");
    manager.close_all();
    assert_eq!(world.net.mallory.reach(port), Reach::Filtered, "it stays without an owner");
    world.net.vm.must("nft", &["delete", "table", "inet", "postern"]);
    assert_eq!(world.net.mallory.reach(port), Reach::Open);

    manager.run(&mut world.agent);
    wait_until("the port to be shut again", STEP_TIMEOUT, || {
        world.net.mallory.reach(port) == Reach::Filtered
    });
    world.agent.process().terminate();
    manager.close_all();
    world.agent.must(&["uninstall"]);
    assert_eq!(world.net.mallory.reach(port), Reach::Open);
}

#[test]
fn an_agent_that_is_told_to_share_its_table_gives_up_the_kept_socket() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    let manager = ServiceManager::start(world.dir());
    manager.run(&mut world.agent);
    world.admin.wait_in_sync(VM);
    wait_until("the owning socket to be handed over", STEP_TIMEOUT, || !manager.names().is_empty());
    world.agent.process().terminate();
    world.agent.share_table();
    manager.run(&mut world.agent);
    // The service manager closes its duplicate when it is asked to; until then the agent keeps trying.
    wait_until("the socket to be given up", STEP_TIMEOUT, || manager.names().is_empty());
    let listed = || world.net.vm.must("nft", &["list", "table", "inet", "postern"]);
    // A set has flags as well; those of the table come first.
    let has_flags = || listed().lines().nth(1).is_some_and(|line| line.contains("flags"));
    wait_until("a table without an owner", STEP_TIMEOUT, || !has_flags());
    assert_eq!(world.net.mallory.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
}
