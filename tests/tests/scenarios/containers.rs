//! The agent in a user namespace of its own, as in an unprivileged container.

use std::process::Command;

use postern_tests::clock::wait_until;
use postern_tests::{Agent, HostWorld, STEP_TIMEOUT, binary, tied, usual_policy};

/// Returns a command that runs the agent as the root of a user and a network namespace of its own.
fn in_a_container() -> Command {
    let mut command = tied("unshare");
    command.args(["--user", "--map-root-user", "--net", "--"]).arg(binary("postern-agent"));
    command
}

#[test]
fn i1_an_agent_in_an_unprivileged_container_protects_it_and_repairs_its_table() {
    let world = HostWorld::without_agent(usual_policy());
    let mut agent =
        Agent::new(&world.net.vm, world.broker.url(), &world.dir().join("container"), &["tcp/22"]);
    agent.share_table();
    agent.run_as(in_a_container());
    let pid = agent.process().pid().to_string();
    let inside = |program: &[&str]| {
        let container = ["--target", &pid, "--user", "--net", "--preserve-credentials"];
        world.net.vm.output("nsenter", &[&container[..], program].concat())
    };
    let table = || {
        let listed = inside(&["nft", "list", "table", "inet", "postern"]);
        String::from_utf8(listed.stdout).unwrap().contains("tcp . 22")
    };
    wait_until("the table", STEP_TIMEOUT, table);
    wait_until("the agent to say what it lacks", STEP_TIMEOUT, || agent.log().contains("watch.small_buffer"));
    for _ in 0..3 {
        assert!(inside(&["nft", "flush", "ruleset"]).status.success());
        wait_until("the table to be back", STEP_TIMEOUT, table);
    }
    assert!(agent.process().is_running(), "{}", agent.log());
}
