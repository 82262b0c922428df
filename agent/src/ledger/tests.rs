//! The ledger alone, and then together with the state: the whole life of a deadline.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;
use crate::accepted::AcceptedState;
use crate::clock::BootId;
use crate::desired_state::anchor;

fn moment(boot: &str, boottime_s: u64, wall_s: i64) -> Moment {
    Moment {
        boot: BootId(boot.into()),
        boottime: BootTime(boottime_s * 1_000_000_000),
        wall: Timestamp::from_second(1_800_000_000 + wall_s).unwrap(),
    }
}

fn accepted(now: &Moment, lasting_s: u64) -> DesiredState {
    let window = HeldWindow {
        grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
        port: "tcp/22".parse().unwrap(),
        source: "192.0.2.7".parse().unwrap(),
        deadline: now.boottime.plus(Duration::from_secs(lasting_s)),
    };
    DesiredState {
        generation: 3,
        mode: Mode::Enforce,
        ports: [window.port].into(),
        windows: [window].into(),
        policies: 7,
        keeps: true,
        is_bootstrap: false,
    }
}

/// Returns the seconds left of a window of 600 s that was written at (boot "a", 1000, 0).
fn left(now: &Moment) -> Option<u64> {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::in_dir(dir.path());
    let written = moment("a", 1000, 0);
    ledger.save(&accepted(&written, 600), &written).unwrap();
    let loaded = ledger.load(now).unwrap().unwrap();
    assert_eq!(
        (loaded.generation, loaded.ports.len()),
        (3, 1),
        "the ports stay protected even if the windows are gone"
    );
    loaded.windows.first().map(|window| window.deadline.since(now.boottime).as_secs())
}

#[test]
fn i2_within_one_boot_the_wall_clock_counts_only_if_it_went_forward() {
    assert_eq!(left(&moment("a", 1100, 0)), Some(500));
    assert_eq!(left(&moment("a", 1100, -3600)), Some(500));
    assert_eq!(left(&moment("a", 1100, 101)), Some(500), "an adjustment");
    assert_eq!(left(&moment("a", 1100, 200)), Some(400), "the machine was paused for 100 s");
    assert_eq!(left(&moment("a", 1100, 3600)), None);
    assert_eq!(left(&moment("a", 1600, 0)), None, "its end has come");
}

#[test]
fn after_a_reboot_the_downtime_counts() {
    assert_eq!(left(&moment("b", 10, 100)), Some(500));
    assert_eq!(left(&moment("b", 5000, 100)), Some(500));
    assert_eq!(left(&moment("b", 10, 600)), None);
}

#[test]
fn i2_a_wall_clock_behind_the_ledger_keeps_no_window() {
    assert_eq!(left(&moment("b", 10, -1)), None);
    assert_eq!(left(&moment("b", 10, -1_000_000_000)), None);
}

#[test]
fn i2_an_unreadable_boot_id_counts_as_another_boot() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::in_dir(dir.path());
    let written = moment("", 1000, 0);
    ledger.save(&accepted(&written, 600), &written).unwrap();
    let loaded = ledger.load(&moment("", 1000, 100)).unwrap().unwrap();
    assert_eq!(loaded.windows.first().unwrap().deadline, moment("", 1500, 0).boottime);
}

#[test]
fn a_missing_ledger_is_no_error_and_a_bad_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::in_dir(dir.path());
    let now = moment("a", 1, 0);
    assert!(ledger.load(&now).unwrap().is_none());

    ledger.save(&accepted(&now, 60), &now).unwrap();
    let good = fs::read(ledger.path()).unwrap();
    for damaged in [&b""[..], b"{}", b"\0\0\0\0", &good[..good.len() / 2]] {
        fs::write(ledger.path(), damaged).unwrap();
        assert!(matches!(ledger.load(&now), Err(LedgerError::Damaged { .. })), "{damaged:?}");
    }
    fs::write(ledger.path(), br#"{"version":4,"shape":"unknown"}"#).unwrap();
    assert!(matches!(ledger.load(&now), Err(LedgerError::Newer { version: 4, .. })));

    fs::write(ledger.path(), &good).unwrap();
    fs::set_permissions(ledger.path(), fs::Permissions::from_mode(0o620)).unwrap();
    assert!(matches!(ledger.load(&now), Err(LedgerError::Exposed { mode: 0o620, .. })));
}

#[test]
fn i1_a_record_of_the_version_before_has_followed_no_policies() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, now) = (Ledger::in_dir(dir.path()), moment("a", 1, 0));
    ledger.save(&accepted(&now, 60), &now).unwrap();
    let mut old: serde_json::Value = serde_json::from_slice(&fs::read(ledger.path()).unwrap()).unwrap();
    let record = old.as_object_mut().unwrap();
    record.insert("version".into(), 1.into());
    for field in ["policies", "keeps", "bootstrap"] {
        assert!(record.remove(field).is_some(), "{field}");
    }
    fs::write(ledger.path(), serde_json::to_vec(&old).unwrap()).unwrap();
    let loaded = ledger.load(&now).unwrap().unwrap();
    assert_eq!(loaded, DesiredState { policies: 0, keeps: false, ..accepted(&now, 60) });
}

#[test]
fn a_failed_write_leaves_the_former_record() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::in_dir(dir.path());
    let now = moment("a", 1, 0);
    ledger.save(&accepted(&now, 60), &now).unwrap();
    // A directory in the place of the temporary file: creating the file fails, even for root.
    fs::create_dir(dir.path().join("state.tmp")).unwrap();
    assert!(matches!(ledger.save(&accepted(&now, 600), &now), Err(LedgerError::Write { .. })));
    assert_eq!(ledger.load(&now).unwrap().unwrap(), accepted(&now, 60));
}

/// An event in the life of an agent and its messages, in milliseconds.
#[derive(Debug, Clone)]
enum Step {
    /// Time passes.
    Wait(u64),
    /// The agent sends a message; the broker receives it this much later.
    AgentSends { uplink: u64 },
    /// The broker sends the state; it arrives this much later, and the agent runs only at both ends of that time.
    BrokerSends { downlink: u64 },
    /// The agent ends and starts again.
    Restart,
    /// The machine reboots: it is down this long, and the wall clock is stepped meanwhile.
    Reboot { down: u64, wall_step: i64 },
    /// The wall clock is stepped while the agent runs.
    SetWall(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u64..40_000).prop_map(Step::Wait),
        (0u64..9_000).prop_map(|uplink| Step::AgentSends { uplink }),
        (0u64..9_000).prop_map(|downlink| Step::BrokerSends { downlink }),
        Just(Step::Restart),
        (0u64..60_000, -90_000i64..90_000).prop_map(|(down, wall_step)| Step::Reboot { down, wall_step }),
        (-4_000_000i64..4_000_000).prop_map(Step::SetWall),
    ];
    prop::collection::vec(step, 1..40)
}

/// A broker with one grant whose true end is `end`, and an agent; all in milliseconds of true time.
struct Simulation {
    now: u64,
    end: u64,
    booted: u64,
    boots: u32,
    wall_offset: i64,
    /// The agent's clock when it sent the last message that the broker received, and the true time of its receipt.
    received: Option<(BootTime, u64)>,
    generation: u64,
    /// The true time at which the ledger was last written.
    saved_at: u64,
    state: AcceptedState,
    ledger: Ledger,
}

impl Simulation {
    fn moment(&self) -> Moment {
        let wall = i64::try_from(self.now).unwrap() + self.wall_offset;
        Moment {
            boot: BootId(format!("boot {}", self.boots)),
            boottime: BootTime((self.now - self.booted) * 1_000_000),
            wall: Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_millis(wall),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Wait(time) => self.now += time,
            Step::AgentSends { uplink } => {
                let sent_at = self.moment().boottime;
                self.now += uplink;
                self.received = Some((sent_at, self.now));
            }
            Step::BrokerSends { downlink } => self.broker_sends(downlink),
            Step::Restart => self.restart(),
            Step::Reboot { down, wall_step } => {
                self.now += down;
                self.booted = self.now;
                self.boots += 1;
                // A step back by less than the time since the last writing cannot be noticed: see the module's page.
                let hidden = wall_step < 0 && wall_step.unsigned_abs() <= self.now - self.saved_at;
                self.wall_offset += if hidden { 0 } else { wall_step };
                self.restart();
            }
            Step::SetWall(step) => {
                self.wall_offset += step;
                // The agent notices the step and writes its ledger again.
                self.save();
            }
        }
    }

    fn broker_sends(&mut self, downlink: u64) {
        let Some((sent_at, received_at)) = self.received else { return };
        let (heard_ago, remaining) = (self.now - received_at, self.end.saturating_sub(self.now));
        self.now += downlink;
        self.generation += 1;
        let now = self.moment();
        let at = anchor(sent_at, Duration::from_millis(heard_ago), now.boottime);
        let mut desired = accepted(&now, 0);
        let window = HeldWindow {
            deadline: at.plus(Duration::from_millis(remaining)),
            ..*desired.windows.first().unwrap()
        };
        desired.windows = [window].into();
        desired.generation = self.generation;
        let held = self.state.consider(desired, now.boottime).unwrap();
        self.state.accept(held);
        self.save();
    }

    fn restart(&mut self) {
        self.state = AcceptedState::restored(self.ledger.load(&self.moment()).unwrap());
        // A new session: the broker acknowledges nothing that it received on an earlier stream.
        self.received = None;
        self.save();
    }

    fn save(&mut self) {
        self.saved_at = self.now;
        if let Some(held) = self.state.accepted() {
            self.ledger.save(held, &self.moment()).unwrap();
        }
    }

    /// Returns the true time at which the window that the agent holds ends.
    fn held_end(&self) -> Option<u64> {
        let window = self.state.accepted()?.windows.first()?;
        Some(self.booted + window.deadline.0 / 1_000_000)
    }
}

proptest! {
    #[test]
    fn i2_no_delay_restart_reboot_or_clock_step_carries_a_window_past_its_end(steps in steps(), end in 0u64..600_000) {
        let dir = tempfile::tempdir().unwrap();
        let mut simulation = Simulation {
            now: 1_000, end, booted: 0, boots: 0, wall_offset: 0, received: None, generation: 0, saved_at: 0,
            state: AcceptedState::default(), ledger: Ledger::in_dir(dir.path()),
        };
        for step in steps {
            simulation.take(step.clone());
            if let Some(held_end) = simulation.held_end() {
                prop_assert!(held_end <= end, "held to {held_end}, true end {end}, after {step:?}");
            }
        }
    }

    #[test]
    fn i2_a_hidden_step_back_lengthens_a_window_by_no_more_than_the_step(down in 0u64..900, step in 0u64..900, lasting in 1u64..900) {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::in_dir(dir.path());
        let written = moment("a", 1000, 0);
        ledger.save(&accepted(&written, lasting), &written).unwrap();
        let now = moment("b", 5, i64::try_from(down).unwrap() - i64::try_from(step).unwrap());
        let held = ledger.load(&now).unwrap().unwrap();
        let left = held.windows.first().map_or(0, |window| window.deadline.since(now.boottime).as_secs());
        prop_assert!(left <= lasting && left <= lasting.saturating_sub(down) + step);
    }
}
