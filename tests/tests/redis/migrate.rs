//! A broker goes on where its store was moved to.

use std::fs;
use std::time::Duration;

use postern_core::audit::verify;
use postern_proto::v1::{GrantState, Layers};
use postern_tests::azure::{AzureOptions, AzureWorld};
use postern_tests::clock::{sleep_until, wait_until};
use postern_tests::redis::Redis;
use postern_tests::{Net, Reach, TCP, end_of};

/// The time within which a window in a cloud must close on a machine that is busy: far less than the minute until every
/// target is looked at.
const CLOUD_LATE: Duration = Duration::from_secs(10);

#[test]
fn i2_a_grant_that_is_open_while_the_store_is_moved_closes_on_time() {
    let net = Net::new();
    let redis = Redis::start(&net.hub);
    let options =
        AzureOptions { layers: Layers::Both, firewall: false, locked: true, more: "", sections: "" };
    let mut world = AzureWorld::with(options);
    let port = world.net.vm.tcp(TCP);
    let grant = world.alice.open(&world.ask().seconds(15));
    let watch = world.net.alice.watch(port);

    let refused = world.broker.command(&["migrate", "--from", "config", "--to", &redis.url()]);
    assert!(!refused.status.success(), "a broker has it open");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"), "{refused:?}");
    world.broker.process().terminate();
    let said = world.broker.must(&["migrate", "--from", "config", "--to", &redis.url()]);
    assert!(said.contains("1 grants") && said.contains("the migration is complete"), "{said}");
    let refused = world.broker.command(&["serve"]);
    assert!(!refused.status.success(), "the old store is no store any more");
    let words = String::from_utf8_lossy(&refused.stderr);
    assert!(words.contains(&format!("this store moved to {}", redis.url())), "{words}");

    let config = fs::read_to_string(world.broker.config()).unwrap();
    fs::write(world.broker.config(), config + &redis.configuration()).unwrap();
    world.broker.serve();
    assert_eq!(world.alice.grant(&grant.id).unwrap().state(), GrantState::Active);
    sleep_until(end_of(&grant));
    wait_until("the cloud to close", CLOUD_LATE, || !world.is_open());
    std::thread::sleep(Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
    world.alice.wait_for_state(&grant.id, GrantState::Closed);

    let again = world.alice.open(&world.ask());
    assert_eq!((world.net.alice.reach(port), world.is_open()), (Reach::Open, true));
    world.alice.revoke(&again.id).unwrap();
    assert_eq!(world.admin.audited("store.migrated").len(), 1);
    verify(world.admin.audit().iter().map(String::as_str)).unwrap();
}
