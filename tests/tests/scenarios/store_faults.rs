//! A store that is full, or that a newer broker wrote: said clearly, and nothing half done.

use std::fs;
use std::process::Command;
use std::time::Duration;

use postern_tests::clock::wait_until;
use postern_tests::{
    HIGH_QUOTAS, HostWorld, Reach, Refusal, STEP_TIMEOUT, TCP, VM, ask_for, binary, low_space, tied,
    usual_policy,
};
use tonic::Code;

#[test]
fn i4_a_full_disk_refuses_grants_and_the_broker_goes_on_when_there_is_room_again() {
    // Without a reserve the store fills up to the last page.
    let mut world = HostWorld::configured("[limits]\nstore_disk_reserve = 0\n");
    move_to_disk(&mut world, 2);
    let data = world.broker.data_dir();
    let inside = format!("/proc/{}/root{}/filler", world.broker.process().pid(), data.display());

    fill(&inside);
    let before = world.admin.grants().len();
    let mut refused = None;
    // A page or two may still be free in the log that the store already has.
    wait_until("the store to be full", STEP_TIMEOUT, || {
        let answer = world.alice.request(&ask_for(&world.net.alice).seconds(1).key("full"));
        refused = answer.err().map(Refusal::from);
        refused.is_some() || grow(&world)
    });
    let refused = refused.unwrap();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::ResourceExhausted, "STORE_FULL"),
        "{refused:?}"
    );
    assert!(world.admin.grants().len() >= before, "what was there stays");
    assert!(world.broker.process().is_running());

    fs::remove_file(&inside).unwrap();
    let open = || {
        let answer =
            world.alice.request(&ask_for(&world.net.alice).seconds(60).waiting(Duration::from_secs(5)));
        answer.is_ok_and(|answer| answer.grant.is_some())
    };
    wait_until("the broker to go on", STEP_TIMEOUT, open);
    assert_eq!(world.net.alice.reach(world.net.vm.tcp(TCP)), Reach::Open);
    let audit = world.admin.verify_audit();
    assert!(audit.sound, "{}", audit.problem);
}

#[test]
fn i10_a_disk_low_on_space_refuses_requests_and_still_revokes_bans_and_closes() {
    let mut world = HostWorld::configured(&format!("[limits]\nstore_disk_reserve = 8388608\n{HIGH_QUOTAS}"));
    let grant = world.alice.open(&ask_for(&world.net.alice));
    move_to_disk(&mut world, 16);
    low_space::fill(&world);
    low_space::closes(&world, &grant);
}

/// Starts the broker again with its data directory on a disk of so many MiB, which only its mount namespace has.
fn move_to_disk(world: &mut HostWorld, mebibytes: u32) {
    world.broker.process().terminate();
    let mut small = tied("unshare");
    let data = world.broker.data_dir();
    let script = "set -e; mkdir \"$1.copy\"; cp -a \"$1/.\" \"$1.copy\"; mount -t tmpfs -o \"size=$2m,mode=0700\" tmpfs \"$1\"; \
                  cp -a \"$1.copy/.\" \"$1\"; shift 2; exec \"$@\"";
    small.args(["--mount", "sh", "-c", script, "sh"]).arg(&data).arg(mebibytes.to_string());
    small.arg(binary("postern-broker"));
    world.broker.serve_as(small);
    world.admin.wait_in_sync(VM);
}

/// Takes all the room that is left.
fn fill(file: &str) {
    let output =
        Command::new("dd").args(["if=/dev/zero", &format!("of={file}"), "bs=4096"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{output:?}");
}

/// Uses up what the store had set aside: denials are audited, each is a line.
fn grow(world: &HostWorld) -> bool {
    let _ = world.alice.request(&ask_for(&world.net.alice).port("tcp/9"));
    false
}

#[test]
fn a_store_of_a_newer_version_is_left_untouched() {
    let mut world = HostWorld::without_agent(usual_policy());
    world.broker.process().terminate();
    let store = rusqlite::Connection::open(world.broker.database()).unwrap();
    let version: u32 = store.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert!(version > 0, "the schema has a version");
    store.pragma_update(None, "user_version", version + 1).unwrap();
    drop(store);
    let before = fs::read(world.broker.database()).unwrap();
    let output = world.broker.command(&["serve"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(said.contains(&format!("schema {}", version + 1)) && said.contains("newer broker"), "{said}");
    assert_eq!(fs::read(world.broker.database()).unwrap(), before);
}
