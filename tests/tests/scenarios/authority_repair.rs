//! The repair of an authority: after a start with a clock that was ahead, with a root key that cannot be used, and with files
//! that are missing, damaged or stale. No repair needs more than the operator's command, and most need nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use postern_proto::v1::GrantState;
use postern_tests::clock::wait_until;
use postern_tests::{
    Broker, Cli, FakeTime, HostWorld, Net, Outcome, STEP_TIMEOUT, VM, ask_for, usual_policy,
};
use tempfile::TempDir;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// The words of the warning about a broker's clock.
const AHEAD: &str = "ahead of the wall clock";

/// A broker alone. What is dropped first stands first.
struct Alone {
    broker: Broker,
    admin: Cli,
    _net: Net,
    dir: TempDir,
}

impl Alone {
    fn new() -> Self {
        let (net, dir) = (Net::new(), TempDir::with_prefix("postern-").unwrap());
        let broker = Broker::init(&net.hub, &dir.path().join("broker"));
        let admin = Cli::new(&net.alice, broker.url(), &broker.admin_identity());
        Self { broker, admin, _net: net, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.broker.data_dir().join("ca").join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }

    fn renew(&self) {
        self.broker.must(&["authority", "renew", "--root-key", &self.file("root.key").to_string_lossy()]);
    }

    /// Runs `postern-broker` with these arguments.
    fn command(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.broker.command(arguments);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until `postern status --check` ends with this code and says these words.
    fn wait_for_check(&self, code: i32, words: &str) {
        let mut last = None;
        let found = || {
            let outcome = self.admin.run(&["status", "--check"]);
            let found = outcome.code == code && says(&outcome, words);
            last = Some(outcome);
            found
        };
        wait_until(
            &format!("status --check to end with {code} and to say {words:?}"),
            STEP_TIMEOUT * 2,
            found,
        );
    }
}

fn says(outcome: &Outcome, words: &str) -> bool {
    outcome.out.contains(words) || outcome.err.contains(words)
}

fn set_mode(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_start_with_a_clock_months_ahead_locks_no_one_out_once_the_clock_is_right() {
    let mut alone = Alone::new();
    let clock = FakeTime::new(alone.dir.path());
    alone.broker.live_by(&clock);
    let first = alone.read("intermediate.pem");
    clock.step(240 * DAY);
    alone.broker.serve();
    wait_until("a renewal by the wrong clock", STEP_TIMEOUT, || alone.read("intermediate.pem") != first);
    let ahead = alone.read("intermediate.pem");
    alone.broker.process().terminate();

    clock.step(0);
    let (code, status) = alone.command(&["authority", "status", "--check"]);
    assert_eq!(code, 9, "{status}");
    for words in ["clock is behind now: set it", "it was ahead when", "not valid yet"] {
        assert!(status.contains(words), "{status}");
    }
    alone.broker.serve();
    wait_until("a renewal by the right clock", STEP_TIMEOUT, || alone.read("intermediate.pem") != ahead);
    // The records of the wrong clock hold the broker's own ahead (I2): that is said, and locks out no one.
    alone.wait_for_check(9, AHEAD);
    assert!(alone.broker.log().contains("clock.differs"), "{}", alone.broker.log());
    assert_eq!(alone.command(&["authority", "status", "--check"]).0, 0);
    let renewed = alone.read("intermediate.pem");
    alone.broker.restart();
    alone.wait_for_check(9, AHEAD);
    assert_eq!(alone.read("intermediate.pem"), renewed, "one renewal was enough");
}

#[test]
fn i2_after_two_hours_of_a_clock_that_was_ahead_agents_enrol_and_windows_open_and_end() {
    let mut world = HostWorld::without_agent(usual_policy());
    let clock = FakeTime::new(world.dir());
    world.broker.process().terminate();
    world.broker.live_by(&clock);
    clock.step(2 * HOUR);
    world.broker.serve();
    let token = world.admin.cli().living_by(&clock).run(&["agents", "token", "host:web-9"]);
    assert!(token.succeeded(), "{token:?}");

    // While the broker runs, and after a restart, whose clock begins at the newest record.
    clock.step(0);
    for restart in [false, true] {
        if restart {
            world.broker.process().terminate();
            world.broker.serve();
        }
        wait_until("the broker to serve by the right clock", STEP_TIMEOUT * 2, || {
            world.admin.cli().run(&["agents", "list"]).succeeded()
        });
        let checked = world.admin.cli().run(&["status", "--check"]);
        assert!(checked.code == 9 && says(&checked, AHEAD), "{checked:?}");
    }
    world.enroll_agent();
    world.agent.run();
    world.admin.wait_in_sync(VM);
    // The broker's clock is two hours ahead, and the window is open for seconds.
    let grant = world.alice.open(&ask_for(&world.net.alice).seconds(4));
    world.alice.wait_for_state(&grant.id, GrantState::Closed);
}

#[test]
fn a_root_key_that_cannot_be_used_is_named_at_once() {
    let of_another = Alone::new().read("root.key");
    let mut alone = Alone::new();
    alone.broker.serve();
    alone.wait_for_check(0, "nothing needs attention");
    let (key, good) = (alone.file("root.key"), alone.read("root.key"));
    set_mode(&key, 0o644);
    alone.wait_for_check(9, "root.key can be read by other users");
    set_mode(&key, 0o600);
    alone.wait_for_check(0, "nothing needs attention");

    fs::write(&key, of_another).unwrap();
    alone.wait_for_check(9, "is not the private key of");
    for (command, code) in [(&["authority", "status", "--check"][..], 9), (&["check-config"], 0)] {
        let (ended, said) = alone.command(command);
        assert!(ended == code && said.contains("is not the private key of"), "{command:?}: {said}");
    }
    fs::write(&key, good).unwrap();
    alone.wait_for_check(0, "nothing needs attention");
}

#[test]
fn a_lost_intermediate_is_made_again_and_a_stale_copy_is_named_and_mended() {
    let mut alone = Alone::new();
    for text in [None, Some("")] {
        let key = alone.file("intermediate.key");
        match text {
            None => fs::remove_file(&key).unwrap(),
            Some(text) => fs::write(&key, text).unwrap(),
        }
        alone.broker.start();
        assert!(!alone.broker.process().ended().success());
        let log = alone.broker.log();
        assert!(log.contains("intermediate.key") && log.contains("authority renew --root-key FILE"), "{log}");
        alone.renew();
        alone.broker.serve();
        wait_until("the broker to answer", STEP_TIMEOUT, || alone.admin.run(&["agents", "list"]).succeeded());
        alone.broker.process().terminate();
    }

    // As a renewal leaves it that is killed between the two files.
    let stale = alone.read("intermediate.pem");
    alone.renew();
    fs::write(alone.file("intermediate.pem"), &stale).unwrap();
    let (code, status) = alone.command(&["authority", "status", "--check"]);
    assert!(code == 9 && status.contains("intermediate.pem is not a copy"), "{status}");
    alone.broker.serve();
    wait_until("the copy to be written again", STEP_TIMEOUT, || alone.read("intermediate.pem") != stale);
    let (code, status) = alone.command(&["authority", "status", "--check"]);
    assert_eq!(code, 0, "{status}");
}
