//! An agent under test: the real program, in its host's namespace, with a state directory of its own.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::binaries::binary;
use crate::client::Client;
use crate::fake_time::FakeTime;
use crate::net::{Host, succeeded};
use crate::netns::{Netns, tied};
use crate::process::Process;

/// An agent. It runs from [`Agent::run`] on, until it is killed or dropped.
#[derive(Debug)]
pub struct Agent {
    dir: PathBuf,
    netns: Netns,
    starts: u32,
    clock: Option<FakeTime>,
    shares_table: bool,
    process: Option<Process>,
}

impl Agent {
    /// Makes an agent's directory with a configuration; `bootstrap` are the ports to protect before a broker has answered.
    pub fn new(host: &Host, broker: &str, dir: &Path, bootstrap: &[&str]) -> Self {
        fs::create_dir_all(dir).expect("a directory can be made");
        let agent = Self {
            dir: dir.to_owned(),
            netns: host.netns().clone(),
            starts: 0,
            clock: None,
            shares_table: false,
            process: None,
        };
        let mut config = format!("broker = {broker:?}\nstate_dir = {:?}\n", agent.state_dir());
        if !bootstrap.is_empty() {
            config.push_str(&format!("[bootstrap]\nports = {bootstrap:?}\n"));
        }
        fs::write(agent.config(), config).expect("a file can be written");
        agent
    }

    /// Enrols with a join token.
    ///
    /// # Panics
    /// It fails.
    pub fn enroll(&self, token: &str) {
        succeeded("postern-agent enroll", &self.try_enroll(token));
    }

    /// Enrols with a join token from a private file.
    pub fn try_enroll(&self, token: &str) -> Output {
        let file = self.dir.join("token");
        let mut options = OpenOptions::new();
        let mut opened = options.create(true).write(true).truncate(true).mode(0o600).open(&file);
        opened.as_mut().expect("a file can be made").write_all(token.as_bytes()).expect("it can be written");
        self.command(&["enroll", "--token-file", &file.to_string_lossy()])
    }

    /// Enrols as a target, starts the agent, and waits until it holds what it should.
    ///
    /// # Panics
    /// The broker makes no token, or the agent does not come to that.
    pub fn join(&mut self, target: &str, admin: &Client) {
        self.enroll(&admin.join_token(target, None).expect("a token can be made"));
        self.run();
        admin.wait_in_sync(target);
    }

    /// Starts it.
    pub fn run(&mut self) {
        self.run_as(self.program());
    }

    /// Lets the agent's commands, and the agent from its next start on, live by this clock.
    pub fn live_by(&mut self, clock: &FakeTime) {
        self.clock = Some(clock.clone());
    }

    /// Lets the agent's table have no owner from its next start on, as on a kernel before Linux 6.9: other programs can change it.
    pub fn share_table(&mut self) {
        self.shares_table = true;
    }

    fn program(&self) -> Command {
        let program = tied(binary("postern-agent"));
        match &self.clock {
            Some(clock) => clock.over(program),
            None => program,
        }
    }

    /// Starts it through a command that ends in the agent's program.
    pub fn run_as(&mut self, command: Command) {
        self.run_reading(command, Stdio::null());
    }

    /// Starts it as [`Self::run_as`] does, with this standard input.
    pub fn run_reading(&mut self, mut command: Command, input: Stdio) {
        self.set_environment(&mut command);
        command.arg("--config").arg(self.config()).arg("run");
        self.starts += 1;
        let log = self.dir.join(format!("run-{}.log", self.starts));
        self.process = Some(Process::start_reading("postern-agent", &self.netns, command, input, &log));
    }

    fn set_environment(&self, command: &mut Command) {
        if self.shares_table {
            command.env("POSTERN_TABLE_OWNER", "off");
        }
    }

    /// Puts lines before the first section of the agent's configuration. They count from its next start on.
    ///
    /// # Panics
    /// The file cannot be changed.
    pub fn configure(&self, lines: &str) {
        let config = fs::read_to_string(self.config()).expect("the configuration can be read");
        fs::write(self.config(), format!("{lines}{config}")).expect("the configuration can be written");
    }

    /// Kills the agent, if it runs, and starts it again.
    pub fn restart(&mut self) {
        self.process = None;
        self.run();
    }

    /// The running process.
    ///
    /// # Panics
    /// It was not started.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent was started")
    }

    /// Returns what the agent has printed since its last start.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Runs one of its commands to the end.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let mut command = self.program();
        self.set_environment(&mut command);
        command.arg("--config").arg(self.config()).args(arguments);
        self.netns.output(command).unwrap_or_else(|error| panic!("cannot run postern-agent: {error}"))
    }

    /// Runs one of its commands, which must succeed.
    ///
    /// # Panics
    /// It fails.
    pub fn must(&self, arguments: &[&str]) -> String {
        succeeded(&format!("postern-agent {}", arguments.join(" ")), &self.command(arguments))
    }

    /// The path of the agent's configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.join("agent.toml")
    }

    /// The path of the agent's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }
}
