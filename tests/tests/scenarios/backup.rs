//! A backup that was verified, and a restore of it: what was open when it was made does not open again.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_core::audit::{AuditRecord, verify};
use postern_proto::v1::GrantState;
use postern_tests::clock::wait_until;
use postern_tests::redis::Redis;
use postern_tests::{
    Broker, HostWorld, Net, Reach, Refusal, STEP_TIMEOUT, TCP, VM, a_policy, ask_for, usual_policy,
};
use serde_json::Value;

use crate::i9_checkpoints::{agent_keeps_the_newest, wait_for_checkpoint};

/// A broker that signs a checkpoint each second.
const EACH_SECOND: &str = "[audit]\ncheckpoint_every = \"1s\"\n";

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn manifest(backup: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(backup.join("manifest.json")).unwrap()).unwrap()
}

/// Runs a command that must fail, and returns what it says.
fn refused(broker: &Broker, arguments: &[&str]) -> String {
    let output = broker.command(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Moves the data directory away, as one that is lost, and returns its new place.
fn lose_data(broker: &Broker) -> PathBuf {
    let lost = broker.data_dir().with_extension("lost");
    fs::rename(broker.data_dir(), &lost).unwrap();
    lost
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Backs up while a grant is open, and restores once that grant is revoked and a newer one is open.
fn restored_while_windows_were_open(mut world: HostWorld, lose_store: impl FnOnce()) {
    let port = world.net.vm.tcp(TCP);
    let older = world.alice.open(&ask_for(&world.net.alice));
    let unused = world.admin.join_token("host:vm-2", None).unwrap();
    let dir = world.dir().join("backup");
    let said = world.broker.must(&["backup", &text(&dir)]);
    assert!(said.contains("every file was read back") && said.contains("1 grants"), "{said}");
    assert_eq!((mode(&dir), mode(&dir.join("ca")), mode(&dir.join("postern.db"))), (0o700, 0o700, 0o600));
    for (name, is_there) in [
        ("ca/intermediate.key", true),
        ("ca/records.key", true),
        ("broker.toml", true),
        ("policies-seen", true),
        ("ca/root.key", false),
        ("ca/people.key", false),
        ("admin", false),
        ("postern.lock", false),
    ] {
        assert_eq!(dir.join(name).exists(), is_there, "{name}");
    }
    let left: Vec<_> = fs::read_dir(world.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".backup")), "{left:?}");
    assert!(refused(&world.broker, &["backup", &text(&dir)]).contains("exists"));

    // The world goes on: the store of the backup is older than it.
    world.alice.revoke(&older.id).unwrap();
    world.alice.wait_for_state(&older.id, GrantState::Closed);
    let newer = world.alice.open(&ask_for(&world.net.alice));
    let policy = a_policy().on(VM).port_within("tcp/22", &["*"], Duration::from_secs(1800)).port("udp/161");
    world.admin.put_policy(policy.clone().wire()).unwrap();
    world.admin.wait_in_sync(VM);
    wait_for_checkpoint(&world);
    agent_keeps_the_newest(&mut world);
    world.admin.wait_in_sync(VM);
    assert_eq!(world.net.alice.reach(port), Reach::Open);
    world.broker.process().terminate();
    let lost = lose_data(&world.broker);
    lose_store();

    let said = world.broker.must(&["restore", &text(&dir), "--revoke", "mallory"]);
    assert!(said.contains("1 grants were revoked and 1 join tokens removed"), "{said}");
    assert!(!world.broker.data_dir().join("restoring").exists());
    for (name, wanted) in
        [("", 0o700), ("ca", 0o700), ("ca/intermediate.key", 0o600), ("policies-seen", 0o600)]
    {
        assert_eq!(mode(&world.broker.data_dir().join(name)), wanted, "{name}");
    }
    fs::rename(lost.join("admin"), world.broker.admin_identity()).unwrap();
    world.broker.serve();
    wait_until("the windows to close", STEP_TIMEOUT, || world.net.alice.reach(port) == Reach::Filtered);
    let closed = world.alice.wait_for_state(&older.id, GrantState::Closed);
    assert!(closed.reason.contains("restored from the backup"), "{closed:?}");
    world.alice.grant(&newer.id).unwrap_err();
    let refusal = Refusal::from(world.alice.request(&ask_for(&world.net.alice)).unwrap_err());
    assert_eq!(refusal.reason, "POLICIES_LOST", "{refusal:?}");
    assert!(!world.agent.try_enroll(&unused).status.success(), "its token was removed");

    // The record is whole, and says what happened.
    let log = world.admin.audit();
    verify(log.iter().map(String::as_str)).unwrap();
    assert_eq!(world.admin.audited("store.restored").len(), 1);
    assert_eq!(world.admin.audited("token.removed").len(), 1);
    let revoked: AuditRecord = serde_json::from_str(&world.admin.audited("principal.revoked")[0]).unwrap();
    assert_eq!(revoked.event.details["principal"], "mallory");

    // The agent has the checkpoint of a longer log.
    wait_until("the alarm", STEP_TIMEOUT, || world.broker.must(&["audit", "status"]).contains("alarm"));
    world.admin.put_policy(policy.wire()).unwrap();
    world.admin.wait_in_sync(VM);
    world.alice.open(&ask_for(&world.net.alice).seconds(60));
    assert_eq!(world.net.alice.reach(port), Reach::Open);
}

#[test]
fn i2_a_restored_store_opens_nothing_and_grants_again_once_a_policy_is_applied() {
    restored_while_windows_were_open(HostWorld::configured(EACH_SECOND), || {});
}

#[test]
fn i2_a_restored_redis_opens_nothing_and_grants_again_once_a_policy_is_applied() {
    let net = Net::new();
    let mut redis = Redis::start(&net.hub);
    let world = HostWorld::configured(&(redis.configuration() + EACH_SECOND));
    let said = world.broker.must(&["doctor"]);
    assert!(said.contains("has this broker's schema"), "{said}");
    restored_while_windows_were_open(world, || {
        redis.lose();
        redis.resume();
    });
    drop(redis);
}

/// A world without an agent, with a backup of it and a data directory that is gone.
fn with_a_backup() -> (HostWorld, PathBuf) {
    let mut world = HostWorld::without_agent(usual_policy());
    let dir = world.dir().join("backup");
    world.broker.must(&["backup", &text(&dir), "--offline-keys"]);
    world.broker.process().terminate();
    lose_data(&world.broker);
    (world, dir)
}

#[test]
fn i9_a_damaged_backup_is_refused_before_anything_is_written() {
    let (world, dir) = with_a_backup();
    assert!(dir.join("ca/root.key").exists() && dir.join("ca/people.key").exists());
    let files = manifest(&dir)["files"].as_object().unwrap().clone();
    for name in files.keys() {
        let whole = fs::read(dir.join(name)).unwrap();
        let mut damaged = whole.clone();
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        fs::write(dir.join(name), &damaged).unwrap();
        let said = refused(&world.broker, &["restore", &text(&dir)]);
        assert!(said.contains(name.as_str()) && said.contains("was changed"), "{name}: {said}");
        fs::write(dir.join(name), &whole).unwrap();
    }
    assert!(!world.broker.data_dir().exists(), "nothing was written");
    // A store that was changed together with its hash is not one chain.
    let database = rusqlite::Connection::open(dir.join("postern.db")).unwrap();
    database.execute("UPDATE audit SET line = replace(line, 'broker', 'breker') WHERE seq = 1", []).unwrap();
    database.close().unwrap();
    let mut changed = manifest(&dir);
    let output = std::process::Command::new("sha256sum").arg(dir.join("postern.db")).output().unwrap();
    let hash = String::from_utf8_lossy(&output.stdout)[..64].to_owned();
    changed["files"]["postern.db"]["sha256"] = hash.into();
    changed["files"]["postern.db"]["bytes"] = fs::metadata(dir.join("postern.db")).unwrap().len().into();
    fs::write(dir.join("manifest.json"), changed.to_string()).unwrap();
    let said = refused(&world.broker, &["restore", &text(&dir)]);
    assert!(said.contains("the audit log cannot be trusted: record 1"), "{said}");
    assert_eq!(fs::read_dir(world.broker.data_dir()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn i7_a_backup_and_a_restore_refuse_a_place_that_others_can_change_and_one_that_is_not_empty() {
    let (world, dir) = with_a_backup();
    let data = world.broker.data_dir();
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    fs::write(data.join("postern.db"), "").unwrap();
    assert!(refused(&world.broker, &["restore", &text(&dir)]).contains("not empty (it has postern.db)"));
    fs::remove_file(data.join("postern.db")).unwrap();
    for (place, mode) in [(&data, 0o777), (&dir, 0o777)] {
        let before = fs::metadata(place).unwrap().permissions();
        fs::set_permissions(place, Permissions::from_mode(mode)).unwrap();
        let said = refused(&world.broker, &["restore", &text(&dir)]);
        assert!(said.contains(&text(place)), "{said}");
        fs::set_permissions(place, before).unwrap();
    }
    world.broker.must(&["restore", &text(&dir)]);
    assert!(data.join("ca/root.key").exists());

    let open = world.dir().join("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    assert!(refused(&world.broker, &["backup", &text(&open.join("backup"))]).contains(&text(&open)));
    assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
}
