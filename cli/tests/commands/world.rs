//! A fake broker, and one client of it that runs the command.

use std::path::PathBuf;
use std::sync::MutexGuard;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use postern_core::{Name, Role};
use postern_pki::identity::SpiffeId;
use postern_testkit::clock::wall;
use postern_testkit::{FakeBroker, Script};
use tempfile::TempDir;

use super::run::{self, Ran};

/// The lifetime of a client's certificate.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(3600);

/// A broker with one client.
pub(crate) struct CommandWorld {
    pub(crate) broker: FakeBroker,
    dir: TempDir,
}

impl CommandWorld {
    /// Starts a broker, and issues an identity to alice, a requester.
    pub(crate) async fn with(script: Script) -> Self {
        let world = Self { broker: FakeBroker::start().await, dir: tempfile::tempdir().unwrap() };
        *world.script() = script;
        world.issue("alice", wall());
        world
    }

    /// Returns the broker's script, and the calls that were recorded in it.
    pub(crate) fn script(&self) -> MutexGuard<'_, Script> {
        self.broker.script()
    }

    /// Issues an identity that is valid for an hour from that time, in the directory that [`Self::postern`] uses.
    pub(crate) fn issue(&self, name: &str, from: Timestamp) {
        let requester = SpiffeId::Principal { role: Role::Requester, name: Name::new(name).unwrap() };
        let credentials = self.broker.issue(&requester, CERTIFICATE_LIFETIME, from);
        credentials.save(&self.identity()).unwrap();
    }

    /// Returns the directory of the client's identity.
    pub(crate) fn identity(&self) -> PathBuf {
        self.dir.path().join("me")
    }

    /// Writes a file beside the identity, and returns its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let file = self.dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    }

    /// Returns the file in which the command remembers checkpoints.
    pub(crate) fn remembered(&self) -> PathBuf {
        self.dir.path().join("state/postern/audit-checkpoints.json")
    }

    /// Makes the command as this client.
    pub(crate) fn command(&self, args: &[&str]) -> tokio::process::Command {
        let mut command = run::command(args);
        command.env("POSTERN_BROKER", self.broker.url()).env("POSTERN_IDENTITY", self.identity());
        command
    }

    /// Runs the command as this client to its end.
    pub(crate) async fn postern(&self, args: &[&str]) -> Ran {
        let identity = self.identity();
        let us = ["--broker", self.broker.url(), "--identity", identity.to_str().unwrap()];
        let mut command = run::command(&[&us[..], args].concat());
        command.env("XDG_STATE_HOME", self.dir.path().join("state"));
        run::finish(command).await
    }
}

/// Returns the time some hours ago.
pub(crate) fn ago(hours: i64) -> Timestamp {
    wall() - SignedDuration::from_hours(hours)
}
