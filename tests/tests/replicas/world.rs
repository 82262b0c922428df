//! A world of replicas: one Redis, brokers on it, a load balancer, a fleet of agents, and a few cloud instances.

use std::path::PathBuf;
use std::thread;

use postern_core::Role;
use postern_proto::v1::Layers;
use postern_tests::clock::wait_until;
use postern_tests::redis::Redis;
use postern_tests::{Cli, Client, HIGH_QUOTAS, Net, ReplicaOptions, Replicas, STEP_TIMEOUT, a_policy};
use tempfile::TempDir;

use crate::agent_fleet::AgentFleet;
use crate::fake_clouds::FakeClouds;
use crate::load::Aims;

/// The size of a world.
pub(crate) struct Options {
    pub(crate) brokers: u16,
    pub(crate) hosts: usize,
    pub(crate) instances: usize,
    /// The replica that every agent speaks to; the load balancer, for none.
    pub(crate) agents_at: Option<usize>,
}

/// The parts of a storm. A part that is dropped first stands first.
pub(crate) struct ReplicaWorld {
    pub(crate) fleet: AgentFleet,
    pub(crate) admin: Client,
    pub(crate) replicas: Replicas,
    pub(crate) redis: Redis,
    pub(crate) fake_clouds: Option<FakeClouds>,
    pub(crate) aims: Aims,
    pub(crate) net: Net,
    pub(crate) dir: TempDir,
}

impl ReplicaWorld {
    /// Starts everything: every agent is in sync, and every instance is under lockdown.
    pub(crate) fn new(options: &Options) -> Self {
        let mut dir = TempDir::with_prefix("postern-").unwrap();
        // To look at the logs of every start of every broker.
        dir.disable_cleanup(std::env::var_os("POSTERN_KEEP").is_some());
        let net = Net::new();
        let redis = Redis::start(&net.hub);
        let fake_clouds =
            (options.instances > 0).then(|| FakeClouds::start(&net.hub, dir.path(), options.instances));
        let clouds = fake_clouds.as_ref().map(FakeClouds::configuration).unwrap_or_default();
        let sections = format!("{HIGH_QUOTAS}[audit]\ncheckpoint_every = \"1s\"\n{clouds}");
        let (count, named) = (options.brokers, true);
        let settings = ReplicaOptions { count, named, checked: false, sections: &sections };
        let replicas = Replicas::init(&net.hub, dir.path(), &redis, settings);
        replicas.serve();

        let admin = replicas.admin(&net.vm);
        let hosts: Vec<_> = (0..options.hosts).map(|number| format!("host:vm-{number:03}")).collect();
        let policy = a_policy().named("hosts").on("host:*").port("tcp/22");
        admin.put_policy(policy.wire()).unwrap();
        let clouds = fake_clouds.as_ref().map(FakeClouds::targets).unwrap_or_default();
        if !clouds.is_empty() {
            let policy = a_policy().named("clouds").on("aws:*").port("tcp/22").layers(Layers::Both);
            admin.put_policy(policy.wire()).unwrap();
        }
        let targets: Vec<_> = hosts.iter().chain(&clouds).cloned().collect();
        let agents_at = options.agents_at.map(|number| replicas.replica(number).url());
        let agents_at = agents_at.map_or_else(|| admin.clone(), |url| replicas.admin_at(&net.vm, url));
        let cli = Cli::new(&net.vm, replicas.balancer().url(), admin.identity());
        // Both take a while, and neither needs the other.
        let fleet = thread::scope(|scope| {
            scope.spawn(|| lock_down(&cli, &clouds));
            AgentFleet::gather(&net.vm, &agents_at, &targets, &dir.path().join("agents"))
        });
        wait_until("every agent to have a session", STEP_TIMEOUT, || {
            fleet.record().connected() == targets.len()
        });
        for target in &targets {
            admin.wait_in_sync(target);
        }
        let aims = Aims { hosts: hosts.into(), clouds: clouds.into() };
        Self { fleet, admin, replicas, redis, fake_clouds, aims, net, dir }
    }

    /// The load balancer's address.
    pub(crate) fn url(&self) -> &str {
        self.replicas.balancer().url()
    }

    /// Issues a client certificate, and returns the identity's directory.
    pub(crate) fn issue(&self, name: &str, role: Role) -> PathBuf {
        self.replicas.replica(0).broker().issue(name, role)
    }

    /// The administrator, over a new connection.
    pub(crate) fn fresh_admin(&self) -> Client {
        self.replicas.admin(&self.net.alice)
    }
}

fn lock_down(cli: &Cli, targets: &[String]) {
    if targets.is_empty() {
        return;
    }
    let mut command = vec!["lockdown", "--accept", "cut"];
    command.extend(targets.iter().map(String::as_str));
    let locked = cli.run(&command);
    assert!(locked.succeeded(), "{locked:?}");
}
