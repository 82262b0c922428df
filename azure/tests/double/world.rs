//! A subscription with a few machines, and the provider that drives it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use postern_azure::{
    Application, Azure, AzureSettings, Credential, Environment, FirewallSettings, Flush, Priorities, Rates,
};
use postern_azure_sim::{AzureSim, Call, Lab, SimServer, Vm};
use postern_core::plan::LayerWindow;
use postern_core::{GrantId, TargetId};
use postern_provider::kit::Rate;
use postern_provider::{ConcernKind, Consent, LockdownOrder, LockdownReport, Observation, Provider as _};
use postern_testkit::clock::until;
use postern_testkit::serve_each;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const SUBSCRIPTION: &str = "00000000-0000-0000-0000-00000000000a";

/// A subscription with two machines: `vm-1` behind the groups of its subnet and its interface, `vm-2` behind the subnet's
/// alone. Rules let everyone in on port 22 of both.
pub(crate) struct DoubleWorld {
    pub(crate) sim: AzureSim,
    pub(crate) lab: Lab,
    pub(crate) azure: Arc<Azure>,
    pub(crate) settings: AzureSettings,
    pub(crate) vms: Vec<Vm>,
    pub(crate) server: SimServer,
    pub(crate) dir: TempDir,
}

impl DoubleWorld {
    pub(crate) async fn new() -> Self {
        let sim = AzureSim::new();
        let lab = Lab::new(&sim, SUBSCRIPTION, "Web");
        lab.nsg("nsg-subnet");
        lab.nsg("nsg-nic");
        lab.vnet("net", &["10.0.0.0/16", "fd00::/48"]);
        let subnet = lab.subnet("net", "web", "10.0.0.0/24", Some("nsg-subnet"), None);
        lab.rule("nsg-subnet", "ssh", 1000, "Allow", "*", "*", "22");
        lab.rule("nsg-subnet", "https", 1010, "Allow", "Internet", "*", "443");
        lab.rule("nsg-nic", "all", 300, "Allow", "*", "*", "*");
        let vms = vec![
            lab.vm("Vm-1", &subnet, &["10.0.0.4", "fd00::4"], Some("nsg-nic")),
            lab.vm("vm-2", &subnet, &["10.0.0.5", "fd00::5"], None),
        ];
        Self::around(sim, lab, vms).await
    }

    pub(crate) async fn around(sim: AzureSim, lab: Lab, vms: Vec<Vm>) -> Self {
        sim.client("tenant", "broker", "secret");
        let server = sim.listen("127.0.0.1:0").await;
        let dir = TempDir::with_prefix("postern-").unwrap();
        let secret_file = dir.path().join("secret");
        postern_runtime::files::replace(&secret_file, b"secret\n", 0o600).unwrap();
        let origin = server.origin();
        // A test makes the calls of a day in a second.
        let fast = Rate { at_once: 10_000, per_second: 10_000 };
        let settings = AzureSettings {
            deployment: "postern.example".into(),
            environment: Environment {
                resource_manager: origin.clone(),
                authority: origin.clone(),
                metadata: origin,
            },
            credential: Credential::ClientSecret { application: application(), secret_file },
            subscriptions: [SUBSCRIPTION.to_owned()].into(),
            priorities: Priorities::default(),
            flush_connection: Flush::Refuse,
            firewall: FirewallSettings::default(),
            authorize_callers: false,
            rates: Rates { reads: fast, writes: fast, network_writes: fast },
        };
        let azure = Arc::new(Azure::connect(settings.clone()).unwrap());
        Self { sim, lab, azure, settings, vms, server, dir }
    }

    /// Another provider on the same cloud, which knows nothing yet.
    pub(crate) fn another(&self) -> Arc<Azure> {
        Arc::new(Azure::connect(self.settings.clone()).unwrap())
    }

    /// Replaces the provider by one that knows nothing yet.
    pub(crate) fn restart(&mut self) {
        self.azure = self.another();
    }

    pub(crate) fn target(&self, number: usize) -> TargetId {
        format!("azure:{}", self.vms[number].id).parse().unwrap()
    }

    pub(crate) fn order(&self, number: usize, consent: Consent) -> LockdownOrder {
        LockdownOrder {
            target: self.target(number),
            ports: ["tcp/22", "tcp/3389"].map(|port| port.parse().unwrap()).into(),
            consent,
            together: [].into(),
        }
    }

    /// Locks a machine down, with Postern's rules first.
    pub(crate) async fn lock(&self, number: usize) -> LockdownReport {
        self.azure.lockdown(&self.order(number, posterns_first())).await.unwrap()
    }

    pub(crate) fn window(&self, number: usize, grant: u128, port: &str, source: &str) -> LayerWindow {
        LayerWindow {
            target: self.target(number),
            grant: GrantId::from_parts(Timestamp::UNIX_EPOCH, grant),
            port: port.parse().unwrap(),
            source: source.parse().unwrap(),
            not_after: "2030-01-01T00:00:00.5Z".parse().unwrap(),
        }
    }

    pub(crate) async fn open(&self, window: &LayerWindow) {
        self.azure.open(&window.target, &[window.clone()].into()).await.unwrap();
    }

    pub(crate) async fn close(&self, window: &LayerWindow) {
        self.azure.close(&window.target, &[window.clone()].into()).await.unwrap();
    }

    pub(crate) async fn observe(&self, number: usize) -> Observation {
        self.azure.observe(&self.target(number)).await.unwrap()
    }

    /// Waits until a change of such a path has arrived, since the calls were last forgotten.
    pub(crate) async fn written(&self, path: &str) {
        // Resource ids are written in any case.
        let path = path.to_ascii_lowercase();
        let is_it = |call: &Call| call.is_change() && call.path.to_ascii_lowercase().contains(&path);
        until("the change to arrive", || self.sim.calls().iter().any(is_it)).await;
    }

    /// Reports whether a connection gets in.
    pub(crate) fn admits(&self, from: &str, number: usize, port: u16) -> bool {
        let from: IpAddr = from.parse().unwrap();
        self.sim.admits(from, &self.vms[number].interface, "Tcp", port).admitted
    }

    /// Returns every rule of a group, without the fields that Azure changes with each write.
    pub(crate) fn group_rules(&self, nsg: &str) -> Vec<serde_json::Value> {
        let group = self.sim.get(&self.lab.nsg_id(nsg)).unwrap();
        let mut rules = group["properties"]["securityRules"].as_array().cloned().unwrap_or_default();
        for rule in &mut rules {
            rule.as_object_mut().unwrap().remove("etag");
        }
        rules.sort_by_key(|rule| rule["properties"]["priority"].as_i64());
        rules
    }

    /// Returns the names of Postern's rules in a group.
    pub(crate) fn managed_rules(&self, nsg: &str) -> Vec<String> {
        let rules = self.sim.rules(&self.lab.nsg_id(nsg));
        rules.into_iter().filter(|name| name.starts_with("postern-")).collect()
    }
}

pub(crate) fn application() -> Application {
    Application { tenant: "tenant".into(), client_id: "broker".into() }
}

/// The consent that Postern's rules come first.
pub(crate) fn posterns_first() -> Consent {
    Consent([ConcernKind::Precedence].into())
}

/// Proxies the double under another host name, so that every link in its answers leads there.
pub(crate) async fn misleading(listener: TcpListener, to: SocketAddr, elsewhere: SocketAddr) {
    let serving = serve_each(listener, |mut client| async move {
        let mut server = TcpStream::connect(to).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = client.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let lines = head.trim_end().split("\r\n");
        let kept = lines.filter(|line| !line.to_ascii_lowercase().starts_with("host:"));
        let head = kept.collect::<Vec<_>>().join("\r\n");
        // One request for each connection: the next one is renamed as well.
        let head = format!("{head}\r\nHost: {elsewhere}\r\nConnection: close\r\n\r\n");
        server.write_all(head.as_bytes()).await.unwrap();
        tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
    });
    match serving.await {
        Err(error) => panic!("connections can be accepted: {error}"),
    }
}
