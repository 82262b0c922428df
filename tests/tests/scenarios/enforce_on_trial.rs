//! Enforcement on trial: a machine that closes for the first time opens again by itself, unless an operator who got in confirms it.

use std::fs;
use std::time::Duration;

use postern_proto::v1::{GrantState, Layer, LayerStatus, TargetLayer};
use postern_tests::clock::wait_until;
use postern_tests::{HostWorld, Reach, STEP_TIMEOUT, TCP, VM, ask_for, usual_policy};

/// A trial that no test waits for.
const LONG: &str = "30m";
/// The time within which a trial of [`SHORT`] has ended on a machine that is busy.
const ENDED: Duration = Duration::from_secs(90);
/// A trial that a test waits for.
const SHORT: &str = "30s";

/// A world whose agent is enrolled, runs, and closes on trial first. Its table has no owner, so that a test can change and flush it.
fn on_trial(lasts: &str) -> HostWorld {
    let mut world = HostWorld::without_agent(usual_policy());
    world.agent.share_table();
    world.agent.configure(&format!("enforce.confirm = {lasts:?}\n"));
    world.agent.join(VM, &world.admin);
    world
}

fn layer(world: &HostWorld) -> TargetLayer {
    world.admin.layer(VM, Layer::Host).unwrap()
}

fn mallory_reaches(world: &HostWorld) -> Reach {
    world.net.mallory.reach(world.net.vm.tcp(TCP))
}

/// Runs a command that must fail, and returns its error.
fn refused(world: &HostWorld, arguments: &[&str]) -> String {
    let output = world.agent.command(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_trial_without_a_confirmation_opens_again_in_the_kernel_and_no_broker_begins_another() {
    let mut world = on_trial(SHORT);
    assert_eq!(mallory_reaches(&world), Reach::Filtered);
    let shown = layer(&world);
    assert!(shown.detail.contains("postern-agent confirm"), "{shown:?}");
    // With the agent dead, the kernel ends the trial.
    world.agent.process().kill9();
    assert_eq!(mallory_reaches(&world), Reach::Filtered);
    wait_until("the kernel to end the trial", ENDED, || mallory_reaches(&world) == Reach::Open);

    world.agent.run();
    world.agent.process().wait_for("enforce.lapsed");
    wait_until("the broker to know", STEP_TIMEOUT, || layer(&world).detail.contains("not confirmed"));
    assert_eq!((layer(&world).status(), mallory_reaches(&world)), (LayerStatus::Failed, Reach::Open));
    assert!(world.agent.must(&["status"]).contains("LAPSED"));
    assert!(refused(&world, &["confirm"]).contains("the trial is over"));
    // Windows go on, and so does the monitoring, whatever the broker sends.
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(600));
    assert_eq!(grant.state(), GrantState::Active);
    world.admin.put_policy(usual_policy().port("tcp/8443").wire()).unwrap();
    wait_until("the new port", STEP_TIMEOUT, || world.agent.must(&["status"]).contains("tcp/8443"));
    assert_eq!(mallory_reaches(&world), Reach::Open);

    // Another trial, by an operator whose session would not get in again.
    world.alice.revoke(&grant.id).unwrap();
    let session = world.net.alice.connect(world.net.vm.tcp(TCP));
    let output = world.agent.command(&["enforce", "--confirm-within", LONG]);
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{output:?}");
    let line = format!("postern request {VM} --port tcp/{TCP} --source {}", world.net.alice.v4());
    assert!(warning.contains(&line), "{warning}");
    assert_eq!(mallory_reaches(&world), Reach::Filtered);
    wait_until("the broker to know", STEP_TIMEOUT, || layer(&world).detail.contains("postern-agent confirm"));
    assert!(refused(&world, &["confirm"]).contains("older than the trial"));
    assert!(session.echoes(), "the session stays");
}

#[test]
fn i1_a_confirmation_needs_a_session_that_came_in_after_the_trial_began_and_holds_for_good() {
    let mut world = on_trial(LONG);
    assert!(refused(&world, &["confirm"]).contains("no connection to a protected port"));
    let mark = world.agent.state_dir().join("enforcement.json");
    let end = || {
        let content = serde_json::from_slice::<serde_json::Value>(&fs::read(&mark).unwrap()).unwrap();
        content["enforcement"]["end"].as_u64().unwrap()
    };
    let before = end();
    world.agent.process().kill9();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    assert_eq!(mallory_reaches(&world), Reach::Filtered);
    assert_eq!(end(), before, "a restart lengthens no trial");
    // The set of the trial is part of the table that the agent repairs.
    let audited = || world.admin.audit().iter().any(|line| line.contains("\"agent.tampering\""));
    world.net.vm.must("nft", &["delete element inet postern trial { tcp }"]);
    wait_until("the report to be audited", STEP_TIMEOUT, audited);
    assert_eq!(mallory_reaches(&world), Reach::Filtered);

    world.alice.open(&ask_for(&world.net.alice).seconds(600));
    let session = world.net.alice.connect(world.net.vm.tcp(TCP));
    assert!(session.echoes());
    let said = world.agent.must(&["confirm"]);
    assert!(said.contains(&format!("the session from {} came in", world.net.alice.v4())), "{said}");
    wait_until("the broker to know", STEP_TIMEOUT, || layer(&world).detail.is_empty());
    assert!(world.agent.must(&["status"]).contains("enforcement  confirmed"));
    assert_eq!(mallory_reaches(&world), Reach::Filtered);
    // `enforce` takes no confirmation back, and neither does a restart.
    assert!(world.agent.must(&["enforce"]).contains("is confirmed"));
    world.agent.restart();
    world.admin.wait_in_sync(VM);
    assert_eq!((mallory_reaches(&world), layer(&world).detail), (Reach::Filtered, String::new()));
}

#[test]
fn i1_a_boot_within_a_trial_monitors_and_a_boot_of_a_confirmed_machine_denies() {
    let mut world = on_trial(LONG);
    world.agent.process().kill9();
    assert_eq!(mallory_reaches(&world), Reach::Filtered);
    // A boot has another id, and finds no table.
    let boot = |world: &HostWorld| {
        let path = world.agent.state_dir().join("enforcement.json");
        let mark = fs::read_to_string(&path).unwrap();
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        fs::write(&path, mark.replace(id.trim(), "of another boot")).unwrap();
        world.net.vm.must("nft", &["flush", "ruleset"]);
        world.agent.must(&["load"]);
        world.net.vm.must("nft", &["list", "table", "inet", "postern"]);
    };
    boot(&world);
    assert_eq!(mallory_reaches(&world), Reach::Open);
    world.agent.must(&["enforce", "--now"]);
    boot(&world);
    assert_eq!(mallory_reaches(&world), Reach::Filtered);
    // A mark that is lost leaves it shut.
    fs::remove_file(world.agent.state_dir().join("enforcement.json")).unwrap();
    world.net.vm.must("nft", &["flush", "ruleset"]);
    world.agent.must(&["load"]);
    assert_eq!(mallory_reaches(&world), Reach::Filtered);
}
