//! The world of a host target: a network with a broker, an enrolled agent, an administrator and a requester.

use std::net::Ipv4Addr;
use std::path::Path;

use postern_core::Role;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::broker::Broker;
use crate::builders::{PolicyBuilder, RequestBuilder, a_policy, a_request};
use crate::client::Client;
use crate::net::{Host, Net};

/// The target that the VM of a world is.
pub const VM: &str = "host:vm-1";
/// The protected TCP port of the usual policy; a listener is on it.
pub const TCP: u16 = 22;
/// The protected UDP port of the usual policy; a listener is on it.
pub const UDP: u16 = 161;
/// A TCP port with a listener that no policy protects.
pub const FREE: u16 = 80;

/// The world of a scenario. What is dropped first stands first.
#[derive(Debug)]
pub struct HostWorld {
    /// The administrator, on the broker's host.
    pub admin: Client,
    /// A requester, on the host alice.
    pub alice: Client,
    /// The VM's agent.
    pub agent: Agent,
    /// The broker.
    pub broker: Broker,
    /// The hosts.
    pub net: Net,
    dir: TempDir,
}

impl HostWorld {
    /// A world under the usual policy, its agent in sync.
    #[allow(clippy::new_without_default, reason = "it starts programs, which no default should")]
    pub fn new() -> Self {
        Self::under(usual_policy())
    }

    /// A world under the usual policy, its agent in sync, with a table that other programs can change.
    pub fn with_shared_table() -> Self {
        let mut world = Self::without_agent(usual_policy());
        world.agent.share_table();
        world.agent.join(VM, &world.admin);
        world
    }

    /// A world under a policy, its agent in sync.
    pub fn under(policy: PolicyBuilder) -> Self {
        let mut world = Self::without_agent(policy);
        world.agent.join(VM, &world.admin);
        world
    }

    /// A world under the usual policy, its agent in sync, whose broker has these lines in its configuration besides.
    pub fn configured(more: &str) -> Self {
        let mut world = Self::without_agent_configured(usual_policy(), more);
        world.agent.join(VM, &world.admin);
        world
    }

    /// A world whose agent is neither enrolled nor running.
    pub fn without_agent(policy: PolicyBuilder) -> Self {
        Self::without_agent_configured(policy, "")
    }

    /// The same, with these lines in the broker's configuration.
    pub fn without_agent_configured(policy: PolicyBuilder, more: &str) -> Self {
        let dir = TempDir::with_prefix("postern-").expect("a temporary directory can be made");
        let net = Net::new();
        net.vm.listen_tcp(TCP);
        net.vm.listen_tcp(FREE);
        net.vm.listen_udp(UDP);
        let mut broker = Broker::init_with(&net.hub, &dir.path().join("broker"), more);
        broker.serve();
        let agent = Agent::new(&net.vm, broker.url(), &dir.path().join("agent"), &[]);
        let admin = broker.admin(&net.hub);
        let alice = broker.client(&net.alice, "alice", Role::Requester);
        admin.put_policy(policy.wire()).expect("the policy is good");
        Self { admin, alice, agent, broker, net, dir }
    }

    /// Enrols the agent.
    pub fn enroll_agent(&self) {
        self.agent.enroll(&self.admin.join_token(VM, None).expect("a token can be made"));
    }

    /// A directory for a scenario's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Quotas that no load of a test or a bench meets.
pub const HIGH_QUOTAS: &str = "[quotas]\ngrants_per_principal = 1000000\nwindows_per_principal = 100000000\nwindows_per_target = 100000000\n\
                               requests_per_minute = 1000000\n";

/// The VM with both its protected ports, any source, an hour at most.
pub fn usual_policy() -> PolicyBuilder {
    a_policy().on(VM).port("tcp/22").port("udp/161")
}

/// A request for the VM's protected TCP port, from both addresses of a host.
pub fn ask_for(host: &Host) -> RequestBuilder {
    a_request().on(VM).port("tcp/22").from(host.v4()).from(host.v6())
}

/// Returns addresses for clients to take besides their own: 198.51.100.1 and on, up to 254 of them.
pub fn further_addresses(count: u8) -> impl Iterator<Item = Ipv4Addr> {
    (1..=count).map(|number| Ipv4Addr::new(198, 51, 100, number))
}
