//! Transactions of other processes, of this process, and of the kernel itself.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use postern_agent::clock;
use postern_agent::firewall::policy::{HeldWindow, HostPolicy};
use postern_agent::firewall::watch::{TableChange, TableWatch};
use postern_agent::firewall::{Enforcer, Ownership};
use postern_agent::host_reconciler::HostLayer as _;
use postern_core::{Mode, ProtectedPort};
use postern_tests::{Host, Net};
use tokio::sync::Mutex;

/// The time within which every report arrives.
const QUIET: Duration = Duration::from_millis(500);

/// A watch on a host.
#[derive(Clone)]
struct Listener(Arc<Mutex<TableWatch>>);

impl Listener {
    fn on(host: &Host) -> Self {
        Self(Arc::new(Mutex::new(host.netns().run(async { TableWatch::start().unwrap() }))))
    }

    /// Returns the next change, if there is one within [`QUIET`].
    fn next_change(&self, host: &Host) -> Option<TableChange> {
        let listener = self.clone();
        host.netns().run(async move {
            let mut watch = listener.0.lock().await;
            tokio::time::timeout(QUIET, watch.changed()).await.ok().map(Result::unwrap)
        })
    }
}

/// Runs `nft`; returns its process id.
fn nft(host: &Host, arguments: &str) -> u32 {
    let mut command = Command::new("nft");
    command.args(arguments.split_whitespace()).stdout(Stdio::null());
    let mut child = host.netns().spawn(command).unwrap();
    assert!(child.wait().unwrap().success(), "nft {arguments}");
    child.id()
}

/// Reports whether this process is in the PID namespace by which the kernel names processes (PROC_PID_INIT_INO).
fn counts_as_the_kernel() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link.as_os_str() == "pid:[4026531836]")
}

/// Returns a host with a table of Postern's name that holds a set, and a watch on it.
fn listening() -> (Net, Listener) {
    let net = Net::new();
    nft(&net.vm, "add table inet postern");
    nft(&net.vm, "add set inet postern s { type ipv4_addr; flags timeout; }");
    let listener = Listener::on(&net.vm);
    (net, listener)
}

#[test]
fn i9_every_kind_of_change_is_reported_with_the_process_that_made_it() {
    let (net, listener) = listening();
    for change in [
        "add chain inet postern c",
        "add rule inet postern c accept",
        "flush chain inet postern c",
        "add element inet postern s { 192.0.2.7 timeout 1h }",
        "flush set inet postern s",
        "delete chain inet postern c",
        "add counter inet postern n",
        "delete table inet postern",
        "add table inet postern",
        "flush ruleset",
    ] {
        let pid = nft(&net.vm, change);
        let change_seen =
            listener.next_change(&net.vm).unwrap_or_else(|| panic!("{change} was not reported"));
        assert_eq!(change_seen.process, "nft", "{change}");
        if counts_as_the_kernel() {
            assert_eq!(change_seen.pid, pid, "{change}");
        }
        assert_eq!(listener.next_change(&net.vm), None, "{change} is one transaction");
    }
}

#[test]
fn what_this_process_changes_over_netlink_is_not_reported() {
    let net = Net::new();
    let enforcer = Arc::new(Mutex::new(Enforcer::new(Ownership::Shared).unwrap()));
    let port: ProtectedPort = "tcp/22".parse().unwrap();
    let ensure = |windows: Vec<HeldWindow>| {
        let (enforcer, policy) = (
            Arc::clone(&enforcer),
            HostPolicy { mode: Mode::Enforce, ports: [port].into(), windows, trial_until: None },
        );
        net.vm.netns().run(async move {
            enforcer.lock().await.ensure(&policy, clock::boottime()).unwrap();
        });
    };
    ensure(vec![]);
    let listener = Listener::on(&net.vm);
    let deadline = clock::boottime().plus(Duration::from_secs(60));
    ensure(vec![HeldWindow {
        grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
        port,
        source: "192.0.2.20".parse().unwrap(),
        deadline,
    }]);
    ensure(vec![]);
    if counts_as_the_kernel() {
        assert_eq!(listener.next_change(&net.vm), None);
    }
    while listener.next_change(&net.vm).is_some() {}
    nft(&net.vm, "flush ruleset");
    assert!(listener.next_change(&net.vm).is_some(), "a change of another process is reported");
}

#[test]
fn a_change_of_another_table_is_not_reported() {
    let (net, listener) = listening();
    for change in [
        "add table inet other",
        "add table ip postern",
        "add chain ip postern c",
        "delete table ip postern",
        "delete table inet other",
    ] {
        nft(&net.vm, change);
    }
    assert_eq!(listener.next_change(&net.vm), None);
}

#[test]
fn the_end_of_a_window_is_not_reported() {
    let (net, listener) = listening();
    nft(&net.vm, "add element inet postern s { 192.0.2.7 timeout 300ms }");
    assert!(listener.next_change(&net.vm).is_some(), "it was added");
    std::thread::sleep(Duration::from_secs(1));
    let listed = net.vm.must("nft", &["list", "table", "inet", "postern"]);
    assert!(!listed.contains("192.0.2.7"), "{listed}");
    assert_eq!(listener.next_change(&net.vm), None);
    // The next transaction on another table is not taken for a change of Postern's.
    nft(&net.vm, "add table inet other");
    assert_eq!(listener.next_change(&net.vm), None);
}

#[test]
fn when_messages_are_lost_a_change_is_assumed() {
    let (net, listener) = listening();
    nft(&net.vm, "add table inet other");
    nft(&net.vm, "add set inet other s { type ipv4_addr; }");
    let element = |number: u32| std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string();
    let elements = (0..100_000).map(element).collect::<Vec<_>>().join(", ");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, format!("add element inet other s {{ {elements} }}\n")).unwrap();
    net.vm.must("nft", &["-f", script.to_str().unwrap()]);
    assert_eq!(listener.next_change(&net.vm), Some(TableChange::default()));
    while listener.next_change(&net.vm).is_some() {}
    nft(&net.vm, "flush ruleset");
    assert_eq!(
        listener.next_change(&net.vm).map(|change| change.process),
        Some("nft".to_owned()),
        "the watch continues"
    );
}
