//! A world with a cloud: a broker whose targets are EC2 instances.

use std::path::Path;

use postern_core::Role;
use postern_proto::v1;
use tempfile::TempDir;

use super::{ACCOUNT, Cloud, Ec2, REGION, RuleSpec};
use crate::agent::Agent;
use crate::balancer::get;
use crate::broker::Broker;
use crate::builders::{RequestBuilder, a_policy, a_request};
use crate::client::Client;
use crate::net::Net;
use crate::world::TCP;

/// The address of the broker's metrics, on its host.
const METRICS: &str = "127.0.0.1:9464";

/// The world of a scenario with EC2. What is dropped first stands first.
#[derive(Debug)]
pub struct AwsWorld {
    /// The administrator, on the broker's host.
    pub admin: Client,
    /// A requester, on the host alice.
    pub alice: Client,
    /// The agent of the instance, on the host vm; it runs where the host layer is required.
    pub agent: Agent,
    /// The broker.
    pub broker: Broker,
    /// The instance's group, which lets everyone in on port 22.
    pub group: String,
    /// The instance.
    pub instance: String,
    /// The account and Region of the world.
    pub cloud: Cloud,
    /// EC2, on the broker's host.
    pub ec2: Ec2,
    /// The hosts.
    pub net: Net,
    dir: TempDir,
}

impl AwsWorld {
    /// Builds a world of one instance under lockdown, and a policy that requires these layers. A sweep happens every two
    /// seconds.
    pub fn new(layers: v1::Layers) -> Self {
        let world = Self::unlocked(layers);
        let locked = world.admin.cli().run(&["lockdown", &world.target(), "--accept", "cut"]);
        assert!(locked.succeeded(), "{locked:?}");
        world
    }

    /// The same, before the lockdown.
    pub fn unlocked(layers: v1::Layers) -> Self {
        let dir = TempDir::with_prefix("postern-").expect("a temporary directory can be made");
        let net = Net::new();
        let ec2 = Ec2::start(&net.hub, dir.path());
        let cloud = ec2.cloud(ACCOUNT, REGION);
        let group = cloud.group("web", &[RuleSpec::tcp(22, 22, "0.0.0.0/0").described("ssh")]);
        let instance = cloud.instance("web", &[&[&group]]);
        let target = cloud.target(&instance);

        net.vm.listen_tcp(TCP);
        let more = format!(
            "metrics_listen = \"{METRICS}\"\n[cloud]\nsweep_every = \"2s\"\n{}",
            ec2.configuration(&[(ACCOUNT, &[REGION])])
        );
        let mut broker = Broker::init_with(&net.hub, &dir.path().join("broker"), &more);
        broker.serve();
        let admin = broker.admin(&net.hub);
        let alice = broker.client(&net.alice, "alice", Role::Requester);
        let policy = a_policy().on(&target).port("tcp/22").layers(layers);
        admin.put_policy(policy.wire()).expect("the policy is good");
        let mut agent = Agent::new(&net.vm, broker.url(), &dir.path().join("agent"), &[]);
        if layers == v1::Layers::Both {
            agent.join(&target, &admin);
        }
        Self { admin, alice, agent, broker, group, instance, cloud, ec2, net, dir }
    }

    /// The instance as a target.
    pub fn target(&self) -> String {
        self.cloud.target(&self.instance)
    }

    /// A request for SSH on the instance, from alice's host.
    pub fn ask(&self) -> RequestBuilder {
        a_request().on(&self.target()).port("tcp/22").from(self.net.alice.v4())
    }

    /// The sources that EC2 lets in on port 22 of the instance.
    pub fn open_sources(&self) -> Vec<String> {
        self.cloud.windows(&self.instance).into_iter().map(|(_, source)| source).collect()
    }

    /// The broker's metrics, in the format of Prometheus.
    pub fn metrics(&self) -> String {
        let address = METRICS.parse().expect("an address");
        self.net.hub.netns().run(get(address, "/metrics")).expect("metrics are served")
    }

    /// A directory for a scenario's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}
