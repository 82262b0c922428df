//! A broker under test: the real program, in its host's namespace, with a data directory of its own.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use postern_core::Role;
use postern_store::{RecordsKey, Sealing};

use crate::binaries::binary;
use crate::client::Client;
use crate::ec2::CREDENTIALS;
use crate::fake_time::FakeTime;
use crate::net::{Host, succeeded};
use crate::netns::{Netns, tied};
use crate::process::Process;

/// The port that brokers listen on.
pub(crate) const PORT: u16 = 7443;
/// The log line of a broker that listens.
const LISTENING: &str = "listening";

/// A broker. It runs from [`Broker::serve`] on, until it is killed or dropped.
#[derive(Debug)]
pub struct Broker {
    dir: PathBuf,
    netns: Netns,
    url: String,
    starts: u32,
    clock: Option<FakeTime>,
    process: Option<Process>,
}

impl Broker {
    /// Makes a broker's directory with a configuration, and initialises it.
    ///
    /// # Panics
    /// `init` fails.
    pub fn init(host: &Host, dir: &Path) -> Self {
        Self::init_with(host, dir, "")
    }

    /// The same, with more lines in its configuration.
    ///
    /// # Panics
    /// `init` fails.
    pub fn init_with(host: &Host, dir: &Path, more: &str) -> Self {
        Self::init_on(host, dir, PORT, more)
    }

    /// The same, on another port.
    ///
    /// # Panics
    /// `init` fails.
    pub fn init_on(host: &Host, dir: &Path, port: u16, more: &str) -> Self {
        let broker = Self::configured(host, dir, port, more);
        broker.must(&["init"]);
        broker
    }

    /// A further broker under the authority of the first.
    ///
    /// # Panics
    /// The authority cannot be copied.
    pub fn beside(first: &Self, host: &Host, dir: &Path, port: u16, more: &str) -> Self {
        let broker = Self::configured(host, dir, port, more);
        let data = broker.data_dir();
        fs::create_dir(&data).expect("a directory can be made");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).expect("a directory can be closed");
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(first.data_dir().join("ca")).arg(&data);
        succeeded("cp", &broker.netns.output(copy).expect("coreutils are installed"));
        broker
    }

    fn configured(host: &Host, dir: &Path, port: u16, more: &str) -> Self {
        fs::create_dir_all(dir).expect("a directory can be made");
        let broker = Self {
            dir: dir.to_owned(),
            netns: host.netns().clone(),
            url: format!("https://{}:{port}", host.v4()),
            starts: 0,
            clock: None,
            process: None,
        };
        let config = format!(
            "data_dir = {:?}\nlisten = \"[::]:{port}\"\nnames = [\"{}\", \"{}\"]\n",
            broker.data_dir(),
            host.v4(),
            host.v6()
        );
        fs::write(broker.config(), config + more).expect("a file can be written");
        broker
    }

    /// Starts it, and waits until it listens.
    ///
    /// # Panics
    /// It does not come to listen.
    pub fn serve(&mut self) {
        self.serve_as(self.program());
    }

    /// Starts it through a command that ends in the broker's program.
    ///
    /// # Panics
    /// It does not come to listen.
    pub fn serve_as(&mut self, command: Command) {
        self.start_as(command);
        self.process().wait_for(LISTENING);
    }

    /// Starts it, and does not wait: it may end again at once.
    pub fn start(&mut self) {
        self.start_as(self.program());
    }

    /// Lets the broker's commands, and the broker from its next start on, live by these clocks.
    pub fn live_by(&mut self, clock: &FakeTime) {
        self.clock = Some(clock.clone());
    }

    fn program(&self) -> Command {
        let program = tied(binary("postern-broker"));
        match &self.clock {
            Some(clock) => clock.over(program),
            None => program,
        }
    }

    fn start_as(&mut self, mut command: Command) {
        command.arg("--config").arg(self.config()).arg("serve").envs(CREDENTIALS);
        self.starts += 1;
        let log = self.dir.join(format!("serve-{}.log", self.starts));
        self.process = Some(Process::start("postern-broker", &self.netns, command, &log));
    }

    /// Reports whether the broker was started, and has not ended.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Reports whether the broker has logged since its last start that it listens.
    pub fn has_listened(&self) -> bool {
        self.log().contains(LISTENING)
    }

    /// The logs of all its starts, the first one first.
    pub fn logs(&self) -> Vec<String> {
        let log = |start| fs::read_to_string(self.dir.join(format!("serve-{start}.log"))).unwrap_or_default();
        (1..=self.starts).map(log).collect()
    }

    /// Gives the broker a fresh store, under the same authority. It must not run.
    ///
    /// # Panics
    /// `init` fails.
    pub fn empty_store(&mut self) {
        self.process = None;
        self.remove_store();
        let kept = self.dir.join("kept");
        fs::rename(self.data_dir(), &kept).expect("a directory can be moved");
        self.must(&["init"]);
        for part in ["ca", "admin"] {
            fs::remove_dir_all(self.data_dir().join(part)).expect("a directory can be removed");
            fs::rename(kept.join(part), self.data_dir().join(part)).expect("a directory can be moved");
        }
        fs::remove_dir_all(kept).expect("a directory can be removed");
        // That store is sealed with the key of the authority that is gone again.
        self.remove_store();
    }

    fn remove_store(&self) {
        for suffix in ["", "-wal", "-shm"] {
            let file = format!("{}{suffix}", self.database().display());
            if Path::new(&file).exists() {
                fs::remove_file(file).expect("the store can be removed");
            }
        }
    }

    /// Puts lines before the first section of the broker's configuration. They count from its next start on.
    ///
    /// # Panics
    /// The file cannot be changed.
    pub fn configure(&self, lines: &str) {
        let config = fs::read_to_string(self.config()).expect("the configuration can be read");
        fs::write(self.config(), format!("{lines}{config}")).expect("the configuration can be written");
    }

    /// Kills the broker, if it runs, and starts it again.
    pub fn restart(&mut self) {
        self.process = None;
        self.serve();
    }

    /// The running process.
    ///
    /// # Panics
    /// It was not started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the broker was started")
    }

    /// Returns what the broker has printed since its last start.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs one of its commands to the end.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut command = self.program();
        command.arg("--config").arg(self.config()).args(arguments);
        self.netns.output(command).unwrap_or_else(|error| panic!("cannot run postern-broker: {error}"))
    }

    /// Runs one of its commands, which must succeed.
    ///
    /// # Panics
    /// It fails.
    pub fn must(&self, arguments: &[&str]) -> String {
        succeeded(&format!("postern-broker {}", arguments.join(" ")), &self.command(arguments))
    }

    /// The identity of the administrator that `init` made.
    pub fn admin_identity(&self) -> PathBuf {
        self.data_dir().join("admin")
    }

    /// Issues a client certificate, and returns the identity's directory.
    ///
    /// # Panics
    /// `issue` fails.
    pub fn issue(&self, name: &str, role: Role) -> PathBuf {
        let out = self.dir.join("identities").join(name);
        fs::create_dir_all(self.dir.join("identities")).expect("a directory can be made");
        self.must(&["issue", name, "--role", &role.to_string(), "--out", &out.to_string_lossy()]);
        out
    }

    /// A client on `host` with a new certificate.
    pub fn client(&self, host: &Host, name: &str, role: Role) -> Client {
        Client::new(host, &self.url, &self.issue(name, role))
    }

    /// A client on the broker's own host, as the administrator that `init` made.
    pub fn admin(&self, host: &Host) -> Client {
        Client::new(host, &self.url, &self.admin_identity())
    }

    /// The broker's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The path of the broker's configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("broker.toml")
    }

    /// The path of the broker's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The path of the broker's database.
    pub fn database(&self) -> PathBuf {
        self.data_dir().join("postern.db")
    }

    /// Returns the key with which the broker's records are sealed.
    pub fn sealing(&self) -> Sealing {
        let text = fs::read_to_string(self.data_dir().join("ca/records.key")).expect("init made the key");
        Sealing::with(RecordsKey::from_text(&text).expect("it is a key"))
    }
}
