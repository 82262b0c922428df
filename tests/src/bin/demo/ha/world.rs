//! The world of the story of several brokers: three of them behind a load balancer, a group of Redis behind a sentinel, a
//! VM with a real agent, and alice.

use std::time::Duration;

use postern_core::Role;
use postern_tests::redis::Group;
use postern_tests::{
    Agent, Cli, Client, Net, Outcome, Reach, ReplicaOptions, Replicas, TCP, Timeline, UDP, VM, Watch,
    usual_policy,
};
use serde_json::Value;
use tempfile::TempDir;

/// The pause between two probes.
const STEP: Duration = Duration::from_millis(50);
/// The number of sentinels: a single one has a quorum of one, so that several failovers may follow each other, there and
/// back.
const SENTINELS: u16 = 1;
/// The number of Redis replicas that must have a change before it is answered.
const CONFIRMED: usize = 1;

/// The parts of the story. A part that is dropped first stands first.
pub(super) struct HaWorld {
    pub(super) admin: Client,
    pub(super) agent: Agent,
    pub(super) replicas: Replicas,
    pub(super) group: Group,
    pub(super) net: Net,
    /// The grants that were acknowledged to alice.
    pub(super) acknowledged: Vec<String>,
    alice: Cli,
    caller: Client,
    dir: TempDir,
}

impl HaWorld {
    /// Starts all brokers; the VM has no agent yet.
    pub(super) fn new() -> Self {
        let dir = TempDir::with_prefix("postern-").expect("a temporary directory can be made");
        let net = Net::new();
        net.vm.listen_tcp(TCP);
        net.vm.listen_udp(UDP);
        let group = Group::start(&net.hub, SENTINELS);
        let options = ReplicaOptions { count: 3, named: true, checked: true, sections: "" };
        let replicas = Replicas::init_on_group(&net.hub, dir.path(), (&group, CONFIRMED), options);
        replicas.serve();
        let admin = replicas.admin(&net.mallory);
        let caller = replicas.client(&net.alice, "alice", Role::Requester);
        let alice = Cli::new(&net.alice, replicas.balancer().url(), caller.identity());
        let agent = Agent::new(&net.vm, replicas.balancer().url(), &dir.path().join("agent"), &[]);
        Self { admin, agent, replicas, group, net, acknowledged: Vec::new(), alice, caller, dir }
    }

    /// The VM comes under protection, by whichever broker the load balancer gives to its agent.
    pub(super) fn protect(&mut self) {
        self.admin.put_policy(usual_policy().wire()).expect("the policy is good");
        self.agent.join(VM, &self.admin);
    }

    /// Asks as alice would, and returns the grant, which is active.
    pub(super) fn request(&mut self, port: &str, duration: &str) -> Value {
        let outcome = self.ask(port, duration);
        assert_eq!(outcome.code, 0, "{}{}", outcome.out, outcome.err);
        let grant = outcome.values().swap_remove(0)["grant"].take();
        assert_eq!(grant["state"], "active", "{grant}");
        self.acknowledged.push(grant["id"].as_str().expect("an id is text").to_owned());
        grant
    }

    fn ask(&self, port: &str, duration: &str) -> Outcome {
        let source = self.net.alice.v4().to_string();
        let what = ["--port", port, "--source", &source, "--for", duration, "--reason", "fix the disk"];
        self.alice.run(&[&["--output", "json", "request", VM], &what[..]].concat())
    }

    /// A call as alice, through the load balancer, that does not try again by itself.
    pub(super) fn caller(&self) -> Client {
        Client::new(&self.net.alice, self.replicas.balancer().url(), self.caller.identity())
    }

    /// The same, past the load balancer.
    pub(super) fn caller_at(&self, broker: usize) -> Client {
        Client::new(&self.net.alice, self.replicas.replica(broker).url(), self.caller.identity())
    }

    /// Tries a new connection to the VM's port 22 every 50 ms.
    pub(super) fn watch(&self) -> Watch {
        self.net.alice.watch_from(self.net.alice.v4(), self.net.vm.tcp(TCP), STEP)
    }

    /// Returns the number of sessions of the VM's agent at each broker so far.
    pub(super) fn visits(&self) -> Vec<usize> {
        let count = |logs: Vec<String>| logs.iter().map(|log| log.matches("agent connected").count()).sum();
        self.replicas.all().iter().map(|replica| count(replica.broker().logs())).collect()
    }

    /// Returns the broker that the VM's agent has come to since.
    pub(super) fn came_to(&self, before: &[usize]) -> Option<usize> {
        self.visits().iter().zip(before).position(|(now, before)| now > before)
    }

    /// A directory that goes when the world does.
    pub(super) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }
}

/// Asserts that every new connection was accepted, and says how many there were.
pub(super) fn all_open(timeline: &Timeline) -> String {
    let samples = timeline.samples();
    let shut = samples.iter().filter(|sample| sample.reach != Reach::Open).count();
    assert_eq!(shut, 0, "{shut} of {} new connections were not accepted", samples.len());
    described(timeline)
}

/// Describes how many new connections were accepted, and the longest time between two.
pub(super) fn described(timeline: &Timeline) -> String {
    let open: Vec<_> = timeline.samples().iter().filter(|sample| sample.reach == Reach::Open).collect();
    let gaps = open.windows(2).map(|pair| pair[1].at.duration_since(pair[0].at).as_millis());
    let longest = gaps.max().expect("there was more than one");
    format!(
        "{} new connections, one every 50 ms: all accepted, the longest gap between two is {longest} ms",
        open.len()
    )
}
