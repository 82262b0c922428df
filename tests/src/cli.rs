//! The `postern` command, as a person or a script would run it on a host.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::binaries::binary;
use crate::fake_time::FakeTime;
use crate::net::Host;
use crate::netns::{Netns, tied};

/// Runs `postern` with one identity.
#[derive(Debug, Clone)]
pub struct Cli {
    netns: Netns,
    broker: String,
    identity: PathBuf,
    clock: Option<FakeTime>,
}

/// The outcome of one run of `postern`.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code.
    pub code: i32,
    /// The text on standard output.
    pub out: String,
    /// The text on standard error.
    pub err: String,
}

impl Cli {
    /// Makes a `postern` command on `host`, with the identity in a directory.
    pub fn new(host: &Host, broker: &str, identity: &Path) -> Self {
        Self::over(host.netns().clone(), broker, identity)
    }

    /// Makes the same command in a namespace.
    pub(crate) fn over(netns: Netns, broker: &str, identity: &Path) -> Self {
        Self { netns, broker: broker.to_owned(), identity: identity.to_owned(), clock: None }
    }

    /// The same command, by these clocks.
    #[must_use]
    pub fn living_by(&self, clock: &FakeTime) -> Self {
        Self { clock: Some(clock.clone()), ..self.clone() }
    }

    /// Runs it to the end, for people.
    ///
    /// # Panics
    /// It cannot be started, or was killed.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        let mut command = tied(binary("postern"));
        if let Some(clock) = &self.clock {
            command = clock.over(command);
        }
        command.env("POSTERN_BROKER", &self.broker).env("POSTERN_IDENTITY", &self.identity).args(arguments);
        // Each identity is a person of its own, who remembers the checkpoints that it has seen.
        command.env("XDG_STATE_HOME", self.identity.with_extension("state"));
        let output = self.netns.output(command).unwrap_or_else(|error| panic!("cannot run postern: {error}"));
        Outcome::of(&output)
    }

    /// Runs it for programs, and returns the JSON values that it printed. It must succeed.
    ///
    /// # Panics
    /// It fails, or prints something else than JSON.
    pub fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let mut with_output = vec!["--output", "json"];
        with_output.extend(arguments);
        let outcome = self.run(&with_output);
        assert_eq!(outcome.code, 0, "postern {arguments:?} failed:\n{}{}", outcome.out, outcome.err);
        outcome.values()
    }
}

impl Outcome {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or_else(|| panic!("postern was killed: {}", output.status));
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }

    /// Reports whether the command exited with 0.
    pub fn succeeded(&self) -> bool {
        self.code == 0
    }

    /// The JSON values on standard output, one after the other.
    ///
    /// # Panics
    /// There is something else.
    pub fn values(&self) -> Vec<Value> {
        let values = serde_json::Deserializer::from_str(&self.out).into_iter();
        values.collect::<Result<_, _>>().unwrap_or_else(|error| panic!("not JSON ({error}):\n{}", self.out))
    }
}
