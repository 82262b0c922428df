//! Runs of the command.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// The outcome of a command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Parses the results as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Checks the exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Checks that stderr contains the text.
    #[track_caller]
    pub(crate) fn tells(self, text: &str) -> Self {
        assert!(self.err.contains(text), "{text:?} is not in {self:?}");
        self
    }
}

/// Makes the command without this machine's own settings.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    for variable in ["POSTERN_BROKER", "POSTERN_IDENTITY", "XDG_CONFIG_HOME"] {
        command.env_remove(variable);
    }
    // No directory can be made there: a run remembers nothing unless its test gives it a place.
    command.env("HOME", "/nonexistent").env("XDG_STATE_HOME", "/dev/null/state").args(args);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs the command to its end.
pub(crate) async fn postern(args: &[&str]) -> Ran {
    finish(command(args)).await
}

/// Runs a command to its end.
pub(crate) async fn finish(mut command: Command) -> Ran {
    let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
    let output = output.expect("the command hangs").unwrap();
    Ran {
        code: output.status.code().expect("ended by a signal"),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}
