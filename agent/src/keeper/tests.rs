//! The keeper with a real ledger and a host layer that remembers, refuses and forgets as it is told to.

use std::path::Path;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;

use super::*;
use crate::clock::{BootId, BootTime};
use crate::config::LogFormat;
use crate::desired::HeldWindow;
use crate::explain::chain;

#[derive(Debug, Clone, Default)]
struct Kernel(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    held: Option<HostPolicy>,
    refuses: bool,
    ensured: usize,
    damage: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("out of sets")]
struct OutOfSets;

impl HostLayer for Kernel {
    type Error = OutOfSets;

    fn ensure(&mut self, policy: &HostPolicy, _now: BootTime) -> Result<(), OutOfSets> {
        let mut table = self.0.lock().unwrap();
        table.ensured += 1;
        if table.refuses {
            return Err(OutOfSets);
        }
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

impl Kernel {
    /// The ports and the number of windows it holds.
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

fn config(dir: &Path, bootstrap: &[&str]) -> Config {
    Config {
        broker: "https://b:7443".into(),
        state_dir: dir.to_owned(),
        log_format: LogFormat::Text,
        bootstrap: bootstrap.iter().map(|port| port.parse().unwrap()).collect(),
    }
}

fn start(kernel: &Kernel, config: &Config, now: &Moment) -> Keeper<Kernel> {
    Keeper::start(kernel.clone(), Ledger::in_dir(&config.state_dir), config, now, Duration::ZERO)
}

/// Port 9 protected, with one window for each end, in seconds.
fn told(generation: u64, ends: &[u64]) -> Desired {
    let window = |(i, end): (usize, &u64)| HeldWindow {
        grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
        port: "tcp/9".parse().unwrap(),
        source: format!("192.0.2.{i}").parse().unwrap(),
        deadline: at(*end).boottime,
    };
    let windows = ends.iter().enumerate().map(window).collect();
    Desired { generation, mode: Mode::Enforce, ports: ["tcp/9".parse().unwrap()].into(), windows }
}

fn ports(ports: &[&str], windows: usize) -> Option<(Vec<String>, usize)> {
    Some((ports.iter().map(ToString::to_string).collect(), windows))
}

#[test]
fn i1_the_bootstrap_ports_are_denied_before_the_first_contact() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = Kernel::default();
    start(&kernel, &config(dir.path(), &["tcp/22"]), &at(1));
    assert_eq!(kernel.holds(), ports(&["tcp/22"], 0));
    // They are what the configuration says now, not what it said first.
    start(&kernel, &config(dir.path(), &["tcp/22", "tcp/23"]), &at(2));
    assert_eq!(kernel.holds(), ports(&["tcp/22", "tcp/23"], 0));
}

#[test]
fn i1_a_restart_without_a_broker_holds_what_was_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &["tcp/22"]);
    start(&Kernel::default(), &config, &at(1)).accept(told(5, &[10, 20]), &at(2)).unwrap();
    let kernel = Kernel::default();
    let mut keeper = start(&kernel, &config, &at(10));
    assert_eq!(kernel.holds(), ports(&["tcp/9"], 1), "the end of the other has come");
    assert_eq!(keeper.begin_session(), 5);
}

#[test]
fn i1_a_ledger_that_cannot_be_read_opens_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.json"), "{").unwrap();
    let config = config(dir.path(), &[]);

    let empty = Kernel::default();
    let mut keeper = start(&empty, &config, &at(1));
    assert_eq!(empty.holds().unwrap().0.len(), 4, "the management ports are denied");
    keeper.tick(&at(100), Duration::ZERO);
    assert_eq!(std::fs::read(dir.path().join("state.json")).unwrap(), b"{", "kept for whoever looks into it");

    let loaded = Kernel::default();
    let mut other = start(&loaded, &config, &at(1));
    loaded.0.lock().unwrap().held = Some(told(1, &[50]).policy());
    other = Keeper::start(other.host, other.ledger, &config, &at(2), Duration::ZERO);
    other.tick(&at(100), Duration::from_secs(5));
    assert_eq!(loaded.holds(), ports(&["tcp/9"], 1), "the table of before stays, with its own timeouts");
    other.accept(told(7, &[]), &at(101)).unwrap();
    assert_eq!(start(&loaded, &config, &at(102)).begin_session(), 7, "the ledger is whole again");
}

#[test]
fn i1_a_ledger_that_is_gone_does_not_unprotect_what_the_kernel_holds() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let kernel = Kernel::default();
    start(&kernel, &config, &at(1)).accept(told(5, &[50]), &at(2)).unwrap();
    std::fs::remove_file(dir.path().join("state.json")).unwrap();
    start(&kernel, &config, &at(3));
    assert_eq!(kernel.holds(), ports(&["tcp/9"], 1));
}

#[test]
fn i5_what_the_kernel_refuses_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), &[]);
    let kernel = Kernel::default();
    let mut keeper = start(&kernel, &config, &at(1));
    keeper.accept(told(1, &[50]), &at(2)).unwrap();
    kernel.refuse(true);
    let refused = keeper.accept(told(2, &[50, 60]), &at(3)).unwrap_err();
    assert_eq!(chain(&refused), "the host firewall refused generation 2: out of sets");
    assert_eq!(keeper.accepted(), Some(&told(1, &[50])));
    kernel.refuse(false);
    assert_eq!(start(&kernel, &config, &at(4)).begin_session(), 1, "nor was it written down");
    keeper.accept(told(2, &[50, 60]), &at(5)).unwrap();
    assert_eq!(kernel.holds(), ports(&["tcp/9"], 2), "told again, it is accepted");
}

#[test]
fn a_full_disk_closes_but_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = Kernel::default();
    let mut keeper = start(&kernel, &config(dir.path(), &[]), &at(1));
    keeper.accept(told(1, &[50, 60]), &at(2)).unwrap();
    std::fs::create_dir(dir.path().join("state.tmp")).unwrap();
    let mut told = told(2, &[50, 60, 70]);
    told.windows.pop_first();
    let refused = keeper.accept(told, &at(3)).unwrap_err();
    assert!(matches!(refused, Refused::Ledger { generation: 2, .. }), "{refused}");
    assert_eq!(kernel.holds(), ports(&["tcp/9"], 1));
}

#[test]
fn i8_a_stale_state_is_answered_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = start(&Kernel::default(), &config(dir.path(), &[]), &at(1));
    keeper.accept(told(4, &[]), &at(2)).unwrap();
    keeper.accept(told(4, &[]), &at(2)).unwrap();
    assert!(matches!(keeper.accept(told(3, &[50]), &at(3)), Err(Refused::Stale(_))));
}

#[test]
fn i2_the_kernel_is_told_again_after_a_suspend_and_after_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = Kernel::default();
    let mut keeper = start(&kernel, &config(dir.path(), &[]), &at(1));
    keeper.accept(told(1, &[5000]), &at(2)).unwrap();
    let before = kernel.ensured();
    keeper.tick(&at(3), Duration::from_millis(1));
    assert_eq!(kernel.ensured(), before, "nothing happened");
    keeper.tick(&at(40), Duration::from_secs(36));
    keeper.tick(&at(41), Duration::from_secs(36));
    assert_eq!(kernel.ensured(), before + 1, "it slept once");

    kernel.refuse(true);
    assert!(!keeper.mend(&at(42)).whole);
    kernel.refuse(false);
    keeper.tick(&at(43), Duration::from_secs(36));
    assert!(keeper.protects());
}

#[test]
fn i2_the_ledger_is_written_again_when_the_wall_is_stepped_and_as_it_ages() {
    let dir = tempfile::tempdir().unwrap();
    let mut keeper = start(&Kernel::default(), &config(dir.path(), &[]), &at(1));
    keeper.accept(told(1, &[5000]), &at(2)).unwrap();
    let written = |keeper: &Keeper<Kernel>| keeper.ledger.written().unwrap().unwrap();
    keeper.tick(&at(30), Duration::ZERO);
    assert_eq!(written(&keeper), at(2));
    let stepped = Moment { wall: at(4000).wall, ..at(31) };
    keeper.tick(&stepped, Duration::ZERO);
    assert_eq!(written(&keeper), stepped);
    let aged = Moment { wall: at(4060).wall, ..at(91) };
    keeper.tick(&aged, Duration::ZERO);
    assert_eq!(written(&keeper), aged);
}

#[test]
fn i9_damage_is_told_once_whoever_found_it() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = Kernel::default();
    let mut keeper = start(&kernel, &config(dir.path(), &[]), &at(1));
    let what = |mended: Mended| mended.damage.map(|damage| (damage.what, damage.exposed_at_most.as_secs()));
    kernel.damage("a rule");
    assert_eq!(what(keeper.mend(&at(3))), Some(("a rule".into(), 2)));
    assert_eq!(what(keeper.mend(&at(4))), None);

    kernel.damage("found while a state was accepted");
    keeper.accept(told(1, &[5000]), &at(5)).unwrap();
    assert_eq!(what(keeper.tick(&at(5), Duration::ZERO)), None, "it may still be heard who did it");
    assert_eq!(what(keeper.mend(&at(5))), Some(("found while a state was accepted".into(), 1)));

    kernel.damage("never heard of");
    keeper.accept(told(2, &[5000]), &at(9)).unwrap();
    assert_eq!(what(keeper.tick(&at(10), Duration::ZERO)), Some(("never heard of".into(), 4)));
    assert_eq!(what(keeper.mend(&at(11))), None);
}

#[test]
fn i1_a_table_that_was_left_alone_is_denied_once_someone_touches_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("state.json"), "{").unwrap();
    let kernel = Kernel::default();
    kernel.0.lock().unwrap().held = Some(told(1, &[50]).policy());
    let mut keeper = start(&kernel, &config(dir.path(), &["tcp/22"]), &at(1));
    assert_eq!(kernel.holds(), ports(&["tcp/9"], 1));
    let mended = keeper.mend(&at(2));
    assert!(mended.whole && mended.damage.is_some());
    assert_eq!(kernel.holds(), ports(&["tcp/22"], 0));
}
