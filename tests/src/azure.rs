//! A world with Azure: a broker whose target is a virtual machine of the double of Azure Resource Manager.

use std::net::IpAddr;
use std::path::Path;

use postern_azure_sim::{AzureSim, Lab, SimServer, Vm};
use postern_core::Role;
use postern_proto::v1;
use tempfile::TempDir;

use crate::agent::Agent;
use crate::broker::Broker;
use crate::builders::{RequestBuilder, a_policy, a_request};
use crate::client::Client;
use crate::net::{Host, Net};
use crate::world::TCP;

/// The double's address, on the broker's host.
const DOUBLE: &str = "127.0.0.1:5002";
/// The subscription of every world.
pub const SUBSCRIPTION: &str = "00000000-0000-0000-0000-00000000000a";
/// The public address of the firewall, where there is one.
pub const FIREWALL: &str = "203.0.113.1";

/// A double of Azure Resource Manager on a host.
#[derive(Debug)]
pub struct Azure {
    /// The double.
    pub arm: AzureSim,
    /// A resource group in it.
    pub lab: Lab,
    #[allow(dead_code, reason = "the double is served until this is dropped")]
    server: SimServer,
}

impl Azure {
    /// Starts an empty one, in which the broker is known.
    pub fn start(host: &Host) -> Self {
        let arm = AzureSim::new();
        arm.client("tenant", "broker", "a secret");
        let served = arm.clone();
        let server = host.netns().run(async move { served.listen(DOUBLE).await });
        let lab = Lab::new(&arm, SUBSCRIPTION, "Web");
        Self { arm, lab, server }
    }

    /// The lines of a broker's configuration that make it use this double.
    pub fn configuration(&self, dir: &Path) -> String {
        let secret = dir.join("azure.secret");
        postern_runtime::files::replace(&secret, b"a secret\n", 0o600).expect("a file can be written");
        format!(
            "[azure]\nresource_manager = \"http://{DOUBLE}\"\nauthority = \"http://{DOUBLE}\"\n\
             subscriptions = [\"{SUBSCRIPTION}\"]\n[azure.credential]\nkind = \"client_secret\"\ntenant = \"tenant\"\n\
             client_id = \"broker\"\nsecret_file = \"{}\"\n",
            secret.display()
        )
    }
}

/// The world of a scenario with Azure. What is dropped first stands first.
#[derive(Debug)]
pub struct AzureWorld {
    /// The administrator, on the broker's host.
    pub admin: Client,
    /// A requester, on the host alice.
    pub alice: Client,
    /// The agent of the virtual machine, on the host vm; it runs where the host layer is required.
    pub agent: Agent,
    /// The broker.
    pub broker: Broker,
    /// The virtual machine, whose address in Azure is that of the host vm.
    pub vm: Vm,
    /// Azure, on the broker's host.
    pub azure: Azure,
    /// The hosts.
    pub net: Net,
    dir: TempDir,
}

/// The options of a world.
#[derive(Debug, Clone, Copy)]
pub struct AzureOptions<'a> {
    /// The layers that the policy requires.
    pub layers: v1::Layers,
    /// True if the machine is behind an Azure Firewall. The host mallory then stands for an address of its subnet.
    pub firewall: bool,
    /// True if the machine is under lockdown.
    pub locked: bool,
    /// The further lines of the section `[azure]`.
    pub more: &'a str,
    /// The further sections of the broker's configuration.
    pub sections: &'a str,
}

impl AzureWorld {
    /// Builds a world of one machine under lockdown behind the groups of its subnet and its interface, and a policy that
    /// requires these layers. A sweep happens every two seconds.
    pub fn new(layers: v1::Layers) -> Self {
        Self::with(AzureOptions { layers, firewall: false, locked: true, more: "", sections: "" })
    }

    /// A world of one's own.
    pub fn with(options: AzureOptions<'_>) -> Self {
        let dir = TempDir::with_prefix("postern-").expect("a temporary directory can be made");
        let net = Net::new();
        let azure = Azure::start(&net.hub);
        let vm = machine(&azure.lab, &net, options.firewall);
        let target = format!("azure:{}", vm.id);

        net.vm.listen_tcp(TCP);
        let section =
            azure.configuration(dir.path()).replacen("[azure]\n", &format!("[azure]\n{}", options.more), 1);
        let more = format!("{}[cloud]\nsweep_every = \"2s\"\n{section}", options.sections);
        let mut broker = Broker::init_with(&net.hub, &dir.path().join("broker"), &more);
        broker.serve();
        let admin = broker.admin(&net.hub);
        let alice = broker.client(&net.alice, "alice", Role::Requester);
        let policy = a_policy().on(&target).port("tcp/22").layers(options.layers);
        admin.put_policy(policy.wire()).expect("the policy is good");
        let mut agent = Agent::new(&net.vm, broker.url(), &dir.path().join("agent"), &[]);
        if options.layers == v1::Layers::Both {
            agent.join(&target, &admin);
        }
        let world = Self { admin, alice, agent, broker, vm, azure, net, dir };
        if options.locked {
            let locked = world.admin.cli().run(&["lockdown", &world.target(), "--accept", "precedence"]);
            assert!(locked.succeeded(), "{locked:?}");
        }
        world
    }

    /// The machine as a target.
    pub fn target(&self) -> String {
        format!("azure:{}", self.vm.id)
    }

    /// A request for SSH on the machine, from alice's host.
    pub fn ask(&self) -> RequestBuilder {
        a_request().on(&self.target()).port("tcp/22").from(self.net.alice.v4())
    }

    /// Reports whether the groups let a connection in to port 22 of the machine.
    pub fn admits(&self, from: IpAddr) -> bool {
        self.azure.arm.admits(from, &self.vm.interface, "Tcp", TCP).admitted
    }

    /// Reports whether the groups let alice in.
    pub fn is_open(&self) -> bool {
        self.admits(self.net.alice.v4())
    }

    /// The names of Postern's rules in a group that begin so.
    pub fn rules(&self, group: &str, begin: &str) -> Vec<String> {
        let rules = self.azure.arm.rules(&self.azure.lab.nsg_id(group));
        rules.into_iter().filter(|name| name.starts_with(begin)).collect()
    }

    /// A directory for a scenario's own files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A machine behind two groups that let everyone in on port 22, perhaps behind a firewall.
fn machine(lab: &Lab, net: &Net, firewall: bool) -> Vm {
    lab.vnet("net", &["192.0.2.0/24"]);
    for (group, rule) in [("nsg-subnet", "ssh"), ("nsg-nic", "all")] {
        lab.nsg(group);
        lab.rule(group, rule, 1000, "Allow", "*", "*", "22");
    }
    let routes = firewall.then(|| {
        // mallory's address, and not alice's.
        let subnet = lab.subnet("net", "AzureFirewallSubnet", "192.0.2.28/30", None, None);
        lab.firewall("fw", "192.0.2.29", FIREWALL, &subnet);
        lab.route_table("out", "192.0.2.29");
        "out"
    });
    let subnet = lab.subnet("net", "web", "192.0.2.0/28", Some("nsg-subnet"), routes);
    lab.vm("vm-1", &subnet, &[&net.vm.v4().to_string()], Some("nsg-nic"))
}
