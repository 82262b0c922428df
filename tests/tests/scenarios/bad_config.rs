//! Bad input on disk: configurations and key files. Each is refused with the place and the remedy, and nothing starts.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use postern_tests::{HostWorld, usual_policy};

fn assert_says(what: &str, output: &std::process::Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{what} was accepted");
    for word in words {
        assert!(said.contains(word), "{what}: {word:?} is not in\n{said}");
    }
}

fn append(file: &Path, line: &str) -> String {
    let before = fs::read_to_string(file).unwrap();
    fs::write(file, format!("{line}\n{before}")).unwrap();
    before
}

#[test]
fn an_unknown_or_wrong_key_in_the_brokers_configuration_is_named() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.broker.must(&["check-config"]);
    world.broker.process().terminate();
    for (line, words) in [
        ("lisen = \"0.0.0.0:1\"", ["lisen", "listen"]),
        ("log_format = \"xml\"", ["log_format", "json"]),
        ("trust_domain = \"Not A Domain\"", ["trust_domain", "a-z"]),
    ] {
        let before = append(&world.broker.config(), line);
        for command in ["check-config", "serve"] {
            assert_says(line, &world.broker.command(&[command]), &words);
        }
        fs::write(world.broker.config(), before).unwrap();
    }
}

#[test]
fn an_unknown_or_wrong_key_in_the_agents_configuration_is_named() {
    let world = HostWorld::without_agent(usual_policy());
    world.agent.must(&["check-config"]);
    for (line, words) in [
        ("brocker = \"https://192.0.2.1:7443\"", ["brocker", "broker"]),
        ("log_format = \"xml\"", ["log_format", "json"]),
    ] {
        let before = append(&world.agent.config(), line);
        for command in ["check-config", "run", "load"] {
            assert_says(line, &world.agent.command(&[command]), &words);
        }
        fs::write(world.agent.config(), before).unwrap();
    }
}

#[test]
fn a_key_that_others_can_read_is_refused_by_name() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.enroll_agent();
    world.broker.process().terminate();
    let open = |file: &Path| fs::set_permissions(file, fs::Permissions::from_mode(0o644)).unwrap();
    open(&world.agent.state_dir().join("identity/key.pem"));
    open(&world.broker.data_dir().join("ca/intermediate.key"));
    assert_says("the agent's key", &world.agent.command(&["run"]), &["identity/key.pem", "644", "chmod"]);
    assert_says("the CA's key", &world.broker.command(&["serve"]), &["ca/intermediate.key", "644", "chmod"]);
}

#[test]
fn i7_no_identity_is_written_where_others_can_write() {
    let world = HostWorld::without_agent(usual_policy());
    let open = world.dir().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    for place in [open.clone(), open.join("inner")] {
        let issue = ["issue", "bob", "--role", "reader", "--out", &place.to_string_lossy()];
        assert_says("issue", &world.broker.command(&issue), &["--out", "mode 0777", "chmod"]);
        assert!(!place.join("key.pem").exists());
    }
    let own = world.dir().join("own/new");
    let issued = world.broker.command(&["issue", "bob", "--role", "reader", "--out", &own.to_string_lossy()]);
    assert!(issued.status.success() && own.join("key.pem").exists());
}

#[test]
fn init_never_overwrites() {
    let world = HostWorld::without_agent(usual_policy());
    let key = || fs::read(world.broker.data_dir().join("ca/root.key")).unwrap();
    let before = key();
    assert_says("a second init", &world.broker.command(&["init"]), &["data"]);
    assert_eq!(key(), before);
    assert!(world.admin.grants().is_empty(), "the administrator's certificate still works");
}
