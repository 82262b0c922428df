//! The `postern` command: what people and scripts see of a grant's life, with exit codes that can be relied on.

use std::fs;

use postern_tests::{Cli, HostWorld, Outcome, Reach, TCP, VM, a_policy, usual_policy};
use serde_json::Value;

const POLICY: &str = r#"
[[policy]]
name = "written"
targets = ["host:vm-1"]

[[policy.ports]]
port = "tcp/22"
sources = ["192.0.2.0/24"]
max_duration = "1h"
"#;

fn says(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code, code, "{}{}", outcome.out, outcome.err);
    for word in words {
        assert!(outcome.err.contains(word), "{word:?} is not in\n{}", outcome.err);
    }
}

fn id(answer: &Value) -> &str {
    answer["grant"]["id"].as_str().unwrap_or_else(|| panic!("no grant in {answer}"))
}

#[test]
fn a_grants_life_on_the_command_line() {
    let world = HostWorld::new();
    let cli = world.alice.cli();
    let (vm, alice) = (&world.net.vm, &world.net.alice);
    let asked = &cli.json(&["request", VM, "--port", "22", "--for", "10m", "--reason", "a look around"])[0];
    assert_eq!(
        (&asked["grant"]["state"], &asked["source_from_caller"]),
        (&"active".into(), &true.into()),
        "{asked}"
    );
    assert_eq!(asked["grant"]["windows"][0]["source"], format!("{}/32", alice.v4()));
    assert_eq!(alice.reach(vm.tcp(TCP)), Reach::Open);

    let listed = &cli.json(&["grants", "--target", VM, "--state", "active"])[0];
    assert_eq!(listed["grants"][0]["id"], asked["grant"]["id"]);
    let for_people = cli.run(&["show", id(asked)]);
    assert!(for_people.code == 0 && for_people.out.contains("a look around"), "{}", for_people.out);
    cli.json(&["revoke", id(asked), "--reason", "seen enough"]);
    assert_eq!(alice.reach(vm.tcp(TCP)), Reach::Filtered);
    let shown = cli.run(&["--output", "json", "show", id(asked)]).out;
    assert!(shown.contains("\"closed\"") && shown.contains("seen enough"), "{shown}");
    says(&cli.run(&["revoke", id(asked)]), 1, &["closed"]);
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let mut world = HostWorld::without_agent(a_policy().on(VM).port("tcp/22"));
    let cli = world.alice.cli();
    let ask = |more: &[&str]| cli.run(&[&["request", VM, "--reason", "x"], more].concat());
    says(&ask(&["--port", "3389"]), 3, &["ports", "not a protected port"]);
    says(&ask(&["--port", "22", "--for", "2h"]), 3, &["duration", "3600 s"]);
    says(&cli.run(&["policy", "get", "test"]), 3, &["requester/alice"]);
    let limits = &cli.json(&["policy", "list"])[0]["policies"][0];
    assert_eq!(limits["requesters"], serde_json::json!(["alice"]), "{limits}");
    assert!(limits["name"] == "test" && limits["version"].is_null(), "{limits}");
    says(&cli.run(&["request", "host:nowhere", "--port", "22", "--reason", "x"]), 3, &["host:nowhere"]);
    says(&cli.run(&["show", "01arz3ndektsv4rrffq69g5fav"]), 4, &["does not exist"]);
    says(&ask(&["--port", "22", "--source", "10.1.2.3/8"]), 2, &["--source", "10.0.0.0/8"]);
    says(&ask(&["--port", "22", "--for", "0s"]), 2, &["--for"]);
    says(&cli.run(&["request", VM, "--port", "22"]), 2, &["--reason"]);
    let stranger = Cli::new(&world.net.alice, world.broker.url(), &world.dir().join("no-identity"));
    says(&stranger.run(&["grants"]), 2, &["no-identity"]);
    world.broker.process().kill9();
    says(&cli.run(&["grants"]), 8, &["cannot reach"]);
}

#[test]
fn a_grant_that_fails_or_takes_too_long_has_its_own_exit_code() {
    let mut world = HostWorld::under(usual_policy().waiting_for_agents());
    world.agent.process().kill9();
    let cli = world.alice.cli();
    let ask = |duration: &str, timeout: &str| {
        let terms = ["--for", duration, "--reason", "x", "--timeout", timeout];
        cli.run(&[&["request", VM, "--port", "22"], &terms[..]].concat())
    };
    says(&ask("3s", "1s"), 7, &["still opening"]);
    says(&ask("2s", "20s"), 6, &["its end passed"]);
}

#[test]
fn policies_agents_and_targets_are_kept_on_the_command_line() {
    let mut world = HostWorld::without_agent(usual_policy());
    let admin = world.admin.cli();
    let file = world.dir().join("policy.toml");
    fs::write(&file, POLICY).unwrap();
    admin.json(&["policy", "apply", "-f", &file.to_string_lossy()]);
    admin.json(&["policy", "delete", "test"]);
    let policies = &admin.json(&["policy", "list"])[0];
    assert_eq!(policies["policies"].as_array().map(Vec::len), Some(1), "{policies}");
    let written = admin.run(&["policy", "get", "written"]).out;
    fs::write(&file, &written).unwrap();
    admin.json(&["policy", "apply", "-f", &file.to_string_lossy()]);
    assert_eq!(admin.run(&["policy", "get", "written"]).out, written, "what get writes, apply takes back");

    let token = &admin.json(&["agents", "token", VM])[0];
    world.agent.enroll(token["token"].as_str().unwrap());
    world.agent.run();
    world.admin.wait_in_sync(VM);
    assert_eq!(world.net.mallory.reach(world.net.vm.tcp(TCP)), Reach::Filtered);
    let targets = &admin.json(&["targets"])[0];
    let layers = targets["targets"][0]["layers"].to_string();
    assert!(layers.contains("in_sync"), "{targets}");
    let agents = &admin.json(&["agents", "list"])[0];
    assert_eq!(
        (&agents["agents"][0]["target"], &agents["agents"][0]["status"]),
        (&VM.into(), &"online".into())
    );
    admin.json(&["agents", "ban", VM, "--reason", "a test"]);
    assert_eq!(admin.json(&["agents", "list"])[0]["agents"][0]["status"], "banned");
}
