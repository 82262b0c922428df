//! The reconciler with a real ledger and a host layer in memory that refuses and shows damage as a test asks.

use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use postern_runtime::error_chain::error_chain;

use super::*;
use crate::clock::{BootId, BootTime};
use crate::config::LogFormat;
use crate::enforcement::{EnforcementMark, Phase, PhaseName};
use crate::firewall::policy::HeldWindow;

#[derive(Debug, Clone, Default)]
struct FakeHost(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    held: Option<HostPolicy>,
    /// The number of windows in each policy that the host was made to hold, in order.
    steps: Vec<usize>,
    /// The number of windows above which the host refuses.
    most: Option<usize>,
    refuses: bool,
    ensured: usize,
    damage: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("out of sets")]
struct OutOfSets;

impl HostLayer for FakeHost {
    type Error = OutOfSets;

    fn ensure(&mut self, policy: &HostPolicy, _now: BootTime) -> Result<(), OutOfSets> {
        let mut table = self.0.lock().unwrap();
        table.ensured += 1;
        if table.refuses || table.most.is_some_and(|most| policy.windows.len() > most) {
            return Err(OutOfSets);
        }
        table.steps.push(policy.windows.len());
        table.held = Some(policy.clone());
        Ok(())
    }

    fn is_loaded(&mut self) -> Result<bool, OutOfSets> {
        Ok(self.0.lock().unwrap().held.is_some())
    }

    fn damage(&mut self) -> Option<String> {
        self.0.lock().unwrap().damage.take()
    }
}

impl FakeHost {
    /// Returns the ports and the number of windows that the host holds.
    fn holds(&self) -> Option<(Vec<String>, usize)> {
        let table = self.0.lock().unwrap();
        let held = table.held.as_ref()?;
        Some((held.ports.iter().map(ToString::to_string).collect(), held.windows.len()))
    }

    fn refuse(&self, refuses: bool) {
        self.0.lock().unwrap().refuses = refuses;
    }

    fn damage(&self, what: &str) {
        self.0.lock().unwrap().damage = Some(what.to_owned());
    }

    fn ensured(&self) -> usize {
        self.0.lock().unwrap().ensured
    }
}

fn at(seconds: u64) -> Moment {
    Moment {
        boot: BootId("a".into()),
        boottime: BootTime(seconds * 1_000_000_000),
        wall: Timestamp::from_second(1_800_000_000).unwrap() + Duration::from_secs(seconds),
    }
}

fn config(dir: &Path, bootstrap: &[&str]) -> AgentConfig {
    AgentConfig {
        broker: "https://b:7443".into(),
        state_dir: dir.to_owned(),
        log_format: LogFormat::Text,
        bootstrap: bootstrap.iter().map(|port| port.parse().unwrap()).collect(),
        limits: StateLimits { windows: 100, ports: 10 },
        confirm_within: None,
    }
}

fn start(host: &FakeHost, config: &AgentConfig, now: &Moment) -> HostReconciler<FakeHost> {
    HostReconciler::start(host.clone(), Ledger::in_dir(&config.state_dir), config, now, Duration::ZERO)
}

/// Returns a state that protects port 9 and has a window for each end, in seconds.
fn desired(generation: u64, ends: &[u64]) -> DesiredState {
    let window = |(i, end): (usize, &u64)| HeldWindow {
        grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
        port: "tcp/9".parse().unwrap(),
        source: format!("192.0.2.{i}").parse().unwrap(),
        deadline: at(*end).boottime,
    };
    let windows = ends.iter().enumerate().map(window).collect();
    let ports = ["tcp/9".parse().unwrap()].into();
    DesiredState { ports, windows, ..empty(generation) }
}

fn ports(ports: &[&str], windows: usize) -> Option<(Vec<String>, usize)> {
    Some((ports.iter().map(ToString::to_string).collect(), windows))
}

#[test]
fn i1_the_bootstrap_ports_are_denied_before_the_first_contact() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    start(&host, &config(dir.path(), &["tcp/22"]), &at(1));
    assert_eq!(host.holds(), ports(&["tcp/22"], 0));
    // The bootstrap ports are those of the configuration now, not those of the first start.
    start(&host, &config(dir.path(), &["tcp/22", "tcp/23"]), &at(2));
    assert_eq!(host.holds(), ports(&["tcp/22", "tcp/23"], 0));
}

#[test]
fn i1_a_restart_without_a_broker_holds_what_was_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &["tcp/22"]);
    start(&FakeHost::default(), &config, &at(1)).accept(desired(5, &[10, 20]), &at(2)).unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config, &at(10));
    assert_eq!(host.holds(), ports(&["tcp/9"], 1), "the other window has ended");
    assert_eq!(reconciler.begin_session(None).state, 5);
}

#[test]
fn i1_a_ledger_that_cannot_be_read_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.json"), "{").unwrap();
    let config = config(dir.path(), &[]);

    let empty = FakeHost::default();
    let mut reconciler = start(&empty, &config, &at(1));
    assert_eq!(empty.holds().unwrap().0.len(), 4, "the management ports are denied");
    reconciler.tick(&at(100), Duration::ZERO);
    assert_eq!(
        std::fs::read(dir.path().join("state.json")).unwrap(),
        b"{",
        "kept for an operator to examine"
    );

    let loaded = FakeHost::default();
    let mut other = start(&loaded, &config, &at(1));
    loaded.0.lock().unwrap().held = Some(desired(1, &[50]).policy());
    other = HostReconciler::start(other.host, other.ledger, &config, &at(2), Duration::ZERO);
    other.tick(&at(100), Duration::from_secs(5));
    assert_eq!(loaded.holds(), ports(&["tcp/9"], 1), "the earlier table stays, with its own timeouts");
    other.accept(desired(7, &[]), &at(101)).unwrap();
    assert_eq!(start(&loaded, &config, &at(102)).begin_session(None).state, 7, "the ledger is whole again");
}

#[test]
fn i1_a_ledger_that_is_gone_does_not_unprotect_what_the_kernel_holds() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let host = FakeHost::default();
    start(&host, &config, &at(1)).accept(desired(5, &[50]), &at(2)).unwrap();
    std::fs::remove_file(dir.path().join("state.json")).unwrap();
    start(&host, &config, &at(3));
    assert_eq!(host.holds(), ports(&["tcp/9"], 1));
}

#[test]
fn i5_a_state_that_the_kernel_refuses_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config, &at(1));
    reconciler.accept(desired(1, &[50]), &at(2)).unwrap();
    host.refuse(true);
    let refused = reconciler.accept(desired(2, &[50, 60]), &at(3)).unwrap_err();
    assert_eq!(error_chain(&refused), "the host firewall refused generation 2: out of sets");
    assert_eq!(reconciler.accepted(), Some(&desired(1, &[50])));
    host.refuse(false);
    assert_eq!(
        start(&host, &config, &at(4)).begin_session(None).state,
        1,
        "it was not written to the ledger either"
    );
    reconciler.accept(desired(2, &[50, 60]), &at(5)).unwrap();
    assert_eq!(host.holds(), ports(&["tcp/9"], 2), "sent again, it is accepted");
}

#[test]
fn a_full_disk_closes_but_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config(dir.path(), &[]), &at(1));
    reconciler.accept(desired(1, &[50, 60]), &at(2)).unwrap();
    std::fs::create_dir(dir.path().join("state.tmp")).unwrap();
    let mut desired = desired(2, &[50, 60, 70]);
    desired.windows.pop_first();
    let refused = reconciler.accept(desired, &at(3)).unwrap_err();
    assert!(matches!(refused, AcceptError::Ledger { generation: 2, .. }), "{refused}");
    assert_eq!(host.holds(), ports(&["tcp/9"], 1));
}

#[test]
fn i8_a_stale_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut reconciler = start(&FakeHost::default(), &config(dir.path(), &[]), &at(1));
    reconciler.accept(desired(4, &[]), &at(2)).unwrap();
    reconciler.accept(desired(4, &[]), &at(2)).unwrap();
    assert!(matches!(reconciler.accept(desired(3, &[50]), &at(3)), Err(AcceptError::Stale(_))));
}

#[test]
fn i2_the_table_is_applied_again_after_a_suspend_and_after_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config(dir.path(), &[]), &at(1));
    reconciler.accept(desired(1, &[5000]), &at(2)).unwrap();
    let before = host.ensured();
    reconciler.tick(&at(3), Duration::from_millis(1));
    assert_eq!(host.ensured(), before, "nothing happened");
    reconciler.tick(&at(40), Duration::from_secs(36));
    reconciler.tick(&at(41), Duration::from_secs(36));
    assert_eq!(host.ensured(), before + 1, "it was suspended once");

    host.refuse(true);
    assert!(!reconciler.repair(&at(42)).in_sync);
    host.refuse(false);
    reconciler.tick(&at(43), Duration::from_secs(36));
    assert!(reconciler.protects());
}

#[test]
fn i2_the_ledger_is_written_again_when_the_wall_clock_is_stepped_and_as_it_ages() {
    let dir = tempfile::tempdir().unwrap();
    let mut reconciler = start(&FakeHost::default(), &config(dir.path(), &[]), &at(1));
    reconciler.accept(desired(1, &[5000]), &at(2)).unwrap();
    let written = |reconciler: &HostReconciler<FakeHost>| reconciler.ledger.written().unwrap().unwrap();
    reconciler.tick(&at(30), Duration::ZERO);
    assert_eq!(written(&reconciler), at(2));
    let stepped = Moment { wall: at(4000).wall, ..at(31) };
    reconciler.tick(&stepped, Duration::ZERO);
    assert_eq!(written(&reconciler), stepped);
    let aged = Moment { wall: at(4060).wall, ..at(91) };
    reconciler.tick(&aged, Duration::ZERO);
    assert_eq!(written(&reconciler), aged);
}

#[test]
fn i9_damage_is_returned_once_by_a_repair_or_a_tick() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config(dir.path(), &[]), &at(1));
    let what =
        |outcome: RepairOutcome| outcome.damage.map(|damage| (damage.what, damage.exposed_at_most.as_secs()));
    host.damage("a rule");
    assert_eq!(what(reconciler.repair(&at(3))), Some(("a rule".into(), 2)));
    assert_eq!(what(reconciler.repair(&at(4))), None);

    host.damage("found while a state was accepted");
    reconciler.accept(desired(1, &[5000]), &at(5)).unwrap();
    assert_eq!(what(reconciler.tick(&at(5), Duration::ZERO)), None, "the watch may still report the process");
    assert_eq!(what(reconciler.repair(&at(5))), Some(("found while a state was accepted".into(), 1)));

    host.damage("not reported by the watch");
    reconciler.accept(desired(2, &[5000]), &at(9)).unwrap();
    assert_eq!(what(reconciler.tick(&at(10), Duration::ZERO)), Some(("not reported by the watch".into(), 4)));
    assert_eq!(what(reconciler.repair(&at(11))), None);
}

#[test]
fn i1_a_table_that_was_left_alone_is_replaced_once_another_process_changes_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.json"), "{").unwrap();
    let host = FakeHost::default();
    host.0.lock().unwrap().held = Some(desired(1, &[50]).policy());
    let mut reconciler = start(&host, &config(dir.path(), &["tcp/22"]), &at(1));
    assert_eq!(host.holds(), ports(&["tcp/9"], 1));
    let outcome = reconciler.repair(&at(2));
    assert!(outcome.in_sync && outcome.damage.is_some());
    assert_eq!(host.holds(), ports(&["tcp/22"], 0));
}

/// Takes the numbers of windows of the policies that the host was made to hold since the last call.
fn steps(host: &FakeHost) -> Vec<usize> {
    std::mem::take(&mut host.0.lock().unwrap().steps)
}

#[test]
fn i10_a_state_that_closes_and_opens_closes_first() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config(dir.path(), &[]), &at(1));
    reconciler.accept(desired(1, &[50, 60]), &at(2)).unwrap();
    steps(&host);
    let mut other = desired(2, &[50, 60, 70, 80]);
    other.windows.pop_first();
    reconciler.accept(other, &at(3)).unwrap();
    assert_eq!(steps(&host), [1, 3], "one window stays, and then two open");
    reconciler.accept(desired(3, &[50, 60, 70, 80]), &at(4)).unwrap();
    assert_eq!(steps(&host), [4], "this state only opens");
    reconciler.accept(desired(4, &[50]), &at(5)).unwrap();
    assert_eq!(steps(&host), [1], "this state only closes");
}

#[test]
fn i8_a_grant_that_takes_the_place_of_another_leaves_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config(dir.path(), &[]), &at(1));
    reconciler.accept(desired(1, &[50]), &at(2)).unwrap();
    steps(&host);
    let mut longer = desired(2, &[90]);
    longer.windows = longer
        .windows
        .into_iter()
        .map(|window| HeldWindow { grant: "01arz3ndektsv4rrffq69g5faw".parse().unwrap(), ..window })
        .collect();
    reconciler.accept(longer, &at(3)).unwrap();
    assert_eq!(steps(&host), [1], "the source is never without a window");
}

#[test]
fn i6_what_was_closed_stays_closed_though_the_kernel_refuses_what_opens() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config, &at(1));
    reconciler.accept(desired(1, &[50, 60]), &at(2)).unwrap();
    host.0.lock().unwrap().most = Some(2);
    let mut wanted = desired(2, &[50, 60, 70, 80]);
    wanted.windows.pop_first();
    let refused = reconciler.accept(wanted, &at(3)).unwrap_err();
    assert!(matches!(refused, AcceptError::Firewall { generation: 2, .. }), "{refused}");
    assert_eq!(host.holds(), ports(&["tcp/9"], 1));
    reconciler.repair(&at(4));
    assert_eq!(host.holds(), ports(&["tcp/9"], 1), "a repair does not open it again");
    assert_eq!(start(&host, &config, &at(5)).accepted().unwrap().windows.len(), 1, "nor does a restart");
}

#[test]
fn i10_a_state_past_a_bound_closes_and_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config, &at(1));
    reconciler.accept(desired(1, &[50, 60]), &at(2)).unwrap();
    let mut many = desired(2, &[900; 102]);
    many.windows.pop_first();
    let refused = reconciler.accept(many, &at(3)).unwrap_err();
    let words = error_chain(&refused);
    assert!(words.contains("limits.windows: the state has 101 windows, and this host holds 100"), "{words}");
    assert_eq!(host.holds(), ports(&["tcp/9"], 1), "the one that the state still has stays");
    assert_eq!(reconciler.accepted().unwrap().generation, 1, "the state was not accepted");

    let mut many = desired(3, &[]);
    many.ports = (1..=20).map(|port| format!("tcp/{port}").parse().unwrap()).collect();
    let refused = reconciler.accept(many, &at(4)).unwrap_err();
    assert!(error_chain(&refused).contains("limits.ports: the state has 20 ports"), "{refused}");
    let (held, windows) = host.holds().unwrap();
    assert_eq!((held.len(), windows), (10, 0), "as many as fit, and the one that was protected");
    assert!(held.contains(&"tcp/9".to_owned()), "{held:?}");
    assert_eq!(start(&host, &config, &at(5)).accepted().unwrap().ports.len(), 10);
    reconciler.accept(desired(4, &[70]), &at(6)).unwrap();
    assert_eq!(host.holds(), ports(&["tcp/9"], 1));
}

#[test]
fn i10_ports_that_the_host_keeps_count_for_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config, &at(1));
    let of = |generation, ports: std::ops::Range<u16>| DesiredState {
        policies: 3,
        ports: ports.map(|port| format!("tcp/{port}").parse().unwrap()).collect(),
        ..desired(generation, &[])
    };
    reconciler.accept(of(1, 1..7), &at(2)).unwrap();
    for (generation, ports) in [(2, 7..15), (3, 20..28), (4, 30..38)] {
        let refused = reconciler.accept(of(generation, ports), &at(3)).unwrap_err();
        assert!(error_chain(&refused).contains("limits.ports"), "{refused}");
        assert_eq!(
            host.holds().unwrap().0.len(),
            10,
            "no port loses its protection, and as many as fit get it"
        );
    }
}

/// A state past the bounds that would weaken whatever a host holds: it monitors other ports.
fn weak_and_too_large(generation: u64) -> DesiredState {
    let ports = ["tcp/7".parse().unwrap()].into();
    DesiredState { mode: Mode::Monitor, ports, ..desired(generation, &[900; 101]) }
}

#[test]
fn i1_a_state_past_a_bound_changes_nothing_on_a_host_that_has_accepted_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.json"), "{").unwrap();
    let config = config(dir.path(), &["tcp/22"]);
    let refused = |reconciler: &mut HostReconciler<FakeHost>| {
        let refused = reconciler.accept(weak_and_too_large(1), &at(2)).unwrap_err();
        assert!(matches!(refused, AcceptError::Limit { .. }), "{refused}");
        reconciler.tick(&at(100), Duration::from_secs(5));
    };
    let (fallback, loaded) = (FakeHost::default(), FakeHost::default());
    refused(&mut start(&fallback, &config, &at(1)));
    assert_eq!(fallback.0.lock().unwrap().held.as_ref().map(|held| held.mode), Some(Mode::Enforce));
    assert_eq!(fallback.holds(), ports(&["tcp/22"], 0));

    let earlier = desired(1, &[50]).policy();
    loaded.0.lock().unwrap().held = Some(earlier.clone());
    refused(&mut start(&loaded, &config, &at(1)));
    assert_eq!(loaded.0.lock().unwrap().held, Some(earlier), "the table of an earlier run");
    assert_eq!(std::fs::read(dir.path().join("state.json")).unwrap(), b"{", "nothing is written either");
}

#[test]
fn i1_a_first_state_that_cannot_be_written_is_enforced_beside_the_fallback() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.json"), "{").unwrap();
    std::fs::create_dir(dir.path().join("state.tmp")).unwrap();
    let host = FakeHost::default();
    let config = config(dir.path(), &["tcp/22"]);
    let mut reconciler = start(&host, &config, &at(1));
    let weak = DesiredState { mode: Mode::Monitor, ..desired(1, &[50]) };
    let refused = reconciler.accept(weak, &at(2)).unwrap_err();
    assert!(matches!(refused, AcceptError::Ledger { .. }), "{refused}");
    assert_eq!(host.holds(), ports(&["tcp/9", "tcp/22"], 0));
    assert_eq!(host.0.lock().unwrap().held.as_ref().map(|held| held.mode), Some(Mode::Enforce));
    // The disk is whole again, and nothing that no broker has sent is in the ledger.
    std::fs::remove_dir(dir.path().join("state.tmp")).unwrap();
    reconciler.tick(&at(200), Duration::ZERO);
    assert_eq!(std::fs::read(dir.path().join("state.json")).unwrap(), b"{");
    reconciler.accept(desired(2, &[]), &at(201)).unwrap();
    assert_eq!(host.holds(), ports(&["tcp/9"], 0));
}

#[test]
fn i6_windows_of_a_table_that_the_agent_does_not_know_are_not_called_closed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.json"), "{").unwrap();
    let host = FakeHost::default();
    host.0.lock().unwrap().held = Some(desired(1, &[50]).policy());
    let config = config(dir.path(), &[]);
    let mut reconciler = start(&host, &config, &at(1));
    let refused = reconciler.keep_protection(7, BTreeSet::new(), &at(2)).unwrap_err();
    assert!(refused.to_string().contains("postern-agent doctor"), "{refused}");
    assert_eq!(host.holds(), ports(&["tcp/9"], 1));
    for windows in [desired(1, &[60]).windows, BTreeSet::new()] {
        reconciler.keep_protection(8, windows, &at(2)).unwrap_err();
    }
    assert_eq!(host.holds(), ports(&["tcp/9"], 1), "neither windows nor ports are guessed");
    start(&FakeHost::default(), &config, &at(3)).keep_protection(7, BTreeSet::new(), &at(3)).unwrap();
}

/// The lines that were logged.
#[derive(Debug, Clone, Default)]
struct CapturedLog(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for CapturedLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Has a reconciler take windows without policies, on its own thread as it were, and returns what it logs.
fn logged_keeping_protection(reconciler: HostReconciler<FakeHost>) -> String {
    let log = CapturedLog::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let (handle, commands) = channel();
    let _answer = handle.keep_protection(7, desired(7, &[u64::MAX / 1_000_000_000]).windows);
    drop(handle);
    tracing::subscriber::with_default(subscriber, || {
        serve(reconciler, commands, &crate::status::StatusFile::default());
    });
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn i9_the_log_says_what_the_host_has_done_without_policies() {
    let dir = tempfile::tempdir().unwrap();
    let (host, config) = (FakeHost::default(), config(dir.path(), &["tcp/9"]));
    let log = logged_keeping_protection(start(&host, &config, &at(1)));
    assert!(log.contains("protection.alone") && !log.contains("ERROR"), "{log}");

    let reconciler = start(&host, &config, &at(2));
    host.0.lock().unwrap().most = Some(0);
    let log = logged_keeping_protection(reconciler);
    assert!(!log.contains("protection.alone"), "{log}");
    assert!(log.contains("did not accept") && log.contains("out of sets"), "{log}");
}

#[test]
fn a_window_that_has_ended_by_itself_takes_no_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config(dir.path(), &[]), &at(1));
    reconciler.accept(desired(1, &[50, 60]), &at(2)).unwrap();
    steps(&host);
    let mut next = desired(2, &[50, 60, 70]);
    next.windows.pop_first();
    reconciler.accept(next, &at(50)).unwrap();
    assert_eq!(steps(&host), [2], "the kernel had closed the first");
}

#[test]
fn i1_a_store_that_went_back_takes_no_port_off_and_an_enrolment_starts_from_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &["tcp/22"]);
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config, &at(1));
    let of = |generation, policies, ends: &[u64]| DesiredState { policies, ..desired(generation, ends) };
    reconciler.accept(of(5, 3, &[100]), &at(2)).unwrap();
    let bare = |generation, policies, ends: &[u64]| DesiredState {
        ports: [].into(),
        ..of(generation, policies, ends)
    };
    reconciler.accept(bare(6, 3, &[100, 200]), &at(3)).unwrap();
    assert_eq!(host.holds(), ports(&["tcp/9"], 2), "the port stays, and windows follow");
    // Also after a restart.
    let mut reconciler = start(&host, &config, &at(4));
    let followed = reconciler.begin_session(None);
    assert_eq!((followed.state, followed.policies), (6, 3));
    reconciler.accept(bare(1, 2, &[]), &at(5)).unwrap();
    assert_eq!(host.holds(), ports(&["tcp/9"], 0));
    assert!(reconciler.accepted().unwrap().keeps);

    reconciler.keep_protection(2, desired(2, &[300]).windows, &at(6)).unwrap();
    assert_eq!(host.holds(), ports(&["tcp/9"], 1), "no policies can be read, and a window is open");
    assert!(reconciler.accepted().unwrap().keeps, "the host still keeps what no policy has named since");

    let (key, other) = (KeyHash::of(b"enrolled"), KeyHash::of(b"in use before"));
    let mark = marked(&config, key);
    assert_eq!(reconciler.begin_session(Some(other)).policies, 3);
    reconciler.accept(bare(1, 1, &[]), &at(7)).unwrap();
    assert_eq!(
        host.holds(),
        ports(&["tcp/9"], 0),
        "a session of the identity before is none of the enrolment"
    );
    let followed = reconciler.begin_session(Some(key));
    assert_eq!((followed.policies, followed.is_enrolment), (0, true));
    assert!(mark.names(key).unwrap(), "until a state is in the ledger");
    reconciler.accept(bare(1, 1, &[]), &at(8)).unwrap();
    assert_eq!(host.holds(), ports(&[], 0));
    assert!(!mark.names(key).unwrap());
    assert_eq!(start(&host, &config, &at(9)).begin_session(Some(key)).policies, 1);
}

/// Marks a key as that of an enrolment.
fn marked(config: &AgentConfig, key: KeyHash) -> EnrolmentMark {
    std::fs::create_dir_all(config.identity_dir()).unwrap();
    let mark = EnrolmentMark::beside(&config.identity_dir());
    mark.set(key, None).unwrap();
    mark
}

#[test]
fn i1_the_mark_of_an_enrolment_stays_until_a_state_of_it_is_in_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let (host, key) = (FakeHost::default(), KeyHash::of(b"enrolled"));
    let of = |generation, policies| DesiredState { policies, ..desired(generation, &[]) };
    start(&host, &config, &at(1)).accept(of(5, 3), &at(2)).unwrap();
    let mark = marked(&config, key);
    let mut reconciler = start(&host, &config, &at(3));
    assert!(reconciler.begin_session(Some(key)).is_enrolment);
    // The state is refused, and the ledger is written as time passes.
    reconciler.accept(DesiredState { policies: 1, ..weak_and_too_large(1) }, &at(4)).unwrap_err();
    reconciler.tick(&at(100), Duration::ZERO);
    // A crash: the next session is still the first of the enrolment.
    let mut reconciler = start(&host, &config, &at(101));
    assert_eq!(reconciler.accepted().unwrap().policies, 3);
    assert_eq!(reconciler.begin_session(Some(key)).policies, 0);
    std::fs::create_dir(dir.path().join("state.tmp")).unwrap();
    reconciler.accept(of(1, 1), &at(102)).unwrap_err();
    assert!(mark.names(key).unwrap(), "the disk refused the state");
    std::fs::remove_dir(dir.path().join("state.tmp")).unwrap();
    // Windows without policies count as well: what the host has followed before is forgotten in the ledger.
    reconciler.keep_protection(2, BTreeSet::new(), &at(103)).unwrap();
    assert!(!mark.names(key).unwrap());
    assert_eq!(start(&host, &config, &at(104)).accepted().unwrap().policies, 0);
}

#[test]
fn i1_a_first_state_past_a_bound_is_protected_after_a_restart_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), &["tcp/22"]);
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config, &at(1));
    let many = DesiredState { ports: desired(1, &[]).ports, ..weak_and_too_large(1) };
    reconciler.accept(many, &at(2)).unwrap_err();
    assert_eq!(host.holds(), ports(&["tcp/9", "tcp/22"], 0));
    let reconciler = start(&host, &config, &at(3));
    assert_eq!(host.holds(), ports(&["tcp/9", "tcp/22"], 0), "the restart opens nothing");
    assert_eq!(reconciler.accepted().unwrap().generation, 0, "no state was accepted");
    // Nor does a record of the version before, which does not say where its ports are from.
    config.bootstrap.insert("tcp/23".parse().unwrap());
    let file = dir.path().join("state.json");
    let mut record: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    record.insert("version".into(), 2.into());
    record.remove("bootstrap").unwrap();
    std::fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    start(&host, &config, &at(4));
    assert_eq!(host.holds(), ports(&["tcp/9", "tcp/22", "tcp/23"], 0));
}

/// Returns the moment at which so many seconds have passed on the boot's clock, and more on the wall clock.
fn stepped(seconds: u64, step: i64) -> Moment {
    let now = at(seconds);
    Moment { wall: now.wall + jiff::SignedDuration::from_secs(step), ..now }
}

fn deadlines(reconciler: &HostReconciler<FakeHost>) -> Vec<BootTime> {
    reconciler.accepted().unwrap().windows.iter().map(|window| window.deadline).collect()
}

#[test]
fn i2_a_step_of_the_wall_clock_forward_shortens_windows_without_a_broker_and_nothing_lengthens_them() {
    let dir = tempfile::tempdir().unwrap();
    let (host, config) = (FakeHost::default(), config(dir.path(), &[]));
    let mut reconciler = start(&host, &config, &at(1));
    reconciler.accept(desired(1, &[100, 600]), &at(1)).unwrap();
    // Back, which is no pause, and forward to where it was: that may be one.
    reconciler.tick(&stepped(2, -50), Duration::ZERO);
    assert_eq!(deadlines(&reconciler), [at(100).boottime, at(600).boottime]);
    reconciler.tick(&stepped(3, 0), Duration::ZERO);
    assert_eq!(deadlines(&reconciler), [at(50).boottime, at(550).boottime]);
    // The machine was paused for 60 s, and then told the time: the first window is over.
    let outcome = reconciler.tick(&stepped(4, 60), Duration::ZERO);
    assert!(outcome.in_sync && !outcome.asks_broker, "there is no broker to ask");
    assert_eq!(deadlines(&reconciler), [at(490).boottime]);
    assert_eq!(host.holds(), ports(&["tcp/9"], 1));
    // A restart goes on from there, and steps that are as small as an adjustment add up.
    let mut reconciler = start(&host, &config, &stepped(5, 60));
    assert_eq!(deadlines(&reconciler), [at(490).boottime]);
    reconciler
        .tick(&Moment { wall: stepped(6, 60).wall + Duration::from_millis(900), ..at(6) }, Duration::ZERO);
    assert_eq!(deadlines(&reconciler), [at(490).boottime]);
    reconciler.tick(&stepped(7, 62), Duration::ZERO);
    assert_eq!(deadlines(&reconciler), [at(488).boottime]);
}

#[test]
fn i2_a_step_while_no_agent_ran_shortens_windows() {
    let dir = tempfile::tempdir().unwrap();
    let (host, config) = (FakeHost::default(), config(dir.path(), &[]));
    start(&host, &config, &at(1)).accept(desired(1, &[100, 600]), &at(1)).unwrap();
    assert_eq!(deadlines(&start(&host, &config, &stepped(11, 300))), [at(300).boottime]);
}

#[test]
fn a_step_of_the_wall_clock_cuts_nothing_while_a_broker_sends_the_true_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (host, config) = (FakeHost::default(), config(dir.path(), &[]));
    let mut reconciler = start(&host, &config, &at(1));
    reconciler.accept(desired(1, &[100]), &at(1)).unwrap();
    reconciler.set_connected(true);
    assert!(reconciler.tick(&stepped(2, 3600), Duration::ZERO).asks_broker);
    assert!(!reconciler.tick(&stepped(3, 3600), Duration::ZERO).asks_broker, "once");
    reconciler.begin_session(None);
    reconciler.accept(desired(1, &[99]), &stepped(4, 3600)).unwrap();
    reconciler.tick(&stepped(9, 3600), Duration::ZERO);
    assert_eq!(deadlines(&reconciler), [at(99).boottime]);

    // A broker that is silent has its time, and no more; a state of the old session does not count.
    assert!(reconciler.tick(&stepped(10, 3650), Duration::ZERO).asks_broker);
    reconciler.accept(desired(1, &[99]), &stepped(11, 3650)).unwrap();
    assert_eq!(deadlines(&reconciler), [at(99).boottime]);
    reconciler.tick(&stepped(13, 3650), Duration::ZERO);
    assert_eq!(deadlines(&reconciler), [at(49).boottime]);
}

/// A host whose configuration has a trial of 60 s.
fn on_trial_first(dir: &Path, bootstrap: &[&str]) -> AgentConfig {
    AgentConfig { confirm_within: Some(Duration::from_secs(60)), ..config(dir, bootstrap) }
}

impl FakeHost {
    /// Returns the mode that the host holds, and the second at which the kernel ends a trial.
    fn enforces(&self) -> Option<(Mode, Option<u64>)> {
        let table = self.0.lock().unwrap();
        table.held.as_ref().map(|held| (held.mode, held.trial_until.map(|end| end.0 / 1_000_000_000)))
    }
}

/// Does what `postern-agent confirm` and `enforce` do.
fn write_mark(dir: &Path, phase: &Phase) {
    let mark = EnforcementMark::in_dir(dir);
    mark.write(phase, &mark.try_lock().unwrap().unwrap()).unwrap();
}

fn mark(dir: &Path) -> Option<PhaseName> {
    EnforcementMark::in_dir(dir).read().unwrap().map(|phase| phase.name())
}

const MONITOR: Option<(Mode, Option<u64>)> = Some((Mode::Monitor, None));
const ENFORCE: Option<(Mode, Option<u64>)> = Some((Mode::Enforce, None));
const TRIAL: Option<(Mode, Option<u64>)> = Some((Mode::Enforce, Some(65)));

#[test]
fn a_first_state_in_mode_enforce_is_on_trial_and_lapses_whatever_the_broker_sends_after() {
    let dir = tempfile::tempdir().unwrap();
    let (host, config) = (FakeHost::default(), on_trial_first(dir.path(), &[]));
    let mut reconciler = start(&host, &config, &at(1));
    let monitoring = |generation| DesiredState { mode: Mode::Monitor, ..desired(generation, &[]) };
    reconciler.accept(monitoring(1), &at(2)).unwrap();
    assert_eq!((host.enforces(), mark(dir.path())), (MONITOR, Some(PhaseName::Untried)));
    reconciler.accept(desired(2, &[500]), &at(5)).unwrap();
    assert_eq!((host.enforces(), mark(dir.path())), (TRIAL, Some(PhaseName::Trial)));
    // A restart within the trial goes on with it.
    reconciler = start(&host, &config, &at(30));
    assert_eq!(host.enforces(), TRIAL);
    reconciler.tick(&at(64), Duration::ZERO);
    assert_eq!(host.enforces(), TRIAL);
    reconciler.tick(&at(65), Duration::ZERO);
    assert_eq!((host.enforces(), mark(dir.path())), (MONITOR, Some(PhaseName::Lapsed)));
    assert_eq!(host.holds(), ports(&["tcp/9"], 1), "its windows stay");
    for (generation, state) in [(3, desired(3, &[500])), (4, monitoring(4)), (5, desired(5, &[]))] {
        reconciler.accept(state, &at(70 + generation)).unwrap();
        assert_eq!(host.enforces(), MONITOR);
    }
    start(&host, &config, &at(90));
    assert_eq!(host.enforces(), MONITOR);
    // An operator tries again, and confirms.
    let mut reconciler = start(&host, &config, &at(100));
    write_mark(dir.path(), &Phase::begin(Duration::from_secs(20), &at(100)));
    reconciler.tick(&at(101), Duration::ZERO);
    assert_eq!(host.enforces(), Some((Mode::Enforce, Some(120))));
    write_mark(dir.path(), &Phase::Confirmed);
    reconciler.tick(&at(102), Duration::ZERO);
    assert_eq!(host.enforces(), ENFORCE);
    reconciler.tick(&at(500), Duration::ZERO);
    assert_eq!((host.enforces(), mark(dir.path())), (ENFORCE, Some(PhaseName::Confirmed)));
}

#[test]
fn a_boot_within_the_trial_monitors_and_a_confirmed_host_boots_shut() {
    let boot = |moment: Moment| Moment { boot: BootId("b".into()), ..moment };
    let dir = tempfile::tempdir().unwrap();
    let (host, config) = (FakeHost::default(), on_trial_first(dir.path(), &["tcp/22"]));
    start(&host, &config, &at(5));
    assert_eq!((host.holds(), host.enforces()), (ports(&["tcp/22"], 0), TRIAL), "bootstrap ports as well");
    start(&host, &config, &boot(at(6)));
    assert_eq!((host.enforces(), mark(dir.path())), (MONITOR, Some(PhaseName::Lapsed)));
    write_mark(dir.path(), &Phase::Confirmed);
    start(&host, &config, &boot(at(7)));
    start(&host, &config, &at(8));
    assert_eq!(host.enforces(), ENFORCE);
}

#[test]
fn i1_a_lost_or_damaged_mark_leaves_a_host_that_has_enforced_shut() {
    for damaged in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (host, config) = (FakeHost::default(), on_trial_first(dir.path(), &[]));
        let mut reconciler = start(&host, &config, &at(1));
        write_mark(dir.path(), &Phase::Confirmed);
        reconciler.tick(&at(2), Duration::ZERO);
        reconciler.accept(desired(1, &[]), &at(3)).unwrap();
        assert_eq!(host.enforces(), ENFORCE);
        let path = EnforcementMark::in_dir(dir.path()).path().to_owned();
        let lose = || if damaged { std::fs::write(&path, "?") } else { std::fs::remove_file(&path) };
        lose().unwrap();
        for second in 4..8 {
            reconciler.tick(&at(second), Duration::ZERO);
            assert_eq!(host.enforces(), ENFORCE, "while it runs");
        }
        lose().ok();
        start(&host, &config, &at(9)).tick(&at(500), Duration::ZERO);
        assert_eq!(host.enforces(), ENFORCE, "after a restart");
        // With the ledger lost as well, the table of the earlier run shows that it has enforced.
        lose().ok();
        std::fs::remove_file(Ledger::in_dir(dir.path()).path()).unwrap();
        let mut reconciler = start(&host, &config, &at(501));
        reconciler.accept(desired(2, &[]), &at(502)).unwrap();
        reconciler.tick(&at(900), Duration::ZERO);
        assert_eq!(host.enforces(), ENFORCE, "without a ledger");
    }
}

#[test]
fn a_host_that_enforced_before_it_had_a_trial_stays_shut_and_a_monitoring_one_gets_its_trial() {
    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config(dir.path(), &[]), &at(1));
    reconciler.accept(desired(1, &[]), &at(2)).unwrap();
    assert_eq!((host.enforces(), mark(dir.path())), (ENFORCE, None), "no trial is configured");
    start(&host, &on_trial_first(dir.path(), &[]), &at(3)).tick(&at(500), Duration::ZERO);
    assert_eq!((host.enforces(), mark(dir.path())), (ENFORCE, Some(PhaseName::Confirmed)));

    let dir = tempfile::tempdir().unwrap();
    let host = FakeHost::default();
    let mut reconciler = start(&host, &config(dir.path(), &[]), &at(1));
    reconciler.accept(DesiredState { mode: Mode::Monitor, ..desired(1, &[]) }, &at(2)).unwrap();
    let mut reconciler = start(&host, &on_trial_first(dir.path(), &[]), &at(3));
    assert_eq!(host.enforces(), MONITOR);
    reconciler.accept(desired(2, &[]), &at(5)).unwrap();
    assert_eq!(host.enforces(), TRIAL);
}

#[test]
fn no_trial_begins_without_its_mark_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (host, config) = (FakeHost::default(), on_trial_first(dir.path(), &[]));
    let mut reconciler = start(&host, &config, &at(1));
    // The disk refuses the mark: there is a directory in the place of its temporary file.
    let mark_path = EnforcementMark::in_dir(dir.path()).path().to_owned();
    let temporary = postern_runtime::files::temporary(&mark_path);
    std::fs::create_dir(&temporary).unwrap();
    reconciler.accept(desired(1, &[]), &at(2)).unwrap();
    assert_eq!((host.enforces(), mark(dir.path())), (MONITOR, Some(PhaseName::Untried)));
    std::fs::remove_dir(&temporary).unwrap();
    reconciler.tick(&at(5), Duration::ZERO);
    assert_eq!((host.enforces(), mark(dir.path())), (TRIAL, Some(PhaseName::Trial)));
    // Without any mark no state goes to the ledger: the next start would take it for that of a host that has enforced.
    let dir = tempfile::tempdir().unwrap();
    let (host, config) = (FakeHost::default(), on_trial_first(dir.path(), &[]));
    std::fs::create_dir(postern_runtime::files::temporary(EnforcementMark::in_dir(dir.path()).path()))
        .unwrap();
    let mut reconciler = start(&host, &config, &at(1));
    let error = reconciler.accept(desired(1, &[]), &at(2)).unwrap_err();
    assert!(error_chain(&error).contains("enforcement.json"), "{}", error_chain(&error));
    assert_eq!((host.enforces(), Ledger::in_dir(dir.path()).path().exists()), (MONITOR, false));
}
