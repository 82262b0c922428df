//! The running double, as a test drives it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_testkit::{CrashPoint, FaultPlan};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::faults::{Call, Fault};
use crate::login::Logins;
use crate::oracle::{self, Verdict};
use crate::state::{OperationLinks, SimState};

/// A running cloud. A clone is the same cloud.
#[derive(Debug, Clone, Default)]
pub struct AzureSim {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    state: Mutex<SimState>,
    calls: Mutex<Vec<Call>>,
    pub(crate) faults: FaultPlan<Call>,
    logins: Mutex<Logins>,
}

/// A cloud that is served at an address. It ends when it is dropped.
#[derive(Debug)]
pub struct SimServer {
    address: SocketAddr,
    #[allow(dead_code, reason = "the cloud is served until this is dropped")]
    serving: JoinSet<()>,
}

impl SimServer {
    /// Returns the address of the cloud.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL of the cloud, without a path.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl AzureSim {
    /// Creates an empty cloud that knows no identity.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves the cloud at an address; port 0 stands for a free one.
    pub async fn listen(&self, address: &str) -> SimServer {
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let address = listener.local_addr().expect("a listener has an address");
        let mut serving = JoinSet::new();
        let served = self.clone();
        serving.spawn(async move {
            served.serve(listener).await.expect("connections can be accepted");
        });
        SimServer { address, serving }
    }

    /// Creates a resource or replaces it, without a call.
    pub fn put(&self, id: &str, resource: Value) {
        self.state().place(id, resource);
    }

    /// Returns the resource as a read answers it.
    pub fn get(&self, id: &str) -> Option<Value> {
        self.state().read(id)
    }

    /// Removes a resource, without a call.
    pub fn remove(&self, id: &str) {
        self.state().erase(id);
    }

    /// Changes a resource without a call, as an administrator in the portal does.
    pub fn edit(&self, id: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        let mut resource = state.read(id).unwrap_or_else(|| panic!("{id} does not exist"));
        change(&mut resource);
        state.place(id, resource);
    }

    /// Returns the names of a group's own rules, by priority.
    pub fn rules(&self, group: &str) -> Vec<String> {
        let rules = self.state().rules(group);
        rules.iter().map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Sets the time that an operation on a kind of resource takes, for instance `Microsoft.Network/azureFirewalls`. The default
    /// is none.
    pub fn settle(&self, kind: &str, span: Duration) {
        self.state().settle.insert(kind.to_ascii_lowercase(), span);
    }

    /// Sets the way in which answers link to their operations, and the seconds of their `Retry-After`. The default is
    /// `Azure-AsyncOperation`, and none.
    pub fn link_operations(&self, links: OperationLinks, retry_after: u64) {
        let mut state = self.state();
        (state.links, state.retry_after) = (links, retry_after);
    }

    /// Sets the state of a group, and of those of its rules whose names begin like this (all, for an empty text), as a read
    /// answers it: a rule that is `Failed` is not in force, one that is `Updating` is in force as it was before.
    pub fn set_state(&self, group: &str, begins: &str, state: &str) {
        self.state().set_state(group, |name| name.starts_with(begins), state);
    }

    /// Accepts writes whatever etag they name, or ends that: Azure does not document a check for every kind of resource.
    pub fn take_any_etag(&self, takes: bool) {
        self.state().takes_any_etag = takes;
    }

    /// Sets the number of resources on a page of a list. The default is 100.
    pub fn page_size(&self, items: usize) {
        self.state().page_size = items;
    }

    /// Adds an application that proves itself by a secret.
    pub fn client(&self, tenant: &str, client_id: &str, secret: &str) {
        self.logins().secret(tenant, client_id, secret);
    }

    /// Adds an application that proves itself by a certificate in DER, whose RSA key signs its assertions.
    pub fn client_certificate(&self, tenant: &str, client_id: &str, certificate: &[u8]) {
        self.logins().certificate(tenant, client_id, certificate);
    }

    /// Adds an application that proves itself by the token of another issuer.
    pub fn federated(&self, tenant: &str, client_id: &str, token: &str) {
        self.logins().federated(tenant, client_id, token);
    }

    /// Adds an identity of the machine that asks, by its client id if the machine has several.
    pub fn managed_identity(&self, client_id: Option<&str>) {
        self.logins().managed(client_id);
    }

    /// Sets the lifetime of tokens from now on. The default is an hour.
    pub fn token_lifetime(&self, span: Duration) {
        self.logins().lifetime = span;
    }

    /// Revokes every token of an application.
    pub fn forget_tokens(&self) {
        self.logins().forget();
    }

    /// Adds a caller's own token: its permissions, as Microsoft.Authorization/permissions answers them, and the resources that it
    /// may read.
    pub fn caller(&self, token: &str, permissions: Value, reads: &[&str]) {
        self.logins().caller(token, permissions, reads);
    }

    /// Sets the actions that applications may take, with `*`; `None` allows all.
    pub fn permissions(&self, actions: Option<Vec<String>>) {
        self.logins().actions = actions;
    }

    /// Returns every action that was taken since the calls were last forgotten.
    pub fn actions(&self) -> Vec<String> {
        self.logins().used.iter().cloned().collect()
    }

    /// Makes the next calls of a method (any, for `*`) fail whose path has this part. Paths compare without case.
    pub fn fail(&self, method: &str, part: &str, times: usize, fault: Fault) {
        self.inner.faults.fail((method.to_owned(), part.to_ascii_lowercase()), times, fault);
    }

    /// Ends the ordered faults.
    pub fn forgive(&self) {
        self.inner.faults.forgive();
    }

    /// Cuts every connection without an answer, or ends that.
    pub fn outage(&self, down: bool) {
        self.inner.faults.outage(down);
    }

    /// Halts the world at a change: no call is answered from there on until this is `None`. Calls that were held back are never
    /// answered.
    pub fn halt_at(&self, point: Option<CrashPoint>) {
        self.inner.faults.halt_at(point);
    }

    /// Reports whether the halting point was reached.
    pub fn has_halted(&self) -> bool {
        self.inner.faults.has_halted()
    }

    /// Returns every call since they were last forgotten.
    pub fn calls(&self) -> Vec<Call> {
        self.recorded().clone()
    }

    /// Forgets the calls and the actions.
    pub fn forget_calls(&self) {
        self.recorded().clear();
        self.logins().used.clear();
    }

    /// Decides whether a connection to a network interface gets in, by the rules in force.
    pub fn admits(&self, from: IpAddr, interface: &str, protocol: &str, port: u16) -> Verdict {
        oracle::admits(&self.state(), from, interface, protocol, port)
    }

    /// Returns the address and port that an Azure Firewall translates a connection to one of its public addresses to.
    pub fn through_firewall(
        &self,
        from: IpAddr,
        firewall: &str,
        public: IpAddr,
        protocol: &str,
        port: u16,
    ) -> Option<(IpAddr, u16)> {
        oracle::through_firewall(&self.state(), from, firewall, public, protocol, port)
    }

    /// The state, with every operation ended that is due.
    pub(crate) fn state(&self) -> MutexGuard<'_, SimState> {
        let mut state = self.inner.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.advance();
        state
    }

    /// The calls since they were last forgotten.
    pub(crate) fn recorded(&self) -> MutexGuard<'_, Vec<Call>> {
        self.inner.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn logins(&self) -> MutexGuard<'_, Logins> {
        self.inner.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
