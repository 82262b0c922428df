//! A VM whose host layer a test sets, and builders for the policy that it should hold.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use postern_agent::clock;
use postern_agent::firewall::policy::{HeldWindow, HostPolicy};
use postern_agent::firewall::{Enforcer, FirewallError, Ownership, remove_table};
use postern_agent::host_reconciler::HostLayer as _;
use postern_core::{Mode, ProtectedPort};
use postern_tests::{Host, Net};

pub(crate) const SSH: &str = "tcp/22";
pub(crate) const SNMP: &str = "udp/161";

/// Makes a network whose VM listens on both protected ports.
pub(crate) fn a_net() -> Net {
    let net = Net::new();
    net.vm.listen_tcp(22);
    net.vm.listen_udp(161);
    net
}

/// The host layer of a VM.
#[derive(Clone)]
pub(crate) struct Layer {
    enforcer: Arc<Mutex<Enforcer>>,
}

impl Layer {
    /// Makes a layer whose table has no owner, so that other programs can change it.
    pub(crate) fn new() -> Self {
        Self::with(Ownership::Shared)
    }

    /// Makes a layer that owns its table.
    pub(crate) fn owning() -> Self {
        Self::with(Ownership::Owned { stored: None })
    }

    fn with(ownership: Ownership) -> Self {
        Self { enforcer: Arc::new(Mutex::new(Enforcer::new(ownership).unwrap())) }
    }

    /// Makes the VM's kernel hold the policy.
    pub(crate) fn ensure(&self, vm: &Host, policy: &HostPolicy) -> Result<(), FirewallError> {
        let (layer, policy) = (self.clone(), policy.clone());
        vm.netns().run(async move { layer.enforcer.lock().unwrap().ensure(&policy, clock::boottime()) })
    }

    pub(crate) fn is_loaded(&self, vm: &Host) -> bool {
        let layer = self.clone();
        vm.netns().run(async move { layer.enforcer.lock().unwrap().is_loaded().unwrap() })
    }

    pub(crate) fn damage(&self) -> Option<String> {
        self.enforcer.lock().unwrap().damage()
    }
}

/// Returns the policy that protects both ports and opens nothing.
pub(crate) fn closed() -> HostPolicy {
    let ports: [ProtectedPort; 2] = [SSH, SNMP].map(|port| port.parse().unwrap());
    HostPolicy { mode: Mode::Enforce, ports: ports.into(), windows: Vec::new(), trial_until: None }
}

/// A builder on [`closed`].
pub(crate) trait Opening {
    /// Adds a window that lasts this long from now on.
    #[must_use]
    fn open(self, port: &str, source: impl ToString, lasts: Duration) -> Self;
}

impl Opening for HostPolicy {
    fn open(mut self, port: &str, source: impl ToString, lasts: Duration) -> Self {
        self.windows.push(HeldWindow {
            grant: "01arz3ndektsv4rrffq69g5fav".parse().unwrap(),
            port: port.parse().unwrap(),
            source: source.to_string().parse().unwrap(),
            deadline: clock::boottime().plus(lasts),
        });
        self
    }
}

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Returns the listing of Postern's table by `nft`.
pub(crate) fn listed(vm: &Host) -> String {
    vm.must("nft", &["list", "table", "inet", "postern"])
}

pub(crate) fn remove(vm: &Host) {
    vm.netns().run(async { remove_table() }).unwrap();
}
