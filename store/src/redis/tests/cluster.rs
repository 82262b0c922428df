//! Redis Cluster: all keys of a store are in one slot, and the node that has it is found.

use std::net::TcpListener;

use super::*;

/// Finds two ports that were free a moment ago.
pub(super) fn free_ports() -> (u16, u16) {
    let (one, other) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    (one.local_addr().unwrap().port(), other.local_addr().unwrap().port())
}

/// A node of a cluster, on a port and on a socket.
struct Node {
    server: RedisServer,
    port: u16,
    bus: u16,
}

impl Node {
    async fn start() -> Self {
        Self::start_on("--port", &[]).await
    }

    /// Starts a node with TLS, by the certificates in a directory.
    async fn start_tls(dir: &Path) -> Self {
        let file = |name: &str| dir.join(name).display().to_string();
        let files =
            ["server/cert.pem", "server/key.pem", "server/roots.pem", "client/cert.pem", "client/key.pem"];
        let [certificate, key, roots, client_certificate, client_key] = files.map(file);
        let tls = ["--tls-cluster", "yes", "--tls-auth-clients", "no", "--tls-cert-file", &certificate];
        let more = ["--tls-key-file", &key, "--tls-ca-cert-file", &roots];
        // Nodes show a client's certificate to each other.
        let of_nodes = ["--tls-client-cert-file", &client_certificate, "--tls-client-key-file", &client_key];
        Self::start_on("--tls-port", &[tls.as_slice(), &more, &of_nodes].concat()).await
    }

    async fn start_on(port_setting: &str, settings: &[&str]) -> Self {
        let (port, bus) = free_ports();
        let (port_text, bus_text) = (port.to_string(), bus.to_string());
        let own = [port_setting, &port_text, "--bind", "127.0.0.1", "--cluster-enabled", "yes"];
        let more = ["--cluster-port", &bus_text, "--appendonly", "yes"];
        Self { server: RedisServer::start(&[&own, settings, &more].concat()).await, port, bus }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn must(&self, command: &str) -> String {
        let client = redis::Client::open(self.server.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut words = command.split(' ');
        let mut call = redis::cmd(words.next().unwrap());
        call.arg(words.collect::<Vec<_>>());
        call.query_async(&mut connection).await.unwrap()
    }

    /// Waits until the node serves, in a cluster of this many nodes.
    async fn serves(&self, nodes: usize) {
        let nodes = format!("cluster_known_nodes:{nodes}\r\n");
        for _ in 0..500 {
            let info = self.must("CLUSTER INFO").await;
            if info.contains("cluster_state:ok") && info.contains(&nodes) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the cluster does not come up: {}", self.must("CLUSTER INFO").await);
    }
}

#[tokio::test]
async fn the_store_keeps_its_promises_on_a_cluster_of_one() {
    let node = Node::start().await;
    node.must("CLUSTER ADDSLOTSRANGE 0 16383").await;
    node.serves(1).await;
    let tenants = std::sync::atomic::AtomicUsize::new(0);
    conformance::run(async || {
        let tenant = format!("t{}", tenants.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
        Broker::open(&RedisSettings::at(node.url(), tenant)).await.unwrap()
    })
    .await;
}

/// Makes a cluster of two nodes.
async fn join(one: &Node, other: &Node) {
    one.must("CLUSTER ADDSLOTSRANGE 0 8191").await;
    other.must("CLUSTER ADDSLOTSRANGE 8192 16383").await;
    one.must(&format!("CLUSTER MEET 127.0.0.1 {} {}", other.port, other.bus)).await;
    one.serves(2).await;
    other.serves(2).await;
}

#[tokio::test]
async fn with_tls_a_node_that_is_named_by_its_address_has_the_certificate_of_the_configured_name() {
    let dir = TempDir::new().unwrap();
    super::connections::certificates(dir.path(), "localhost");
    let (one, other) = (Node::start_tls(dir.path()).await, Node::start_tls(dir.path()).await);
    join(&one, &other).await;
    let tls = TlsFiles { ca: Some(dir.path().join("client/roots.pem")), client: None };
    let settings = |host: &str, node: &Node, tenant: &str, name: Option<&str>| RedisSettings {
        tls: tls.clone(),
        tls_server_name: name.map(str::to_owned),
        ..RedisSettings::at(format!("rediss://{host}:{}", node.port), tenant)
    };
    for (host, name) in [("localhost", None), ("127.0.0.1", Some("localhost"))] {
        for tenant in ["a", "b", "c", "d"] {
            for node in [&one, &other] {
                let store = Broker::open(&settings(host, node, tenant, name)).await.unwrap();
                let event = AuditEvent::done(start(), "a test", "tested");
                store.commit(Transaction::default().audit(event)).await.unwrap();
                store.redis.server.messages().await.unwrap().subscribe("{postern:a}:news").await.unwrap();
            }
        }
    }
    assert!(one.must("DBSIZE").await != "0" && other.must("DBSIZE").await != "0", "one has them all");
    for (host, name) in [("127.0.0.1", None), ("localhost", Some("redis.example.org"))] {
        let refused = Broker::open(&settings(host, &one, "a", name)).await.unwrap_err();
        let refused = postern_runtime::error_chain::error_chain(&refused).to_lowercase();
        assert!(refused.contains("certificate"), "{host}: {refused}");
    }
}

#[tokio::test]
async fn whichever_node_is_named_the_one_that_has_the_store_is_found() {
    let (one, other) = (Node::start().await, Node::start().await);
    join(&one, &other).await;
    for tenant in ["a", "b", "c", "d", "e", "f"] {
        let here = Broker::open(&RedisSettings::at(one.url(), tenant)).await.unwrap();
        here.commit(a_change(1)).await.unwrap();
        let there = Broker::open(&RedisSettings::at(other.url(), tenant)).await.unwrap();
        assert_eq!(there.audit_head().await.unwrap(), here.audit_head().await.unwrap());
        assert_eq!(there.open_grants().await.unwrap().len(), 1);
    }
    assert!(one.must("DBSIZE").await != "0" && other.must("DBSIZE").await != "0", "one has them all");
}
