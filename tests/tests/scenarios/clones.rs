//! I7: two machines with the identity of one agent. A copy of an agent's state does not go on beside the machine, and operators see it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_agent::renew::renew;
use postern_pki::Credentials;
use postern_proto::v1::{AgentStatus, GrantState, LayerStatus};
use postern_tests::clock::wait_until;
use postern_tests::{Agent, FakeAgent, HostWorld, Refusal, STEP_TIMEOUT, VM, ask_for, usual_policy};
use tonic::Code;

use crate::records::edit_agent_record;

/// Copies the identity of the world's agent.
fn copy_identity(world: &HostWorld, to: &Path) -> PathBuf {
    let (from, to) = (world.agent.state_dir().join("identity"), to.join("identity"));
    fs::create_dir_all(&to).unwrap();
    for name in ["key.pem", "cert.pem", "roots.pem"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    to
}

/// Renews an identity in place, as the machine in this namespace would.
fn renewed(world: &HostWorld, identity: &Path) -> Result<(), String> {
    let (url, credentials) = (world.broker.url().to_owned(), Credentials::load(identity).unwrap());
    let renewed = world
        .net
        .vm
        .netns()
        .run(async move { renew(&url, &credentials).await.map_err(|error| error.to_string()) })?;
    renewed.save(identity).unwrap();
    Ok(())
}

/// Makes the last enrolment older than the time in which an unknown key counts as the former agent's.
fn let_enrolment_age(world: &mut HostWorld) {
    edit_agent_record(world, |record| record["enrolled_at"] = "2020-01-01T00:00:00Z".into());
}

fn records_of_clones(world: &HostWorld) -> Vec<String> {
    world.admin.audited("agent.cloned")
}

#[test]
fn i7_a_stolen_copy_of_an_agents_state_is_refused_and_seen_once_the_machine_has_renewed() {
    let mut world = HostWorld::new();
    let_enrolment_age(&mut world);
    world.admin.wait_in_sync(VM);
    let stolen = copy_identity(&world, &world.dir().join("thief"));
    renewed(&world, &world.agent.state_dir().join("identity")).unwrap();
    wait_until("the agent to use its new key", STEP_TIMEOUT, || {
        !world.admin.audited("agent.key_used").is_empty()
    });

    let thief = FakeAgent::with_identity(&world.net.mallory, world.broker.url(), &stolen);
    for _ in 0..3 {
        let refused = thief.session().map_err(Refusal::from).unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (Code::PermissionDenied, "FORBIDDEN"));
    }
    assert!(renewed(&world, &stolen).unwrap_err().contains("has a clone"));
    let records = records_of_clones(&world);
    assert_eq!(records.len(), 1, "one a minute: {records:#?}");
    assert!(records[0].contains("\"192.0.2.30\"") && records[0].contains("denied"), "{records:#?}");

    // The machine keeps its session all the while, and operators see the alarm.
    assert_eq!(world.admin.host_layer(VM), Some(LayerStatus::InSync));
    world.alice.open(&ask_for(&world.net.alice));
    let agent = world.admin.agents().remove(0);
    assert_eq!((agent.status(), agent.cloned.unwrap().attempts), (AgentStatus::Online, 1));
    let status = world.admin.cli().run(&["status", "--check"]);
    assert!(status.code == 9 && status.out.contains("the agent of host:vm-1 has a clone"), "{}", status.out);
    assert!(world.admin.cli().run(&["agents", "list"]).out.contains("online, cloned"));

    // After a ban and a new enrolment the thief's certificate, good for an hour by itself, opens nothing.
    world.admin.ban(VM).unwrap();
    world.agent.process().terminate();
    world.enroll_agent();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    assert_eq!(thief.session().map_err(Refusal::from).unwrap_err().code, Code::PermissionDenied);
    assert_eq!(world.admin.agents()[0].cloned, None);
    assert_eq!(world.admin.host_layer(VM), Some(LayerStatus::InSync));
}

#[test]
fn i7_a_thief_that_renews_first_is_seen_by_the_machine_that_comes_after_it() {
    let mut world = HostWorld::new();
    let_enrolment_age(&mut world);
    world.admin.wait_in_sync(VM);
    let stolen = copy_identity(&world, &world.dir().join("thief"));
    renewed(&world, &stolen).unwrap();
    let thief = FakeAgent::with_identity(&world.net.mallory, world.broker.url(), &stolen);
    let session = thief.session().unwrap();
    // The machine loses its session, and may not come back: an operator has to decide.
    wait_until("the machine to be refused", STEP_TIMEOUT, || world.agent.log().contains("has a clone"));
    assert_eq!(records_of_clones(&world).len(), 1);
    assert!(renewed(&world, &world.agent.state_dir().join("identity")).is_err());
    drop(session);
    world.enroll_agent();
    wait_until("the machine to be back", STEP_TIMEOUT, || {
        world.admin.host_layer(VM) == Some(LayerStatus::InSync)
    });
    assert!(thief.session().is_err());
}

#[test]
fn i8_a_renewal_whose_answer_was_lost_does_not_lock_the_machine_out() {
    let world = HostWorld::new();
    let lost = copy_identity(&world, &world.dir().join("lost"));
    renewed(&world, &lost).unwrap();
    let identity = world.agent.state_dir().join("identity");
    renewed(&world, &identity).unwrap();
    wait_until("the agent to use its new key", STEP_TIMEOUT, || {
        !world.admin.audited("agent.key_used").is_empty()
    });
    world.admin.wait_in_sync(VM);
    assert!(records_of_clones(&world).is_empty());
}

/// The clone of a VM, running: the same state, another address.
fn cloned_machine(world: &HostWorld) -> Agent {
    let mut clone = Agent::new(&world.net.mallory, world.broker.url(), &world.dir().join("clone"), &[]);
    copy_identity(world, &clone.state_dir());
    clone.run();
    clone
}

#[test]
fn i7_two_machines_that_were_cloned_with_their_agent_do_not_flap_and_are_shown() {
    let world = HostWorld::new();
    let clone = cloned_machine(&world);
    wait_until("the clone to be noticed", STEP_TIMEOUT, || !records_of_clones(&world).is_empty());
    let sessions = || world.broker.log().matches("agent connected").count();
    let before = sessions();
    std::thread::sleep(Duration::from_secs(20));
    let flaps = sessions() - before;
    println!("{before} sessions until the clone was noticed, {flaps} in the 20 s after");
    assert!(before <= 6, "{before} sessions before anyone noticed");
    assert!(flaps <= 1, "{flaps} sessions in 20 s");
    let online = world.admin.agents().remove(0);
    assert_eq!(online.status(), AgentStatus::Online, "one of them has a session that stays");
    assert!(online.cloned.is_some());
    assert_eq!(records_of_clones(&world).len(), 1);
    let refused = [world.agent.log(), clone.log()].iter().filter(|log| log.contains("two machines")).count();
    assert!(refused >= 1, "the other one is told why");
    drop(clone);
    wait_until("the machine to be in sync", STEP_TIMEOUT, || {
        world.admin.host_layer(VM) == Some(LayerStatus::InSync)
    });
}

#[test]
fn i6_an_agent_that_is_gone_for_good_is_forgotten_and_nothing_waits_for_it() {
    let mut world = HostWorld::under(usual_policy().waiting_for_agents());
    let held = world.alice.open(&ask_for(&world.net.alice).seconds(600));
    world.agent.process().kill9();
    wait_until("the agent to be away", STEP_TIMEOUT, || {
        world.admin.host_layer(VM) == Some(LayerStatus::Unreachable)
    });
    let waiting = world.alice.request(&ask_for(&world.net.mallory).seconds(600)).unwrap().grant.unwrap();
    assert_eq!(waiting.state(), GrantState::Opening);
    world.alice.revoke(&held.id).unwrap();
    let cli = world.admin.cli();
    let refused = cli.run(&["agents", "forget", VM]);
    assert!(!refused.succeeded() && refused.err.contains("--accept-held-windows"), "{}", refused.err);
    let forgotten = cli.json(&["agents", "forget", VM, "--reason", "deleted", "--accept-held-windows"]);
    assert_eq!(forgotten[0]["forgotten"], VM);
    assert!(forgotten[0]["held_until"].is_string());

    world.alice.wait_for_state(&held.id, GrantState::Closed);
    let failed = world.alice.wait_for_state(&waiting.id, GrantState::Failed);
    assert!(failed.reason.contains("forgotten"), "{failed:?}");
    assert!(!world.admin.audited("agent.forgotten").is_empty());
    assert!(world.admin.agents().is_empty());

    // It was not gone: it closes what it holds, and may not come back.
    world.agent.run();
    wait_until("the agent to be refused", STEP_TIMEOUT, || world.agent.log().contains("is not enrolled"));
    assert!(world.agent.log().contains("protection.alone"), "{}", world.agent.log());
    world.enroll_agent();
    world.admin.wait_in_sync(VM);
}
