//! A server that another program writes, and a store that is not of this data directory.

use redis::aio::MultiplexedConnection;

use super::*;
use crate::forged_tests::{Attacked, run};
use crate::seal::RecordsKey;

/// A store of which every broker runs on while another program writes it.
struct Tenant<'a> {
    server: &'a RedisServer,
    tenant: String,
}

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// A broker that takes leases from the ones before it, which are members still.
struct Taking(Broker);

impl Deref for Taking {
    type Target = Broker;

    fn deref(&self) -> &Broker {
        &self.0
    }
}

impl Leasing for Taking {
    fn store(&self) -> &Store {
        &self.0.store
    }

    async fn lease(&self, target: &TargetId) -> Lease {
        self.0.redis.take(target, Claim::Agent).await.unwrap().unwrap().lease
    }
}

impl Tenant<'_> {
    fn key(&self, name: &str) -> String {
        format!("{{postern:{}}}:{name}", self.tenant)
    }
}

impl Attacked for Tenant<'_> {
    type Store = Taking;

    async fn open(&self) -> Taking {
        Taking(Broker::open(&self.server.store(&self.tenant)).await.unwrap())
    }

    async fn read(&self, kind: &str, key: &str) -> (u64, String) {
        let mut get = redis::cmd("HGET");
        get.arg(self.key(kind)).arg(key);
        let text: String = get.query_async(&mut connect(self.server).await).await.unwrap();
        let (version, text) = text.split_once(' ').unwrap();
        (version.parse().unwrap(), text.to_owned())
    }

    async fn write(&self, kind: &str, key: &str, version: &str, text: &str) {
        let mut set = redis::cmd("HSET");
        set.arg(self.key(kind)).arg(key).arg(format!("{version} {text}"));
        set.query_async::<()>(&mut connect(self.server).await).await.unwrap();
    }

    async fn lose(&self, kind: &str, key: &str) {
        let mut delete = redis::cmd("HDEL");
        delete.arg(self.key(kind)).arg(key);
        delete.query_async::<()>(&mut connect(self.server).await).await.unwrap();
    }

    async fn enter(&self, kind: &str, index: &str, key: &str) {
        self.enter_raw(kind, &[index], key.as_bytes()).await;
    }

    async fn write_raw(&self, kind: &str, key: &[u8], content: &[u8]) {
        let mut set = redis::cmd("HSET");
        set.arg(self.key(kind)).arg(key).arg(content);
        set.query_async::<()>(&mut connect(self.server).await).await.unwrap();
    }

    async fn enter_raw(&self, kind: &str, indexes: &[&str], key: &[u8]) {
        let mut all = redis::pipe();
        for index in indexes {
            all.zadd(self.key(&format!("index:{kind}:{index}")), key, 0);
        }
        all.query_async::<()>(&mut connect(self.server).await).await.unwrap();
    }
}

#[tokio::test]
async fn i7_a_program_that_writes_the_server_gets_nothing() {
    let server = RedisServer::durable().await;
    let number = std::cell::Cell::new(0);
    run(async || {
        number.set(number.get() + 1);
        Tenant { server: &server, tenant: format!("t{}", number.get()) }
    })
    .await;
}

#[tokio::test]
async fn i7_a_store_is_sealed_once_and_not_again_when_its_schema_is_set_back() {
    let server = RedisServer::durable().await;
    let tenant = Tenant { server: &server, tenant: "t".to_owned() };
    tenant.open().await.commit(a_change(1)).await.unwrap();
    let forged = a_grant().number(9).build();
    let set_back = async || {
        tenant.write("grants", &forged.id.to_string(), "1", &serde_json::to_string(&forged).unwrap()).await;
        tenant.write("grants", "junk", "junk", "junk").await;
        tenant.enter("grants", "open", &forged.id.to_string()).await;
        let mut all = redis::pipe();
        all.set(tenant.key("schema"), 3).del(tenant.key("sealed"));
        all.query_async::<()>(&mut connect(&server).await).await.unwrap();
    };
    set_back().await;
    let store = tenant.open().await;
    assert_eq!(store.open_grants().await.unwrap().len(), 1, "the forged grant is not sealed");
    set_back().await;
    let junk = redis::cmd("HDEL").arg(tenant.key("grants")).arg("junk").to_owned();
    junk.query_async::<()>(&mut connect(&server).await).await.unwrap();
    // A data directory that has sealed nothing yet takes the records as they are.
    let store = Broker::open_with(&server.store("t"), &first_sealing()).await.unwrap();
    assert_eq!(store.grant(forged.id).await.unwrap().unwrap().record, forged);
}

#[tokio::test]
async fn a_broker_with_another_key_is_refused_and_the_file_to_copy_is_named() {
    let server = RedisServer::durable().await;
    let tenant = Tenant { server: &server, tenant: "t".to_owned() };
    tenant.open().await.commit(a_change(1)).await.unwrap();
    let (settings, other) = (server.store("t"), RecordsKey::from_bytes([8; 32]));
    for is_upgrade in [false, true] {
        for sealing in [Sealing::with(other.clone()), Sealing::first(other.clone())] {
            let refused = Broker::open_with(&settings, &sealing).await.unwrap_err();
            assert!(matches!(refused, StoreError::OtherKey), "{is_upgrade}: {refused}");
            assert!(refused.to_string().contains("copy ca/records.key"), "{refused}");
        }
        let mut set_back = redis::cmd("SET");
        set_back.arg(tenant.key("schema")).arg(3);
        set_back.query_async::<()>(&mut connect(&server).await).await.unwrap();
    }
    tenant.open().await;
    let mut forget = redis::cmd("DEL");
    forget.arg(tenant.key("sealed")).query_async::<()>(&mut connect(&server).await).await.unwrap();
    let refused = Broker::open_with(&settings, &Sealing::first(other)).await.unwrap_err();
    assert!(matches!(refused, StoreError::OtherKey), "without a key it cannot have sealed them: {refused}");
}

#[tokio::test]
async fn i10_a_mark_that_another_program_wrote_is_shown_escaped_and_bounded() {
    let server = RedisServer::durable().await;
    let tenant = Tenant { server: &server, tenant: "t".to_owned() };
    for mark in ["incomplete", "moved"] {
        let mut set = redis::cmd("SET");
        set.arg(tenant.key(mark)).arg([b"word \x1b[2J\xff".as_slice(), &[b'x'; 10_000]].concat());
        set.query_async::<()>(&mut connect(&server).await).await.unwrap();
        let refused = Broker::open(&server.store("t")).await.unwrap_err();
        assert!(matches!(refused, StoreError::Migration(_)), "{refused}");
        let shown = refused.to_string();
        assert!(!shown.contains('\u{1b}') && shown.len() < 600, "{shown}");
    }
}

#[tokio::test]
async fn i7_a_server_in_plain_text_over_a_network_is_not_asked() {
    let settings = RedisSettings::at("redis://192.0.2.1:6379", "t");
    let refused = postern_runtime::error_chain::error_chain(&Broker::open(&settings).await.unwrap_err());
    assert!(refused.contains("plain text") && refused.contains("rediss://"), "{refused}");
}
