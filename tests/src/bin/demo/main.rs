//! The demo: the story of a few grants, played by real programs in network namespaces, each step checked. With the argument
//! `ha` it is the story of several brokers on one store.

#![allow(clippy::expect_used, clippy::panic, reason = "a step that fails panics, and the story prints it")]

mod aws;
mod azure;
mod ha;
mod story;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::AuditRecord;
use postern_tests::clock::{monotonic, sleep_until, wait_until};
use postern_tests::{Agent, FakeAgent, HostWorld, Reach, STEP_TIMEOUT, TCP, VM, ask_for, usual_policy};
use serde_json::Value;
use story::Story;

/// The policy, as an administrator would write it.
const POLICY: &str = r#"
[[policy]]
name = "demo"
targets = ["host:vm-1"]
layers = "host"
mode = "enforce"
unreachable = "fail"

[[policy.ports]]
port = "tcp/22"
sources = ["192.0.2.0/24", "2001:db8::/64"]
max_duration = "1h"
"#;

fn main() -> ExitCode {
    let mut story = Story::default();
    if std::env::args().nth(1).as_deref() == Some("ha") {
        ha::tell(&mut story);
        return story.end();
    }
    story.tell("Three hosts on one network: a broker, a VM with a service on port 22, and two people, alice and mallory.");
    if let Some(mut world) =
        story.step("a broker starts, and gives the administrator and alice an identity", || {
            let world = HostWorld::without_agent(usual_policy().named("unused"));
            (world, "mutual TLS 1.3, keys of its own authority".to_owned())
        })
    {
        protect(&mut story, &mut world);
        open_and_expire(&mut story, &world);
        lose_the_agent(&mut story, &mut world);
        revoke(&mut story, &world);
        refuse_and_resist(&mut story, &world);
        steal(&mut story, &world);
        leave_the_company(&mut story, &world);
        audit(&mut story, &world);
        leave(&mut story, world);
    }
    aws::tell(&mut story);
    azure::tell(&mut story);
    story.end()
}

/// The VM comes under protection.
fn protect(story: &mut Story, world: &mut HostWorld) {
    story.tell("The VM comes under protection.");
    story.check("before: anyone reaches port 22", || {
        assert_eq!((try_22(world, 'a'), try_22(world, 'm')), (Reach::Open, Reach::Open));
        String::new()
    });
    story.check("the administrator applies a policy: port 22 is closed unless a grant opens it", || {
        let file = world.dir().join("policy.toml");
        fs::write(&file, POLICY).expect("a file can be written");
        let cli = world.admin.cli();
        cli.json(&["policy", "apply", "-f", &file.to_string_lossy()]);
        cli.json(&["policy", "delete", "unused"]);
        String::new()
    });
    story.check("the VM's agent enrols with a token that works once, and starts", || {
        let token = world.admin.cli().json(&["agents", "token", VM]);
        world.agent.enroll(token[0]["token"].as_str().expect("a token is text"));
        world.agent.run();
        world.admin.wait_in_sync(VM);
        String::new()
    });
    story.check("closed: no client gets a new connection to port 22, over IPv4 or IPv6", || {
        assert_eq!((try_22(world, 'a'), try_22(world, 'm')), (Reach::Filtered, Reach::Filtered));
        assert_eq!(world.net.alice.reach(world.net.vm.tcp6(TCP)), Reach::Filtered);
        String::new()
    });
}

/// A grant opens the port for its requester, and ends by itself.
fn open_and_expire(story: &mut Story, world: &HostWorld) {
    story.tell("alice asks for access.");
    let grant =
        story.step("alice: postern request host:vm-1 --port 22 --for 5s --reason \"fix the disk\"", || {
            let start = monotonic();
            let grant = request(world, "5s", "fix the disk");
            assert_eq!(try_22(world, 'a'), Reach::Open);
            let described = format!("open; {} ms for the whole command", start.elapsed().as_millis());
            (grant, described)
        });
    story.check("mallory is still shut out", || {
        assert_eq!(try_22(world, 'm'), Reach::Filtered);
        String::new()
    });
    let Some(grant) = grant else { return };
    let connection = story.step("alice works over a connection, and the window ends", || {
        let connection = world.net.alice.connect(world.net.vm.tcp(TCP));
        let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
        sleep_until(end_of(&grant) + Duration::from_millis(1200));
        let late = watch.stop().assert_closed_at(end_of(&grant));
        (connection, format!("the last new connection got in {} ms after the end", late.as_millis()))
    });
    story.check("a new connection is shut out", || {
        assert_eq!(try_22(world, 'a'), Reach::Filtered);
        String::new()
    });
    story.check("the connection from before the end still works", || {
        assert!(connection.is_some_and(|connection| connection.echoes()));
        String::new()
    });
    story.check("how fast: from the request to an open port", || {
        let mut times: Vec<Duration> = (0..21)
            .map(|_| {
                let start = monotonic();
                let grant = world.alice.open(&ask_for(&world.net.alice).seconds(60));
                assert_eq!(try_22(world, 'a'), Reach::Open);
                let time = start.elapsed();
                world.alice.revoke(&grant.id).expect("a grant can be revoked");
                time
            })
            .collect();
        times.sort_unstable();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        format!("{:.1} ms at the median of {}, {:.1} ms at most", ms(times[10]), times.len(), ms(times[20]))
    });
}

/// The agent dies while a window is open.
fn lose_the_agent(story: &mut Story, world: &mut HostWorld) {
    story.tell("The agent is killed while a window is open.");
    story.check("the window ends on time with no agent there to close it", || {
        let grant = request(world, "3s", "while the agent dies");
        world.agent.process().kill9();
        let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
        sleep_until(end_of(&grant) + Duration::from_millis(1200));
        let late = watch.stop().assert_closed_at(end_of(&grant));
        format!("the last new connection got in {} ms after the end", late.as_millis())
    });
    story.check("the agent starts again and picks up what holds", || {
        world.agent.run();
        world.admin.wait_in_sync(VM);
        assert_eq!(try_22(world, 'a'), Reach::Filtered);
        String::new()
    });
}

/// A grant is closed before its end.
fn revoke(story: &mut Story, world: &HostWorld) {
    story.tell("alice is done early.");
    story.check("alice revokes her grant: shut at once, and her connection stays", || {
        let grant = request(world, "10m", "done soon");
        let connection = world.net.alice.connect(world.net.vm.tcp(TCP));
        let start = monotonic();
        world.alice.cli().json(&["revoke", grant["id"].as_str().expect("an id is text")]);
        let described = format!("{} ms for the whole command", start.elapsed().as_millis());
        assert_eq!(try_22(world, 'a'), Reach::Filtered);
        assert!(connection.echoes());
        described
    });
}

/// Shows that forbidden actions are refused, and that a protection that is torn down comes back.
fn refuse_and_resist(story: &mut Story, world: &HostWorld) {
    story.tell("Not everything is allowed.");
    story.check("a port outside the policy is denied, in words", || {
        let outcome = world.alice.cli().run(&["request", VM, "--port", "3389", "--reason", "curious"]);
        assert_eq!(outcome.code, 3, "{}", outcome.err);
        outcome.err.trim().to_owned()
    });
    story.check("someone flushes the VM's firewall: Postern's table stays", || {
        world.net.vm.must("nft", &["flush", "ruleset"]);
        wait_until("the port to be shut", STEP_TIMEOUT, || try_22(world, 'm') == Reach::Filtered);
        let listed = world.net.vm.must("nft", &["list", "tables"]);
        assert!(listed.contains("table inet postern"), "{listed}");
        "the kernel still holds the table inet postern".to_owned()
    });
}

/// Shows that a copy of the agent's state does not go on beside the machine.
fn steal(story: &mut Story, world: &HostWorld) {
    story.tell("A thief copies the agent's state from the VM, key and all, and starts an agent with it.");
    let copy = story.step("cp -a of the state directory; then the VM renews its certificate", || {
        let copy = Agent::new(&world.net.mallory, world.broker.url(), &world.dir().join("thief"), &[]);
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let (from, to) = (path(world.agent.state_dir()), path(copy.state_dir()));
        world.net.mallory.must("cp", &["-a", &from, &to]);
        // As the agent does by itself twice an hour. It takes up what is on its disk within seconds.
        let identity = world.agent.state_dir().join("identity");
        let renewed = FakeAgent::with_identity(&world.net.vm, world.broker.url(), &identity).renew();
        renewed.expect("the broker renews the certificate");
        wait_until("the agent to use its new key", STEP_TIMEOUT, || {
            !world.admin.audited("agent.key_used").is_empty()
        });
        (copy, "the copy has a key that the VM has replaced and used".to_owned())
    });
    let Some(mut copy) = copy else { return };
    story.check("the copy is refused (its postern-agent status), and the VM works on", || {
        copy.run();
        wait_until("the copy to be refused", STEP_TIMEOUT, || copy.log().contains("has a clone"));
        let status = copy.must(&["status"]);
        let refused = status.lines().find(|line| line.contains("has a clone")).unwrap_or(&status).to_owned();
        request(world, "5s", "beside the thief");
        assert_eq!(try_22(world, 'a'), Reach::Open);
        refused
    });
    story.check("postern audit tail: agent.cloned, with the thief's address", || {
        let records = world.admin.audited("agent.cloned");
        let log = records.iter().filter_map(|line| serde_json::from_str::<AuditRecord>(line).ok());
        let event = log.map(|record| record.event).next().expect("the clone is in the audit log");
        assert_eq!(event.details["address"], world.net.mallory.v4().to_string());
        format!("{} from {}: {}", event.action, event.details["address"], event.details["reason"])
    });
    story.check("postern status --check fails, and says what to do", || {
        let status = world.admin.cli().run(&["status", "--check"]);
        let line = status.out.lines().find(|line| line.contains("has a clone"));
        assert!(status.code == 9 && line.is_some(), "{}{}", status.out, status.err);
        line.unwrap_or_default().trim().to_owned()
    });
}

/// Shows that a principal that is revoked has no rights any more.
fn leave_the_company(story: &mut Story, world: &HostWorld) {
    story.tell("alice leaves the company.");
    story.check("the administrator revokes alice: her certificate is refused, and her window closes", || {
        request(world, "10m", "before she leaves");
        let start = monotonic();
        world.admin.cli().json(&["principals", "revoke", "alice", "--reason", "left the company"]);
        let described = format!("{} ms for the whole command", start.elapsed().as_millis());
        let refused = world.alice.cli().run(&["grants"]);
        assert_eq!(refused.code, 3, "{}{}", refused.out, refused.err);
        wait_until("the port to be shut", STEP_TIMEOUT, || try_22(world, 'a') == Reach::Filtered);
        format!("{described}; alice: postern grants\n{}", refused.err.trim())
    });
}

/// Shows that the log records what happened, and that verification finds a changed log.
fn audit(story: &mut Story, world: &HostWorld) {
    story.tell("Everything is in the audit log.");
    story.check("the log verifies", || {
        let verified = &world.admin.cli().json(&["audit", "verify"])[0];
        assert_eq!(verified["sound"], Value::Bool(true), "{verified}");
        format!("{} records, each chained to the one before", verified["records"])
    });
    story.check("a copy in which one word was changed does not, and the line is named", || {
        let copy = world.dir().join("audit.jsonl");
        let log = world.admin.cli().run(&["--output", "json", "audit", "tail"]).out;
        fs::write(&copy, log.replacen("fix the disk", "fix the dish", 1)).expect("a file can be written");
        let outcome = world.admin.cli().run(&["audit", "verify", "--file", &copy.to_string_lossy()]);
        assert_eq!(outcome.code, 1, "{}{}", outcome.out, outcome.err);
        outcome.err.trim().to_owned()
    });
}

/// The VM is released.
fn leave(story: &mut Story, mut world: HostWorld) {
    story.tell("The VM is released.");
    story.check("the agent is uninstalled: its table is gone, and port 22 is as it was", || {
        world.agent.process().terminate();
        world.agent.must(&["uninstall"]);
        assert_eq!(world.net.vm.must("nft", &["list", "tables"]), "");
        assert_eq!(try_22(&world, 'm'), Reach::Open);
        String::new()
    });
    let dir = world.dir().to_owned();
    drop(world);
    story.check("nothing is left behind", || {
        assert!(!dir.exists(), "{} is still there", dir.display());
        String::new()
    });
}

fn try_22(world: &HostWorld, who: char) -> Reach {
    let host = if who == 'a' { &world.net.alice } else { &world.net.mallory };
    host.reach(world.net.vm.tcp(TCP))
}

/// Asks as alice would, and returns the grant, which is active.
fn request(world: &HostWorld, duration: &str, reason: &str) -> Value {
    let answer =
        &world.alice.cli().json(&["request", VM, "--port", "22", "--for", duration, "--reason", reason])[0];
    assert_eq!(answer["grant"]["state"], "active", "{answer}");
    answer["grant"].clone()
}

fn end_of(grant: &Value) -> Timestamp {
    grant["not_after"].as_str().and_then(|end| end.parse().ok()).expect("a grant has an end")
}
