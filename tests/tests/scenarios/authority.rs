//! The authority's life: months pass while a broker, an agent and people work, and a cloud window is open when the
//! intermediate certificate ends. Every program lives by the same clocks, which a test moves while they run.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use postern_core::Role;
use postern_proto::v1::Layers;
use postern_tests::azure::AzureWorld;
use postern_tests::clock::wait_until;
use postern_tests::{Broker, Cli, FakeTime, Net, Outcome, STEP_TIMEOUT};
use tempfile::TempDir;

use crate::watched::fetch;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// The moment half an hour before the first intermediate ends.
const ALMOST: i64 = 365 * DAY - HOUR / 2;
/// The address of the broker's metrics, on its host.
const METRICS: &str = "127.0.0.1:9464";

/// A walk through months. A jump goes over 29 days at most while an agent is connected: an agent that was away for 30 has
/// to be enrolled again.
struct Walk {
    world: AzureWorld,
    clock: FakeTime,
    identities: u32,
}

impl Walk {
    /// A broker that `init` has just set up, with one machine in a cloud under lockdown and its agent.
    fn begin(layers: Layers) -> Self {
        let mut world = AzureWorld::new(layers);
        let clock = FakeTime::passing(world.dir());
        world.broker.configure(&format!("metrics_listen = \"{METRICS}\"\n"));
        world.broker.live_by(&clock);
        world.agent.live_by(&clock.wall_alone());
        world.broker.process().terminate();
        world.broker.serve();
        if layers == Layers::Both {
            world.agent.restart();
        }
        Self { world, clock, identities: 0 }
    }

    /// Lets the time pass until so many seconds after the beginning.
    fn to(&self, seconds: i64) {
        self.clock.step(seconds);
    }

    /// The `postern` command of a person with a certificate of today.
    fn person(&mut self, role: Role) -> Cli {
        self.identities += 1;
        let identity = self.world.broker.issue(&format!("person-{}", self.identities), role);
        Cli::new(&self.world.net.alice, self.world.broker.url(), &identity).living_by(&self.clock)
    }

    /// The `postern` command of an administrator with a certificate that is asked for so long.
    fn person_for(&self, valid_for: &str) -> Cli {
        let identity = self.world.dir().join("long-lived");
        let out = identity.to_string_lossy();
        let arguments = ["issue", "root", "--role", "administrator", "--out", &out, "--valid-for", valid_for];
        self.world.broker.must(&arguments);
        Cli::new(&self.world.net.alice, self.world.broker.url(), &identity).living_by(&self.clock)
    }

    /// Asserts that an administrator with a certificate of today finds nothing that needs attention, and the agent online.
    fn all_is_well(&mut self, day: i64) {
        let admin = self.person(Role::Administrator);
        wait_until(&format!("the agent to be online on day {day}"), STEP_TIMEOUT, || {
            let listed = admin.run(&["--output", "json", "agents", "list"]);
            listed.succeeded() && listed.values()[0]["agents"][0]["status"] == "online"
        });
        let mut last = None;
        let well = || {
            let outcome = admin.run(&["status", "--check"]);
            let well = outcome.succeeded();
            last = Some(outcome);
            well
        };
        wait_until(&format!("nothing to need attention on day {day}"), STEP_TIMEOUT, well);
    }

    /// Enrols the agent with a token of today, and runs it.
    fn enroll_agent(&mut self) {
        let (admin, target) = (self.person(Role::Administrator), self.world.target());
        let mut token = None;
        wait_until("a join token", STEP_TIMEOUT, || {
            let made = admin.run(&["--output", "json", "agents", "token", &target]);
            token = made.succeeded().then(|| made.values()[0]["token"].as_str().unwrap().to_owned());
            token.is_some()
        });
        self.world.agent.enroll(&token.unwrap());
        self.world.agent.restart();
    }

    /// Opens a window in the cloud for an hour.
    fn open_for_an_hour(&mut self) {
        let alice = self.person(Role::Requester);
        // After a jump the broker needs a moment to serve with a certificate of today.
        wait_until("the broker to answer", STEP_TIMEOUT, || alice.run(&["grants"]).succeeded());
        let asked =
            alice.run(&["request", &self.world.target(), "--port", "22", "--for", "1h", "--reason", "x"]);
        assert!(asked.succeeded() && self.world.is_open(), "{asked:?}");
    }

    fn wait_until_shut(&self, what: &str) {
        wait_until(&format!("the cloud window to close {what}"), STEP_TIMEOUT, || !self.world.is_open());
    }

    /// Takes the root key out of the broker's reach, and returns where it is.
    fn take_root_key_offline(&self) -> PathBuf {
        let offline = self.world.dir().join("offline.key");
        fs::rename(self.authority_dir().join("root.key"), &offline).unwrap();
        offline
    }

    fn authority_dir(&self) -> PathBuf {
        self.world.broker.data_dir().join("ca")
    }

    fn intermediate(&self) -> Vec<u8> {
        fs::read(self.authority_dir().join("intermediate.pem")).unwrap()
    }

    /// Gets an answer of the broker's metrics port.
    fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{METRICS}{path}");
        self.world.net.hub.netns().run(fetch(url))
    }

    /// Runs `postern-broker` with these arguments.
    fn broker(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.world.broker.command(arguments);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    /// The broker's readiness speaks of the authority, or not.
    fn is_locked_out(&self) -> bool {
        self.get("/readyz").1.contains("authority: ")
    }

    fn assert_same_process(&mut self, pid: u32) {
        assert!(self.world.broker.is_running(), "{}", self.world.broker.log());
        assert_eq!(self.world.broker.process().pid(), pid);
    }
}

fn says(outcome: &Outcome, words: &str) -> bool {
    outcome.out.contains(words) || outcome.err.contains(words)
}

#[test]
fn i2_fourteen_months_pass_with_the_root_key_at_hand_and_nothing_stops() {
    let mut walk = Walk::begin(Layers::Both);
    let pid = walk.world.broker.process().pid();
    let first = walk.intermediate();
    for day in [29, 58, 87, 116, 145, 174, 182] {
        walk.to(day * DAY);
        walk.all_is_well(day);
    }
    assert_eq!(walk.intermediate(), first, "half of its life has not passed");
    let of_the_first = walk.person_for("365d");

    walk.to(183 * DAY);
    wait_until("the intermediate to be renewed", STEP_TIMEOUT, || walk.intermediate() != first);
    let second = walk.intermediate();
    for day in [183, 212, 241, 270, 299, 328, 357, 364] {
        walk.to(day * DAY);
        walk.all_is_well(day);
    }
    let chain = |identity: &Path| fs::read_to_string(identity.join("cert.pem")).unwrap();
    let agents = chain(&walk.world.agent.state_dir().join("identity"));
    assert!(agents.contains(String::from_utf8_lossy(&second).trim()), "the agent is under the new one");
    let served = of_the_first.run(&["status"]);
    assert!(served.succeeded(), "a certificate of the old one is good until its own end: {served:?}");

    walk.to(ALMOST);
    walk.all_is_well(364);
    walk.open_for_an_hour();
    walk.to(366 * DAY);
    walk.wait_until_shut("past the end of the first intermediate");
    walk.all_is_well(366);
    assert_ne!(walk.intermediate(), second, "the second has passed half of its life, too");
    let ended = of_the_first.run(&["status"]);
    assert!(ended.code == 3 && says(&ended, "it ended at"), "{ended:?}");

    for day in [395, 424, 426] {
        walk.to(day * DAY);
        walk.all_is_well(day);
    }
    walk.open_for_an_hour();
    walk.to(426 * DAY + 2 * HOUR);
    walk.wait_until_shut("after fourteen months");
    walk.assert_same_process(pid);
    let audit = walk.person(Role::Administrator).run(&["audit", "tail"]);
    // Twice, the intermediate for agents and the one for people.
    assert_eq!(audit.out.matches("authority.renewed").count(), 4, "I9: {}", audit.out);
}

#[test]
fn i2_a_running_broker_outlives_its_intermediate_and_goes_on_closing() {
    let mut walk = Walk::begin(Layers::Cloud);
    let offline = walk.take_root_key_offline();
    let pid = walk.world.broker.process().pid();
    walk.enroll_agent();
    walk.to(ALMOST);
    walk.open_for_an_hour();
    walk.to(366 * DAY);
    walk.wait_until_shut("past the end of the intermediate");
    wait_until("the broker to say that it locks everyone out", STEP_TIMEOUT, || walk.is_locked_out());
    // Two more lives of a serving certificate.
    walk.to(368 * DAY);
    wait_until("the broker to go on", STEP_TIMEOUT, || walk.get("/livez").0 == 200);
    walk.assert_same_process(pid);

    // The agent was away for a year: too long to renew by itself.
    let remedy = "enrol it with `postern-agent enroll --token-file FILE`";
    wait_until("the agent to name the remedy", STEP_TIMEOUT, || walk.world.agent.log().contains(remedy));
    let (code, renewed) = walk.broker(&["authority", "renew", "--root-key", &offline.to_string_lossy()]);
    assert_eq!(code, 0, "{renewed}");
    wait_until("the broker to take it up", STEP_TIMEOUT * 2, || !walk.is_locked_out());
    walk.enroll_agent();
    walk.all_is_well(368);
    walk.assert_same_process(pid);
}

#[test]
fn i2_with_the_root_key_offline_the_end_is_announced_survived_and_mended_without_a_restart() {
    let mut walk = Walk::begin(Layers::Cloud);
    let offline = walk.take_root_key_offline();
    walk.to(274 * DAY);
    let admin = walk.person(Role::Administrator);
    // The broker looks at its certificates every ten seconds, and first needs one with which it can answer.
    wait_until("nothing to need attention", 3 * STEP_TIMEOUT, || {
        admin.run(&["status", "--check"]).succeeded()
    });
    assert_eq!(walk.broker(&["authority", "status", "--check"]).0, 0);

    for (day, left) in [(276, "88 days"), (336, "28 days"), (359, "5 days")] {
        walk.to(day * DAY);
        let admin = walk.person(Role::Administrator);
        let words = format!("intermediate certificate ends in {left}");
        wait_until(&format!("the broker to say {words:?}"), STEP_TIMEOUT, || {
            walk.world.broker.log().contains(&words)
        });
        let mut outcome = None;
        wait_until("status --check to say so", STEP_TIMEOUT, || {
            let checked = admin.run(&["status", "--check"]);
            let said = checked.code == 9 && says(&checked, &words);
            outcome = Some(checked);
            said
        });
        let outcome = outcome.unwrap();
        assert!(says(&outcome, "postern-broker authority renew --root-key FILE"), "the remedy: {outcome:?}");
        let (code, checked) = walk.broker(&["check-config"]);
        assert!(code == 0 && checked.contains(&words), "{checked}");
        let (code, status) = walk.broker(&["authority", "status", "--check"]);
        assert!(code == 9 && status.contains(&words) && status.contains("offline"), "{status}");
    }

    // An agent that is enrolled on the last day, and a window that is open at the end, when no broker runs.
    walk.to(364 * DAY);
    let admin = walk.person(Role::Administrator);
    walk.enroll_agent();
    walk.to(ALMOST);
    walk.open_for_an_hour();
    walk.world.broker.process().kill9();
    walk.to(366 * DAY);
    assert!(walk.world.is_open());
    walk.world.broker.serve();
    walk.wait_until_shut("by a broker that starts with an ended intermediate");
    wait_until("the broker to say that it locks everyone out", STEP_TIMEOUT, || walk.is_locked_out());
    let (_, readiness) = walk.get("/readyz");
    assert!(readiness.contains("postern-broker authority renew --root-key FILE"), "{readiness}");
    let refused = admin.run(&["status"]);
    assert!(refused.code == 8 && says(&refused, "the broker's certificate has ended"), "{refused:?}");
    let (code, refused) = walk.broker(&["issue", "late", "--role", "reader", "--out", "/nonexistent/late"]);
    assert!(code != 0 && refused.contains("postern-broker authority renew --root-key FILE"), "{refused}");

    let pid = walk.world.broker.process().pid();
    let (code, renewed) = walk.broker(&["authority", "renew", "--root-key", &offline.to_string_lossy()]);
    assert_eq!(code, 0, "{renewed}");
    wait_until("the broker to take it up", STEP_TIMEOUT * 2, || !walk.is_locked_out());
    walk.all_is_well(366);
    walk.open_for_an_hour();
    walk.assert_same_process(pid);
    let audit = walk.person(Role::Administrator).run(&["audit", "tail"]);
    assert_eq!(audit.out.matches("authority.renewed").count(), 1, "I9: {}", audit.out);
}

#[test]
fn a_renewal_by_root_leaves_every_file_to_the_user_of_the_broker() {
    let (net, dir) = (Net::new(), TempDir::with_prefix("postern-").unwrap());
    let broker = Broker::init(&net.hub, &dir.path().join("broker"));
    let ca = broker.data_dir().join("ca");
    let user = 65_534;
    chown(&ca, Some(user), Some(user)).unwrap();
    let root_key = ca.join("root.key").to_string_lossy().into_owned();
    broker.must(&["authority", "renew", "--root-key", &root_key]);
    for (file, mode) in [("intermediate.key", 0o600), ("intermediate.pem", 0o644), ("previous.pem", 0o644)] {
        let metadata = fs::metadata(ca.join(file)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (user, user, mode), "{file}");
    }
}
