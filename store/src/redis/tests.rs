//! The store on real servers, which each test starts and ends.

mod cancelled;
mod cluster;
mod connections;
mod coordination;
mod forged;
mod rollback;
mod transfer;
mod upgrade;

use std::ops::Deref;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use postern_core::TargetId;
use postern_core::audit::{AuditEvent, verify};
use tempfile::TempDir;

use super::*;
use crate::coordination::{Claim, Coordination as _};
use crate::testing::builders::{a_grant, a_policy, name, start};
use crate::testing::conformance::{self, Leasing};
use crate::testing::{first_sealing, test_sealing};
use crate::{AgentRecord, Expect, GrantQuery, Store, TokenHash, TokenRecord, Transaction};

/// A broker on the store.
struct Broker {
    store: Store,
    redis: Arc<Redis>,
}

impl Broker {
    async fn open(settings: &RedisSettings) -> Result<Self, StoreError> {
        Self::open_with(settings, &test_sealing()).await
    }

    async fn open_with(settings: &RedisSettings, sealing: &Sealing) -> Result<Self, StoreError> {
        let redis = Arc::new(Redis::open(settings, sealing).await?);
        Ok(Self { store: redis.store(), redis })
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.redis.fmt(f)
    }
}

impl Deref for Broker {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

impl Leasing for Broker {
    fn store(&self) -> &Store {
        &self.store
    }

    async fn lease(&self, target: &TargetId) -> Lease {
        self.redis.take(target, Claim::Free).await.unwrap().unwrap().lease
    }
}

/// A server on a socket of its own, as durable as can be.
struct RedisServer {
    child: Child,
    dir: TempDir,
    settings: Vec<String>,
}

impl RedisServer {
    async fn start(settings: &[&str]) -> Self {
        let dir = TempDir::with_prefix("postern-redis-").unwrap();
        let settings = settings.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        let child = launch(dir.path(), &settings);
        let server = Self { child, dir, settings };
        server.wait().await;
        server
    }

    async fn durable() -> Self {
        Self::start(&["--appendonly", "yes", "--appendfsync", "always"]).await
    }

    async fn wait(&self) {
        let client = redis::Client::open(self.url()).unwrap();
        for _ in 0..500 {
            if let Ok(mut connection) = client.get_multiplexed_async_connection().await {
                match redis::cmd("PING").query_async::<String>(&mut connection).await {
                    Ok(_) => return,
                    Err(error) if error.code() == Some("NOAUTH") => return,
                    Err(_) => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the server does not come up");
    }

    fn url(&self) -> String {
        format!("redis+unix://{}/redis.sock", self.dir.path().display())
    }

    fn store(&self, tenant: &str) -> RedisSettings {
        RedisSettings::at(self.url(), tenant)
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    async fn restart(&mut self) {
        std::fs::remove_file(self.dir.path().join("redis.sock")).ok();
        self.child = launch(self.dir.path(), &self.settings);
        self.wait().await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn launch(dir: &Path, settings: &[String]) -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "redis-server", "--port", "0", "--save", "", "--unixsocket"]);
    command.arg(dir.join("redis.sock")).arg("--dir").arg(dir).args(settings);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-server is installed")
}

fn a_change(number: u8) -> Transaction {
    let grant = a_grant().number(number).build();
    let event = AuditEvent::done(start(), "a test", "tested");
    Transaction::default().put_grant(grant, Expect::Absent).audit(event)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms() {
    let server = RedisServer::durable().await;
    let number = std::cell::Cell::new(0);
    conformance::run(async || {
        number.set(number.get() + 1);
        Broker::open(&server.store(&format!("tenant-{}", number.get()))).await.unwrap()
    })
    .await;
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let server = RedisServer::durable().await;
    let (one, other) = (server.store("one"), server.store("other"));
    let (one, other) = (Broker::open(&one).await.unwrap(), Broker::open(&other).await.unwrap());
    one.commit(a_change(1)).await.unwrap();
    assert_eq!(other.audit_head().await.unwrap(), Head::EMPTY);
    assert!(other.open_grants().await.unwrap().is_empty());
}

#[tokio::test]
async fn i4_what_was_answered_survives_kill_9_of_the_server() {
    let mut server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    for number in 1..=20 {
        store.commit(a_change(number)).await.unwrap();
    }
    let head = store.audit_head().await.unwrap();
    server.kill();
    let gone = store.commit(a_change(21)).await;
    assert!(matches!(gone, Err(StoreError::Unavailable { .. })), "{gone:?}");
    assert!(store.open_grants().await.is_err(), "an outage is an error, and not an empty store");
    server.restart().await;
    // The connections come back by themselves.
    let mut tries = 0..1000;
    while store.commit(a_change(22)).await.is_err() {
        assert!(tries.next().is_some(), "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let lines = store.audit_lines(0, 1000).await.unwrap();
    assert_eq!(
        verify(lines.iter().map(|(_, line)| line.as_str())).unwrap(),
        store.audit_head().await.unwrap()
    );
    assert_eq!(store.audit_head().await.unwrap().seq, head.seq + 1);
    assert_eq!(store.open_grants().await.unwrap().len(), 21);
}

#[tokio::test]
async fn a_newer_schema_is_left_untouched() {
    let server = RedisServer::durable().await;
    Broker::open(&server.store("t")).await.unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let mut set = redis::cmd("SET");
    set.arg("{postern:t}:schema").arg(SCHEMA + 1).query_async::<()>(&mut connection).await.unwrap();
    let newer = Broker::open(&server.store("t")).await;
    assert!(matches!(newer, Err(StoreError::NewerSchema { found: 5, known: SCHEMA })), "{newer:?}");
}

#[tokio::test]
async fn settings_that_cannot_keep_the_promise_are_named() {
    let server = RedisServer::durable().await;
    assert_eq!(Redis::warnings(&server.store("t")).await.unwrap(), [] as [&str; 0]);
    let careless = RedisServer::start(&["--appendonly", "no", "--appendfsync", "everysec"]).await;
    let warnings = Redis::warnings(&careless.store("t")).await.unwrap().join("\n");
    for name in ["appendonly is no", "appendfsync is everysec"] {
        assert!(warnings.contains(name), "{warnings}");
    }
    let lonely = RedisSettings { replicas: 1, ..server.store("t") };
    let warnings = Redis::warnings(&lonely).await.unwrap().join("\n");
    assert!(warnings.contains("0 are connected") && warnings.contains("min-replicas-to-write"), "{warnings}");
}

#[tokio::test]
async fn without_the_replicas_that_are_asked_for_nothing_is_answered() {
    let server = RedisServer::durable().await;
    let store = Broker::open(&RedisSettings { replicas: 1, ..server.store("t") }).await.unwrap();
    let alone = store.commit(a_change(1)).await;
    let Err(StoreError::Unavailable { source }) = alone else { panic!("{alone:?}") };
    assert!(source.to_string().contains("0 of 1 replicas"), "{source}");
}

#[tokio::test]
async fn i4_a_durable_read_of_what_no_replica_has_fails_and_a_plain_one_shows_it() {
    let server = RedisServer::durable().await;
    let store = Broker::open(&RedisSettings { replicas: 1, ..server.store("t") }).await.unwrap();
    let id = a_grant().number(1).build().id;
    // Nothing is there, and nothing has to be confirmed.
    assert_eq!(store.durable_grant(id).await.unwrap().into_inner(), None);
    store.commit(a_change(1)).await.unwrap_err();
    assert!(store.grant(id).await.unwrap().is_some());
    for outcome in [store.durable_grant(id).await.map(drop), store.durable_policy(&name("p")).await.map(drop)]
    {
        let Err(StoreError::Unavailable { source }) = outcome else { panic!("{outcome:?}") };
        assert!(source.to_string().contains("0 of 1 replicas"), "{source}");
    }
    // A store that asks for no replicas has it durable on the one server.
    let alone = Broker::open(&server.store("t")).await.unwrap();
    assert!(alone.durable_grant(id).await.unwrap().is_some());
}

#[tokio::test]
async fn i4_a_head_that_the_log_does_not_have_is_not_confirmed() {
    let server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    let (first, second) =
        (store.commit(a_change(1)).await.unwrap(), store.commit(a_change(2)).await.unwrap());
    let mut connection = store.redis.server.connect().await.unwrap();
    let heads = [first, second, Head { hash: first.hash, ..second }, Head { seq: 3, ..second }, Head::EMPTY];
    assert_eq!(
        store.redis.server.has(&mut connection, &heads).await.unwrap(),
        [true, true, false, false, true]
    );
    let cut = crate::AuditCut { from: Head::EMPTY, upto: first };
    let event = AuditEvent::done(start(), "a test", "tested");
    let last = store.commit(Transaction::default().cut_audit(cut).audit(event)).await.unwrap();
    let there = store.redis.server.has(&mut connection, &[first, second, last]).await.unwrap();
    assert_eq!(there, [false, true, true], "what has left the log is not there");
}

#[tokio::test]
async fn i8_policies_that_another_broker_changes_meanwhile_are_not_lost() {
    let server = RedisServer::durable().await;
    let (one, other) = (Broker::open(&server.store("t")).await, Broker::open(&server.store("t")).await);
    let (one, other) = (one.unwrap(), other.unwrap());
    let lease = one.lease(&"host:vm-1".parse().unwrap()).await;
    let changes = async {
        for number in 0..60 {
            let policy = a_policy().on(&format!("host:other-{number}")).build();
            let event = AuditEvent::done(start(), "a test", "tested");
            let put = Transaction::default().put_policy(policy, Expect::Any).audit(event);
            other.commit(put).await.unwrap();
        }
    };
    let reads = async {
        for _ in 0..200 {
            one.snapshot(&lease).await.unwrap().policies.unwrap();
            one.policies().await.unwrap();
        }
    };
    tokio::join!(changes, reads);
}

#[tokio::test]
async fn a_password_is_read_from_its_file_and_shown_nowhere() {
    let server = RedisServer::start(&["--requirepass", "geheim", "--appendonly", "yes"]).await;
    let file = server.dir.path().join("password");
    let settings = RedisSettings { password_file: Some(file.clone()), ..server.store("t") };
    postern_runtime::files::replace(&file, b"falsch", 0o600).unwrap();
    let refused = format!("{:?}", Broker::open(&settings).await.unwrap_err());
    assert!(!refused.contains("falsch"), "{refused}");
    postern_runtime::files::replace(&file, b"geheim\n", 0o600).unwrap();
    Broker::open(&settings).await.unwrap().commit(a_change(1)).await.unwrap();
}

#[tokio::test]
async fn i1_a_store_that_went_back_is_not_used_any_more() {
    let mut server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    store.commit(a_change(1)).await.unwrap();
    let lease = store.lease(&"host:vm-1".parse().unwrap()).await;
    server.kill();
    std::fs::remove_dir_all(server.dir.path().join("appendonlydir")).unwrap();
    server.restart().await;
    // The connection comes back, to a server that has nothing.
    let mut tries = 0..1000;
    let error = loop {
        // A look that needs no lease: those are gone with everything else, and it would be refused for that.
        match store.open_grants().await {
            Err(StoreError::Unavailable { source }) if source.to_string().contains("went back") => {
                break source;
            }
            Err(_) => assert!(tries.next().is_some(), "it does not come back"),
            Ok(grants) => panic!("{grants:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(error.to_string().contains("from audit record 1 to 0"), "{error}");
    assert!(store.commit(a_change(2)).await.is_err() && store.snapshot(&lease).await.is_err());
    assert!(tokio::time::timeout(Duration::from_secs(20), store.lost()).await.unwrap().contains("went back"));
    // A new process takes what is there.
    assert!(Broker::open(&server.store("t")).await.unwrap().open_grants().await.unwrap().is_empty());
}
