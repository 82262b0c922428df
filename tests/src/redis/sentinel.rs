//! A primary, its replica and their sentinels: real processes, each on a port of one host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::clock::{STEP_TIMEOUT, wait_until};
use crate::net::Host;
use crate::netns::{Netns, tied};
use crate::process::Process;

/// The name of the primary among the sentinels.
pub const MASTER: &str = "postern";
/// The ports of the servers, and the first of the sentinels'.
const PORTS: [u16; 2] = [6379, 6380];
const SENTINEL_PORT: u16 = 26379;

/// A primary and its replica, and the sentinels that watch them. They go when it goes.
#[derive(Debug)]
pub struct Group {
    sentinels: Vec<Process>,
    nodes: [Node; 2],
    netns: Netns,
    address: String,
    #[allow(dead_code, reason = "it is there as long as the processes in it")]
    dir: TempDir,
}

/// A server of a group: 0 begins as the primary, 1 as its replica.
#[derive(Debug)]
struct Node {
    dir: PathBuf,
    process: Option<Process>,
}

impl Group {
    /// Starts a primary, a replica that has caught up, and so many sentinels, of which one is enough to see an outage. They
    /// see it after about three seconds: a sentinel may take one to reach a primary that it has just made, and a shorter outage than
    /// that would be another failover, back to the server that was killed.
    ///
    /// # Panics
    /// redis-server is not installed, or does not come up.
    pub fn start(host: &Host, sentinels: u16) -> Self {
        let dir = TempDir::with_prefix("postern-redis-").expect("a temporary directory can be made");
        let node = |name: &str| {
            let dir = dir.path().join(name);
            std::fs::create_dir(&dir).expect("a directory can be made");
            Node { dir, process: None }
        };
        let nodes = [node("0"), node("1")];
        let (netns, address) = (host.netns().clone(), host.v4().to_string());
        let mut group = Self { sentinels: Vec::new(), nodes, netns, address, dir };
        group.begin(0, None);
        group.begin(1, Some(0));
        wait_until("the replica to catch up", STEP_TIMEOUT, || {
            group.cli(1, &["INFO", "replication"]).contains("master_link_status:up")
        });
        for number in 0..sentinels {
            group.watch(number);
        }
        wait_until("the sentinels to know the replica", STEP_TIMEOUT, || {
            (0..sentinels).all(|number| {
                let port = SENTINEL_PORT + number;
                let known = group.ask(port, &["SENTINEL", "REPLICAS", MASTER]);
                let others = group.ask(port, &["SENTINEL", "SENTINELS", MASTER]);
                known.contains(&PORTS[1].to_string())
                    && others.matches("runid").count() == usize::from(sentinels) - 1
            })
        });
        group
    }

    /// The section of a broker's configuration that makes it use this group.
    pub fn configuration(&self, replicas: usize) -> String {
        let urls = self.sentinel_urls();
        format!(
            "[store]\nsentinels = {urls:?}\nmaster = \"{MASTER}\"\nreplicas = {replicas}\ninsecure = true\n"
        )
    }

    /// The URLs of the sentinels.
    pub fn sentinel_urls(&self) -> Vec<String> {
        let ports = (SENTINEL_PORT..).take(self.sentinels.len());
        ports.map(|port| format!("redis://{}:{port}", self.address)).collect()
    }

    /// The URL of a server.
    pub fn url(&self, node: usize) -> String {
        format!("redis://{}:{}", self.address, PORTS[node])
    }

    /// Returns the server that the first sentinel holds for the primary.
    pub fn primary(&self) -> usize {
        let answer = self.ask(SENTINEL_PORT, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]);
        usize::from(answer.lines().nth(1) == Some(&PORTS[1].to_string()))
    }

    /// Waits until the sentinels have made this server the primary, and it is one.
    pub fn wait_for_primary(&self, node: usize) {
        wait_until("a failover", STEP_TIMEOUT, || {
            self.primary() == node && self.cli(node, &["ROLE"]).starts_with("master")
        });
    }

    /// Kills a server, whatever it is doing.
    pub fn kill9(&mut self, node: usize) {
        self.nodes[node].process.take().expect("it runs").kill9();
    }

    /// Stops a server where it is (SIGSTOP): its connections stand, and nothing answers.
    pub fn pause(&mut self, node: usize) {
        self.process(node).signal(Signal::STOP);
    }

    /// Lets a server go on that was stopped.
    pub fn resume(&mut self, node: usize) {
        self.process(node).signal(Signal::CONT);
    }

    /// Starts a server that was killed, with all that it had kept; what it finds when it is back is the sentinels' word.
    pub fn restart(&mut self, node: usize) {
        self.begin(node, None);
    }

    /// Takes away all that a server that was killed had kept.
    pub fn lose(&mut self, node: usize) {
        let kept = self.nodes[node].dir.join("appendonlydir");
        std::fs::remove_dir_all(kept).expect("it keeps what it has there");
    }

    /// Stops the replica, and ends the replication to it: what the primary answers from now on, it alone has.
    pub fn cut_replication(&mut self) {
        let primary = self.primary();
        self.pause(1 - primary);
        self.cli(primary, &["CLIENT", "KILL", "TYPE", "replica"]);
    }

    /// Kills a sentinel.
    pub fn kill_sentinel(&mut self, number: usize) {
        self.sentinels[number].kill9();
    }

    /// Runs a command on a server, and returns what it says.
    pub fn cli(&self, node: usize, command: &[&str]) -> String {
        self.ask(PORTS[node], command)
    }

    fn ask(&self, port: u16, command: &[&str]) -> String {
        let mut cli = tied("timeout");
        cli.args(["2", "redis-cli", "-h", &self.address, "-p", &port.to_string()]).args(command);
        let output = self.netns.output(cli).expect("redis-cli is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn process(&mut self, node: usize) -> &mut Process {
        self.nodes[node].process.as_mut().expect("it runs")
    }

    fn begin(&mut self, node: usize, of: Option<usize>) {
        let dir = self.nodes[node].dir.clone();
        let mut command = tied("redis-server");
        command.args(["--port", &PORTS[node].to_string(), "--bind", &self.address, "--protected-mode", "no"]);
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.args(["--repl-diskless-sync-delay", "0", "--dir"]).arg(&dir);
        if let Some(primary) = of {
            command.args(["--replicaof", &format!("{} {}", self.address, PORTS[primary])]);
        }
        let mut process = Process::start("redis-server", &self.netns, command, &dir.join("redis.log"));
        process.wait_for("eady to accept connections");
        self.nodes[node].process = Some(process);
    }

    fn watch(&mut self, number: u16) {
        let (address, port) = (&self.address, SENTINEL_PORT + number);
        let dir: &Path = &self.dir.path().join(format!("sentinel-{number}"));
        std::fs::create_dir(dir).expect("a directory can be made");
        let file = dir.join("sentinel.conf");
        let text = format!(
            "port {port}\nbind {address}\nprotected-mode no\ndir {}\n\
             sentinel monitor {MASTER} {address} {} 1\nsentinel down-after-milliseconds {MASTER} 3000\n\
             sentinel failover-timeout {MASTER} 6000\nsentinel parallel-syncs {MASTER} 1\n",
            dir.display(),
            PORTS[0]
        );
        std::fs::write(&file, text).expect("a file can be written");
        let mut command = tied("redis-server");
        command.arg(&file).arg("--sentinel");
        let mut process = Process::start("redis-sentinel", &self.netns, command, &dir.join("redis.log"));
        process.wait_for("+monitor master");
        self.sentinels.push(process);
    }
}

/// The time within which the servers and the sentinels agree again after a failover.
pub const FAILOVER: Duration = Duration::from_secs(20);
