//! The rate of durable grants per second: through the whole gRPC path, and into the store alone.

use postern_store::testing::test_sealing;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use postern_core::audit::AuditEvent;
use postern_core::{Grant, GrantId, Role};
use postern_proto::v1::access_service_client::AccessServiceClient;
use postern_store::embedded::Embedded;
use postern_store::redis::{Redis as RedisStore, RedisSettings};
use postern_store::{Expect, Store, Transaction};
use postern_tests::clock::{monotonic, wall};
use postern_tests::redis::Redis;
use postern_tests::{Broker, Client, HIGH_QUOTAS, HostWorld, PolicyBuilder, Running, a_policy, a_request};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::across::brokers;
use crate::lines::{line, note};

/// The number of callers that ask at once, and the number of their connections.
const CALLERS: usize = 256;
const CONNECTIONS: usize = 8;
const GRANTS: u32 = 30_000;
/// The targets that they ask for, in turn.
const TARGETS: u32 = 5_000;

pub(crate) fn measure() {
    let world = HostWorld::without_agent_configured(policy(), HIGH_QUOTAS);
    let identity = world.broker.issue("load", Role::Requester);
    let clients: Vec<Client> =
        (0..CONNECTIONS).map(|_| Client::new(&world.net.alice, world.broker.url(), &identity)).collect();
    let through_grpc = through_grpc(&clients);
    assert!(world.admin.verify_audit().sound);
    let raw = raw_rate(&world);
    let bare = bare_rate(&clients);
    note("target: half of the raw rate or better; callers and broker share this machine's cores");
    line("durable-grants-through-grpc", through_grpc, "store-alone", raw, "1/s");
    line("durable-grants-through-grpc", through_grpc, "grpc-health-check", bare, "1/s");
    on_redis(&world);
}

fn policy() -> PolicyBuilder {
    a_policy().on("host:*").port("tcp/22").waiting_for_agents()
}

/// Returns the rate, in grants per second, at which the broker answers all callers.
fn through_grpc(clients: &[Client]) -> f64 {
    let next = Arc::new(AtomicU32::new(0));
    let began = monotonic();
    let callers: Vec<_> =
        (0..CALLERS).map(|number| start_caller(&clients[number % CONNECTIONS], &next)).collect();
    callers.into_iter().for_each(Running::join);
    f64::from(GRANTS) / began.elapsed().as_secs_f64()
}

fn start_caller(client: &Client, next: &Arc<AtomicU32>) -> Running<()> {
    let next = Arc::clone(next);
    client.start(|channel| async move {
        let mut access = AccessServiceClient::new(channel);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= GRANTS {
                return;
            }
            let target = format!("host:vm-{}", number % TARGETS);
            let ask = a_request().on(&target).port("tcp/22").from("192.0.2.20").key(&format!("key-{number}"));
            access.request_access(ask.wire()).await.unwrap();
        }
    })
}

/// A call that does nothing, by as many callers over the same connections.
fn bare_rate(clients: &[Client]) -> f64 {
    let next = Arc::new(AtomicU32::new(0));
    let began = monotonic();
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let next = Arc::clone(&next);
            clients[number % CONNECTIONS].start(|channel| async move {
                let mut health = HealthClient::new(channel);
                while next.fetch_add(1, Ordering::Relaxed) < GRANTS {
                    health.check(HealthCheckRequest::default()).await.unwrap();
                }
            })
        })
        .collect();
    callers.into_iter().for_each(Running::join);
    f64::from(GRANTS) / began.elapsed().as_secs_f64()
}

/// A grant as the broker keeps it.
fn pattern(world: &HostWorld) -> Grant {
    let database = rusqlite::Connection::open(world.broker.database()).unwrap();
    let sql = "SELECT body FROM documents WHERE place GLOB 'grants/*' LIMIT 1";
    let body: String = database.query_row(sql, [], |row| row.get(0)).unwrap();
    // The seal stands before the record.
    serde_json::from_str(body.splitn(3, ' ').last().unwrap_or_default()).unwrap()
}

/// The same grants, into a store of their own, by as many callers.
fn raw_rate(world: &HostWorld) -> f64 {
    let (path, pattern) = (world.dir().join("raw.db"), pattern(world));
    rate(pattern, async move || Embedded::open(&path, &test_sealing()).unwrap())
}

/// The same, into a Redis that keeps what it has answered, beside what such a server does with bare values.
fn on_redis(world: &HostWorld) {
    let redis = Redis::start(&world.net.hub);
    let settings = RedisSettings::at(redis.url(), "bench");
    let posterns = rate(pattern(world), async move || {
        Arc::new(RedisStore::open(&settings, &test_sealing()).await.unwrap()).store()
    });
    // As many clients as share one script here, and values of about a grant's size.
    let mut command = Command::new("redis-benchmark");
    command
        .arg("-s")
        .arg(redis.socket())
        .args(["-t", "set", "-n", "30000", "-c", "64", "-d", "900", "--csv"]);
    let csv = String::from_utf8(command.output().unwrap().stdout).unwrap();
    let set = csv.lines().find(|line| line.starts_with("\"SET\"")).unwrap();
    let bare: f64 = set.split(',').nth(1).unwrap().trim_matches('"').parse().unwrap();
    note(
        "a grant is 9 commands of one script, with its audit record and its key; appendfsync always on both sides",
    );
    line("durable-grants-on-redis", posterns, "redis-benchmark-set", bare, "1/s");
    for (count, name) in [
        (1, "durable-grants-through-one-broker-on-redis"),
        (2, "durable-grants-through-two-brokers-on-redis"),
    ] {
        line(name, through_brokers(world, count), "redis-benchmark-set", bare, "1/s");
    }
}

/// Measures the whole gRPC path of so many brokers on one Redis, each with its share of the callers.
fn through_brokers(world: &HostWorld, count: u16) -> f64 {
    let (redis, dir) = (Redis::start(&world.net.hub), TempDir::with_prefix("postern-").unwrap());
    let brokers = brokers(&world.net.hub, &dir, &redis, count);
    brokers[0].admin(&world.net.hub).put_policy(policy().wire()).unwrap();
    let identity = brokers[0].issue("load", Role::Requester);
    let urls = brokers.iter().map(Broker::url).cycle();
    let clients: Vec<Client> =
        urls.take(CONNECTIONS).map(|url| Client::new(&world.net.alice, url, &identity)).collect();
    through_grpc(&clients)
}

/// Returns the rate, in grants per second, at which a store commits.
fn rate(pattern: Grant, open: impl AsyncFnOnce() -> Store) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let store = open().await;
        let next = Arc::new(AtomicU32::new(0));
        let began = monotonic();
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (store, next, pattern) = (store.clone(), Arc::clone(&next), pattern.clone());
            callers.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= GRANTS {
                        return;
                    }
                    store.commit(transaction(&pattern, number)).await.unwrap();
                }
            });
        }
        callers.join_all().await;
        f64::from(GRANTS) / began.elapsed().as_secs_f64()
    })
}

/// Builds the transaction that the broker commits for a request.
fn transaction(pattern: &Grant, number: u32) -> Transaction {
    let grant = Grant { id: GrantId::from_parts(wall(), u128::from(number)), ..pattern.clone() };
    let event = AuditEvent::done(wall(), &grant.principal, "grant.requested")
        .on_grant(grant.id)
        .with("windows", &grant.windows[0])
        .with("duration_s", grant.duration.as_secs())
        .with("justification", &grant.justification);
    let (principal, key, id) = (grant.principal.key().clone(), format!("key-{number}"), grant.id);
    Transaction::default()
        .put_grant(grant, Expect::Absent)
        .remember_request(&principal, &key, id)
        .audit(event)
}
