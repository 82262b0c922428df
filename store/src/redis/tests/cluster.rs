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
        let (port, bus) = free_ports();
        let (port_text, bus_text) = (port.to_string(), bus.to_string());
        let settings = ["--port", &port_text, "--bind", "127.0.0.1", "--cluster-enabled", "yes"];
        let more = ["--cluster-port", &bus_text, "--appendonly", "yes"];
        Self { server: RedisServer::start(&[settings.as_slice(), more.as_slice()].concat()).await, port, bus }
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

#[tokio::test]
async fn whichever_node_is_named_the_one_that_has_the_store_is_found() {
    let (one, other) = (Node::start().await, Node::start().await);
    one.must("CLUSTER ADDSLOTSRANGE 0 8191").await;
    other.must("CLUSTER ADDSLOTSRANGE 8192 16383").await;
    one.must(&format!("CLUSTER MEET 127.0.0.1 {} {}", other.port, other.bus)).await;
    one.serves(2).await;
    other.serves(2).await;
    for tenant in ["a", "b", "c", "d", "e", "f"] {
        let here = Broker::open(&RedisSettings::at(one.url(), tenant)).await.unwrap();
        here.commit(a_change(1)).await.unwrap();
        let there = Broker::open(&RedisSettings::at(other.url(), tenant)).await.unwrap();
        assert_eq!(there.audit_head().await.unwrap(), here.audit_head().await.unwrap());
        assert_eq!(there.open_grants().await.unwrap().len(), 1);
    }
    assert!(one.must("DBSIZE").await != "0" && other.must("DBSIZE").await != "0", "one has them all");
}
