//! A Redis of a scenario's own: a real server, on a socket in a directory that goes with it.

mod sentinel;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::clock::{STEP_TIMEOUT, wait_until};
use crate::net::Host;
use crate::netns::{Netns, tied};
use crate::process::Process;

pub use sentinel::{FAILOVER, Group, MASTER};

/// A server that keeps what it has answered.
#[derive(Debug)]
pub struct Redis {
    process: Option<Process>,
    netns: Netns,
    dir: TempDir,
}

impl Redis {
    /// Starts one.
    ///
    /// # Panics
    /// redis-server is not installed, or does not come up.
    pub fn start(host: &Host) -> Self {
        let dir = TempDir::with_prefix("postern-redis-").expect("a temporary directory can be made");
        let mut redis = Self { process: None, netns: host.netns().clone(), dir };
        redis.resume();
        redis
    }

    /// The section of a broker's configuration that makes it use this server.
    pub fn configuration(&self) -> String {
        format!("[store]\nurl = \"{}\"\n", self.url())
    }

    /// The URL of the server.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Runs a command of the server's own client.
    ///
    /// # Panics
    /// The client is not installed, or the server refuses.
    pub fn command(&self, arguments: &[&str]) {
        let mut client = tied("redis-cli");
        client.arg("-e").arg("-s").arg(self.socket()).args(arguments);
        let output = self.netns.output(client).expect("redis-cli is installed");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    /// Kills the server, whatever it is doing.
    pub fn kill9(&mut self) {
        self.process.take().expect("it runs").kill9();
    }

    /// Stops it where it is: connections stay, and nothing is answered.
    pub fn freeze(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::STOP);
    }

    /// Lets the server go on.
    pub fn thaw(&mut self) {
        self.process.as_mut().expect("it runs").signal(Signal::CONT);
    }

    /// Kills the server, and takes away all that it had kept.
    pub fn lose(&mut self) {
        self.kill9();
        std::fs::remove_dir_all(self.dir.path().join("appendonlydir")).expect("it keeps what it has there");
    }

    /// Starts it again, with all that it had kept.
    ///
    /// # Panics
    /// It does not come up.
    pub fn resume(&mut self) {
        std::fs::remove_file(self.socket()).ok();
        let mut command = tied("redis-server");
        command.args([
            "--port",
            "0",
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--unixsocket",
        ]);
        command.arg(self.socket()).arg("--dir").arg(self.dir.path());
        let log = self.dir.path().join("redis.log");
        let process = Process::start("redis-server", &self.netns, command, &log);
        wait_until("redis to listen", STEP_TIMEOUT, || UnixStream::connect(self.socket()).is_ok());
        self.process = Some(process);
    }

    /// The path of the server's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }
}
