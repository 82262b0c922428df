//! A store of an older schema is upgraded whole, wherever the upgrade breaks off, and its brokers are refused.

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, Pipeline, RedisFuture, Value};

use super::*;
use crate::schema_2::{AGENTS, GRANTS, POLICIES, REQUESTS, TOKENS, audit_log, is_whole};

async fn connect(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Makes a store as brokers of schema 2 leave it. One of them is still a member, and holds a lease.
async fn old_store(server: &RedisServer, tenant: &str) {
    let key = |name: &str| format!("{{postern:{tenant}}}:{name}");
    let mut all = redis::pipe();
    for it in &GRANTS {
        all.hset(key("grants"), it.id, format!("{} {}", it.version, it.body));
        all.zadd(key("all"), it.id, 0).zadd(key(&format!("of:{}", it.principal)), it.id, 0);
        all.zadd(key(&format!("on:{}", it.target)), it.id, 0);
        if it.is_open {
            all.zadd(key("open"), it.id, 0).zadd(key(&format!("open:{}", it.target)), it.id, 0);
        }
    }
    for (principal, idempotency_key, id) in REQUESTS {
        all.hset(key("requests"), format!("{principal} {idempotency_key}"), id);
    }
    for (name, version, body) in POLICIES {
        all.hset(key("policies"), name, format!("{version} {}", body.unwrap_or_default()));
    }
    for (target, version, body) in AGENTS {
        all.hset(key("agents"), target, format!("{version} {body}"));
    }
    for (hash, body) in TOKENS {
        all.hset(key("tokens"), TokenHash(hash).to_string(), body);
    }
    let (lines, head) = audit_log();
    all.rpush(key("audit"), lines).set(key("head"), format!("{} {}", head.seq, head.hash));
    all.set(key("schema"), 2).set(key("fence"), 7).hset(key("members"), "old", "{}").hset(
        key("losses"),
        "old",
        1,
    );
    all.pset_ex(key("alive:old"), 1, 60_000).hset(key("leases"), "host:vm-1", "old 7");
    all.sadd(key("held:old"), "host:vm-1").hset(key("turns"), "host:vm-1", "old 7");
    all.hset(key("views"), "host:vm-1", "old 7 {}").hset(key("jobs"), "lockdown", "old");
    all.query_async::<()>(&mut connect(server).await).await.unwrap();
}

/// Checks that no key of schema 2 is there besides those that both schemas have.
async fn has_no_old_keys(server: &RedisServer, tenant: &str) {
    let prefix = format!("{{postern:{tenant}}}:");
    let mut keys = redis::cmd("KEYS");
    keys.arg(format!("{prefix}*"));
    let mut keys: Vec<String> = keys.query_async(&mut connect(server).await).await.unwrap();
    keys.retain(|key| {
        let name = key.strip_prefix(&prefix).unwrap();
        let (family, member) = name.split_once(':').unwrap_or((name, ""));
        let is_old = ["all", "open", "of", "on", "turns", "views", "jobs", "upgrading"].contains(&family);
        is_old || member == "old"
    });
    assert_eq!(keys, [] as [&str; 0]);
}

#[tokio::test]
async fn i4_a_store_of_schema_2_opens_with_all_its_records() {
    let server = RedisServer::durable().await;
    old_store(&server, "t").await;
    let store = Broker::open_with(&server.store("t"), &first_sealing()).await.unwrap();
    has_no_old_keys(&server, "t").await;
    let lease = store.lease(&"host:vm-9".parse().unwrap()).await;
    assert_eq!(lease.token, 8, "tokens rise across the upgrade");
    is_whole(&store).await;
}

#[tokio::test]
async fn i2_a_record_that_cannot_be_read_keeps_no_broker_from_starting_and_is_forged_from_then_on() {
    let server = RedisServer::durable().await;
    old_store(&server, "t").await;
    let mut junk = redis::pipe();
    for (kind, key, text) in [
        ("grants", &b"junk"[..], &b"1 {}"[..]),
        ("grants", b"\xff", b"1 \xff"),
        ("grants", b"junk2", b"junk"),
        ("requests", b"junk", b"junk"),
        ("agents", b"host:junk", b"1 {}"),
    ] {
        junk.hset(format!("{{postern:t}}:{kind}"), key, text);
    }
    junk.query_async::<()>(&mut connect(&server).await).await.unwrap();
    let store = Broker::open_with(&server.store("t"), &first_sealing()).await.unwrap();
    has_no_old_keys(&server, "t").await;
    store.lease(&"host:vm-9".parse().unwrap()).await;
    is_whole(&store).await;
    let forged = store.agent(&"host:junk".parse().unwrap()).await;
    assert!(matches!(forged, Err(StoreError::Forged { .. })), "{forged:?}");
}

#[tokio::test]
async fn i4_a_first_upgrade_is_completed_by_no_broker_that_seals_nothing() {
    let server = RedisServer::durable().await;
    old_store(&server, "t").await;
    let mut connection = Until { inner: connect(&server).await, left: 5 };
    let settings = server.store("t");
    let this = Server::new(&settings);
    super::super::upgrade::upgrade(&this, &mut connection, &first_sealing()).await.unwrap_err();
    // A further broker has a copy of the key, and seals nothing.
    let refused = Broker::open(&settings).await.unwrap_err();
    let refused = postern_runtime::error_chain::error_chain(&refused);
    assert!(refused.contains("another broker seals the records"), "{refused}");
    is_whole(&Broker::open_with(&settings, &first_sealing()).await.unwrap()).await;
    Broker::open(&settings).await.unwrap();
}

#[tokio::test]
async fn i8_a_broker_of_the_older_schema_is_refused_from_the_first_step_of_an_upgrade() {
    let server = RedisServer::durable().await;
    let mut seen = Vec::new();
    for left in 1..8 {
        let tenant = format!("t{left}");
        old_store(&server, &tenant).await;
        let mut connection = Until { inner: connect(&server).await, left };
        let old = Server::new(&server.store(&tenant));
        super::super::upgrade::upgrade(&old, &mut connection, &first_sealing()).await.unwrap_err();
        let key = |name: &str| format!("{{postern:{tenant}}}:{name}");
        let mut state = redis::pipe();
        state.get(key("schema")).exists(key("alive:old")).exists(key("upgrading"));
        let state: (u32, bool, bool) = state.query_async(&mut connect(&server).await).await.unwrap();
        seen.push(state);
    }
    // Each commit of such a broker needs its membership, and each renewal compares the schema first.
    let (before, begun) = ((2, true, false), (SCHEMA, false, true));
    seen.dedup();
    assert_eq!(seen, [before, begun], "both at once");
}

/// A connection that breaks after so many commands, as if the broker were killed there.
struct Until {
    inner: MultiplexedConnection,
    left: usize,
}

impl ConnectionLike for Until {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        if self.left == 0 {
            let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
            return Box::pin(std::future::ready(Err(broken.into())));
        }
        self.left -= 1;
        self.inner.req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.inner.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        0
    }
}

#[tokio::test]
async fn i4_wherever_an_upgrade_breaks_off_the_next_broker_completes_it() {
    let server = RedisServer::durable().await;
    for left in 0.. {
        let tenant = format!("t{left}");
        old_store(&server, &tenant).await;
        let mut connection = Until { inner: connect(&server).await, left };
        let settings = server.store(&tenant);
        let outcome =
            super::super::upgrade::upgrade(&Server::new(&settings), &mut connection, &first_sealing()).await;
        let store = Broker::open_with(&settings, &first_sealing()).await.unwrap();
        has_no_old_keys(&server, &tenant).await;
        is_whole(&store).await;
        if outcome.is_ok() {
            assert!(left > 10, "it takes more than {left} commands");
            break;
        }
    }
}
