//! A cloud that is served on the loopback, and a client that sends what a test gives it and hides nothing of the answer.

use std::net::IpAddr;

use postern_azure_sim::{AzureSim, Lab, SimServer, Vm};
use reqwest::header::HeaderMap;
use reqwest::{Client, Method};
use serde_json::{Value, json};

pub(crate) const SUBSCRIPTION: &str = "00000000-0000-0000-0000-00000000000a";

/// A served cloud with a resource group `Web`, and an application that may do all.
pub(crate) struct Cloud {
    pub(crate) sim: AzureSim,
    pub(crate) lab: Lab,
    http: Client,
    server: SimServer,
    token: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: Value,
    headers: HeaderMap,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The status and the code of an error, which must have words, too.
    pub(crate) fn error(&self) -> (u16, &str) {
        assert!(self.body["error"]["message"].as_str().is_some_and(|words| !words.is_empty()), "{self:?}");
        (self.status, self.body["error"]["code"].as_str().unwrap())
    }

    /// The body of an answer that is no error.
    #[track_caller]
    pub(crate) fn good(self) -> Value {
        assert!((200..300).contains(&self.status), "{self:?}");
        self.body
    }

    pub(crate) fn state(&self) -> &str {
        self.body["properties"]["provisioningState"].as_str().unwrap()
    }
}

impl Cloud {
    /// With one network, and one group `nsg` that nothing uses.
    pub(crate) async fn new() -> Self {
        let mut cloud = Self::without_login().await;
        cloud.sim.client("tenant", "app", "secret");
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", "app"),
            ("client_secret", "secret"),
            ("scope", "https://management.azure.com/.default"),
        ];
        let login = cloud.login("tenant", &form).await.good();
        cloud.token = login["access_token"].as_str().unwrap().to_owned();
        cloud.lab.vnet("net", &["10.0.0.0/16", "fd00::/48"]);
        cloud.lab.nsg("nsg");
        cloud
    }

    pub(crate) async fn without_login() -> Self {
        let sim = AzureSim::new();
        let server = sim.listen("127.0.0.1:0").await;
        // A kept connection has timers, which would move a clock that stands still.
        let http = Client::builder().no_proxy().pool_max_idle_per_host(0).tls_built_in_root_certs(false);
        let lab = Lab::new(&sim, SUBSCRIPTION, "Web");
        Self { sim, lab, http: http.build().unwrap(), server, token: String::new() }
    }

    pub(crate) fn origin(&self) -> String {
        self.server.origin()
    }

    pub(crate) async fn login(&self, tenant: &str, form: &[(&str, &str)]) -> Reply {
        let url = format!("{}/{tenant}/oauth2/v2.0/token", self.origin());
        read(self.http.post(url).form(form)).await.unwrap()
    }

    pub(crate) async fn metadata(&self, query: &str, header: Option<(&str, &str)>) -> Reply {
        let mut request = self.http.get(format!("{}/metadata/identity/oauth2/token?{query}", self.origin()));
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        read(request).await.unwrap()
    }

    pub(crate) async fn get(&self, id: &str) -> Reply {
        self.send(Method::GET, id, None, None).await.unwrap()
    }

    pub(crate) async fn get_as(&self, token: &str, id: &str) -> Reply {
        self.send_as(Some(token), Method::GET, id, None, None).await.unwrap()
    }

    pub(crate) async fn put(&self, id: &str, body: &Value) -> Reply {
        self.send(Method::PUT, id, Some(body), None).await.unwrap()
    }

    pub(crate) async fn put_if(&self, etag: &str, id: &str, body: &Value) -> Reply {
        self.send(Method::PUT, id, Some(body), Some(etag)).await.unwrap()
    }

    pub(crate) async fn delete(&self, id: &str) -> Reply {
        self.send(Method::DELETE, id, None, None).await.unwrap()
    }

    /// Makes a call; an error where it is not answered.
    pub(crate) async fn send(
        &self,
        method: Method,
        id: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<Reply, reqwest::Error> {
        self.send_as(Some(&self.token), method, id, body, etag).await
    }

    pub(crate) async fn send_as(
        &self,
        token: Option<&str>,
        method: Method,
        id: &str,
        body: Option<&Value>,
        etag: Option<&str>,
    ) -> Result<Reply, reqwest::Error> {
        let mut request = self.http.request(method, format!("{}{id}?api-version=2024-03-01", self.origin()));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(etag) = etag {
            request = request.header("if-match", etag);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        read(request).await
    }

    /// Follows a link that an answer gave.
    pub(crate) async fn follow(&self, url: &str) -> Reply {
        read(self.http.get(url).bearer_auth(&self.token)).await.unwrap()
    }

    pub(crate) fn nsg(&self) -> String {
        self.lab.nsg_id("nsg")
    }

    pub(crate) fn rule_id(&self, name: &str) -> String {
        format!("{}/securityRules/{name}", self.nsg())
    }

    /// A machine in a subnet of the network, behind groups.
    pub(crate) fn vm(&self, addresses: &[&str], subnet_nsg: Option<&str>, nsg: Option<&str>) -> Vm {
        let subnet = self.lab.subnet("net", "web", "10.0.0.0/24", subnet_nsg, None);
        self.lab.vm("vm", &subnet, addresses, nsg)
    }

    /// Reports whether a TCP connection gets in.
    pub(crate) fn admits(&self, from: &str, vm: &Vm, port: u16) -> bool {
        self.sim.admits(ip(from), &vm.interface, "Tcp", port).admitted
    }
}

async fn read(request: reqwest::RequestBuilder) -> Result<Reply, reqwest::Error> {
    let answer = request.send().await?;
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.bytes().await?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Ok(Reply { status, body, headers })
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A rule that lets everyone in on port 22.
pub(crate) fn rule(priority: impl Into<Value>) -> Value {
    json!({"properties": {
        "protocol": "Tcp", "access": "Allow", "priority": priority.into(), "direction": "Inbound",
        "sourceAddressPrefix": "*", "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": "22"
    }})
}

/// A rule with other properties in place of its own; `null` takes one away.
pub(crate) fn but(mut rule: Value, changes: Value) -> Value {
    let properties = rule["properties"].as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        properties.insert(name.clone(), value.clone());
        properties.retain(|_, value| !value.is_null());
    }
    rule
}

pub(crate) fn named(name: &str, mut rule: Value) -> Value {
    rule["name"] = json!(name);
    rule
}

pub(crate) fn group(rules: Vec<Value>) -> Value {
    json!({"location": "westeurope", "properties": {"securityRules": rules}})
}
