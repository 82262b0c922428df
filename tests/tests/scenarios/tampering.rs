//! Tampering: another process changes or flushes a table without an owner, as on kernels before Linux 6.9. It is put back at once, and
//! the audit log names the process. [`super::owned_table`] has the table that an agent owns.

use std::time::Duration;

use postern_tests::clock::{sleep_until, wait_until};
use postern_tests::{HostWorld, Reach, STEP_TIMEOUT, TCP, ask_for, end_of};

/// The time within which a table must be back on a machine that is busy: far less than the 60 s after which an agent looks
/// by itself.
const EXPOSED: Duration = Duration::from_secs(10);

fn assert_reported(world: &HostWorld, process: &str) {
    let report = |line: &String| line.contains("\"agent.tampering\"");
    wait_until("the report to be audited", STEP_TIMEOUT, || world.admin.audit().iter().any(report));
    let line = world.admin.audit().into_iter().find(report).unwrap();
    assert!(line.contains(&format!("\"process\":\"{process}\"")), "{line}");
    assert!(line.contains("\"agent/host:vm-1\"") && line.contains("\"exposed_for_ms\""), "{line}");
}

#[test]
fn i1_a_flushed_ruleset_is_put_back_at_once_and_reported_with_the_process() {
    let world = HostWorld::with_shared_table();
    let (vm, mallory) = (&world.net.vm, &world.net.mallory);
    vm.must("nft", &["flush", "ruleset"]);
    wait_until("the port to be shut again", EXPOSED, || mallory.reach(vm.tcp(TCP)) == Reach::Filtered);
    assert_reported(&world, "nft");
}

#[test]
fn i1_a_deleted_rule_is_put_back_at_once() {
    let world = HostWorld::with_shared_table();
    let (vm, mallory) = (&world.net.vm, &world.net.mallory);
    let (family, table) = our_table(&world);
    let chains = vm.must("nft", &["-j", "list", "table", &family, &table]);
    let chains: serde_json::Value = serde_json::from_str(&chains).unwrap();
    let objects = chains["nftables"].as_array().unwrap();
    for chain in objects.iter().filter_map(|object| object["chain"]["name"].as_str()) {
        vm.must("nft", &["flush", "chain", &family, &table, chain]);
    }
    wait_until("the port to be shut again", EXPOSED, || mallory.reach(vm.tcp(TCP)) == Reach::Filtered);
    assert_reported(&world, "nft");
}

#[test]
fn i2_an_element_that_someone_else_added_is_removed() {
    let world = HostWorld::with_shared_table();
    let (vm, mallory) = (&world.net.vm, &world.net.mallory);
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(600));
    let (family, table) = our_table(&world);
    // Whatever set holds alice's window: mallory puts its own address beside it, for ever.
    let listing = vm.must("nft", &["-j", "list", "table", &family, &table]);
    let listing: serde_json::Value = serde_json::from_str(&listing).unwrap();
    let alice = world.net.alice.v4().to_string();
    let set = listing["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|object| object["set"]["elem"].to_string().contains(&format!("\"{alice}\"")));
    let set = set.unwrap_or_else(|| panic!("no set holds {alice}: {listing}"))["set"]["name"]
        .as_str()
        .unwrap()
        .to_owned();
    let element = format!("{{ {} . tcp . {TCP} timeout 1h }}", mallory.v4());
    vm.must("nft", &["add", "element", &family, &table, &set, &element]);
    wait_until("the window to be shut again", EXPOSED, || mallory.reach(vm.tcp(TCP)) == Reach::Filtered);
    assert_eq!(world.net.alice.reach(vm.tcp(TCP)), Reach::Open, "alice's own window stays");
    assert_reported(&world, "nft");
    world.alice.revoke(&grant.id).unwrap();
}

/// Edits of what the kernel enforces, each of which would let another host in or keep alice out. The table-driven test of the
/// agent's own (agent/tests/host_firewall/edited.rs) has every field.
#[test]
fn i2_every_edit_of_the_table_is_undone_at_once_and_audited() {
    let world = HostWorld::with_shared_table();
    let (vm, alice, mallory) = (&world.net.vm, &world.net.alice, &world.net.mallory);
    let grant = world.alice.open(&ask_for(alice).seconds(600));
    let audited = || world.admin.audit().iter().filter(|line| line.contains("\"agent.tampering\"")).count();
    let edits = [
        "add element inet postern nets4 { 0.0.0.0/0 . tcp . 0-65535 timeout 1h }".to_owned(),
        "add element inet postern nets6 { ::/0 . tcp . 1-65535 }".to_owned(),
        format!("add element inet postern hosts4 {{ {} . icmp . {TCP} }}", mallory.v4()),
        format!("add element inet postern established4 {{ {} . 40000 . {TCP} }}", mallory.v4()),
        format!("delete element inet postern hosts4 {{ {} . tcp . {TCP} }}", alice.v4()),
        "insert rule inet postern gate accept".to_owned(),
        "add chain inet postern input { policy drop; }".to_owned(),
        "add table inet postern { flags dormant; }".to_owned(),
    ];
    for (edit, count) in edits.iter().zip(1..) {
        vm.must("nft", &[edit]);
        wait_until("the report to be audited", STEP_TIMEOUT, || audited() == count);
        let port = vm.tcp(TCP);
        assert_eq!((alice.reach(port), mallory.reach(port)), (Reach::Open, Reach::Filtered), "{edit}");
    }
    world.alice.revoke(&grant.id).unwrap();
    assert_eq!(alice.reach(vm.tcp(TCP)), Reach::Filtered);
}

#[test]
fn i2_a_window_that_was_flushed_comes_back_with_its_old_end() {
    let world = HostWorld::with_shared_table();
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(8));
    std::thread::sleep(Duration::from_secs(1));
    world.net.vm.must("nft", &["flush", "ruleset"]);
    wait_until("the table to be put back", EXPOSED, || {
        world.net.mallory.reach(world.net.vm.tcp(TCP)) == Reach::Filtered
    });
    let watch = world.net.alice.watch(world.net.vm.tcp(TCP));
    sleep_until(end_of(&grant) + Duration::from_millis(1500));
    watch.stop().assert_closed_at(end_of(&grant));
}

#[test]
fn other_tables_are_left_alone() {
    let world = HostWorld::with_shared_table();
    let vm = &world.net.vm;
    vm.must("nft", &["add", "table", "inet", "someone_elses"]);
    vm.must("nft", &["add", "chain", "inet", "someone_elses", "c"]);
    vm.must("nft", &["delete", "table", "inet", "someone_elses"]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!world.admin.audit().iter().any(|line| line.contains("agent.tampering")));
}

/// The family and the name of the one table that is there.
fn our_table(world: &HostWorld) -> (String, String) {
    let tables = world.net.vm.must("nft", &["list", "tables"]);
    let mut words = tables.split_whitespace();
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some("table"), Some(family), Some(name), None) => (family.to_owned(), name.to_owned()),
        _ => panic!("there is not exactly one table:\n{tables}"),
    }
}
