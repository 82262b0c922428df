//! Trust between command and broker: the errors when one refuses the other, and when no broker runs.

use std::os::unix::fs::PermissionsExt as _;

use postern_testkit::Script;

use super::run;
use super::world::{CommandWorld, ago};

#[tokio::test]
async fn a_broker_that_does_not_run_is_unreachable_and_received_nothing() {
    let broker = CommandWorld::with(Script::default()).await;
    // A socket that does not listen keeps the port from other programs, and the kernel refuses connections to it.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let free = held.local_addr().unwrap();
    let (identity, address) = (broker.identity(), format!("https://{free}"));
    let us = ["--broker", &address, "--identity", identity.to_str().unwrap()];
    let ran =
        run::postern(&[&us[..], &["request", "host:web-1", "--port", "22", "--reason", "x"]].concat()).await;
    let ran = ran.exits(8).tells(&address).tells("Connection refused");
    assert!(!ran.err.contains("idempotency"), "{ran:?}");
}

#[tokio::test]
async fn a_broker_of_another_authority_is_not_trusted() {
    let (trusted, other) =
        (CommandWorld::with(Script::default()).await, CommandWorld::with(Script::default()).await);
    let identity = trusted.identity();
    let us = ["--broker", other.broker.url(), "--identity", identity.to_str().unwrap()];
    let ran = run::postern(&[&us[..], &["grants"]].concat()).await;
    ran.exits(8).tells("is not the broker that this identity trusts");
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_named_as_the_reason() {
    let broker = CommandWorld::with(Script::default()).await;
    broker.issue("alice", ago(3));
    broker.postern(&["grants"]).await.exits(3).tells("refuses this certificate: it ended at");
}

#[tokio::test]
async fn a_key_that_others_may_read_is_refused() {
    let broker = CommandWorld::with(Script::default()).await;
    let key = broker.identity().join("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    broker.postern(&["grants"]).await.exits(2).tells("key.pem");
}

#[tokio::test]
async fn an_address_of_another_form_is_refused() {
    let broker = CommandWorld::with(Script::default()).await;
    let identity = broker.identity();
    let us = ["--broker", "broker.example.org:7443", "--identity", identity.to_str().unwrap()];
    run::postern(&[&us[..], &["grants"]].concat()).await.exits(2).tells("write https://host:port");
}

#[tokio::test]
async fn the_configuration_file_sets_the_broker_and_the_identity() {
    let broker = CommandWorld::with(Script::default()).await;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join(".config/postern");
    std::fs::create_dir_all(&dir).unwrap();
    let text =
        format!("broker = \"{}\"\nidentity = \"{}\"\n", broker.broker.url(), broker.identity().display());
    std::fs::write(dir.join("config.toml"), text).unwrap();
    let output = run::command(&["grants"]).env("HOME", home.path()).output().await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
