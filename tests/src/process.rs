//! Processes under test: started in a network namespace, signalled, and their logs shown when a test fails.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::clock::{STEP_TIMEOUT, wait_until};
use crate::netns::Netns;

/// A running process, or one that has ended. Dropping it kills it, and shows its log where the test has failed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it prints goes to `log`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(name: &str, netns: &Netns, command: Command, log: &Path) -> Self {
        Self::start_reading(name, netns, command, Stdio::null(), log)
    }

    /// Starts it with this standard input.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start_reading(name: &str, netns: &Netns, mut command: Command, input: Stdio, log: &Path) -> Self {
        let file = File::create(log).expect("a log can be made");
        let both = file.try_clone().expect("a descriptor can be duplicated");
        command.stdin(input).stdout(file).stderr(both);
        let child = netns.spawn(command).unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { name: name.to_owned(), child, log: log.to_owned() }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns everything that the process has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has printed `words`.
    ///
    /// # Panics
    /// It has ended, or takes more than [`STEP_TIMEOUT`].
    pub fn wait_for(&mut self, words: &str) {
        wait_until(&format!("{} to say {words:?}", self.name), STEP_TIMEOUT, || {
            let has_ended = self.child.try_wait();
            let says_it = self.log().contains(words);
            if let Ok(Some(status)) = has_ended
                && !says_it
            {
                panic!("{} ended ({status}) before it said {words:?}:\n{}", self.name, self.log());
            }
            says_it
        });
    }

    /// Reports whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.is_running(), "{} has ended:\n{}", self.name, self.log());
        kill_process(Pid::from_child(&self.child), signal).expect("a running child can be signalled");
    }

    /// Kills the process at once, without a chance to clean up.
    pub fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.ended();
    }

    /// Asks the process to end, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// It takes more than [`STEP_TIMEOUT`].
    pub fn ended(&mut self) -> ExitStatus {
        wait_until(&format!("the end of {}", self.name), STEP_TIMEOUT, || !self.is_running());
        self.child.wait().expect("a child can be waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[allow(clippy::print_stderr, reason = "the test runner looks there for the cause of a failure")]
            {
                eprintln!("--- log of {} ---\n{}", self.name, self.log());
            }
        }
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
