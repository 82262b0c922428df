//! A new kind of record costs one file: this one has a kind that no other file knows, and every backend keeps it, finds it,
//! and moves it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail like tests"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::{AuditEvent, AuditRecord, verify};
use postern_store::embedded::{self, Embedded};
use postern_store::redis::{self, Redis, RedisSettings};
use postern_store::testing::memory::Memory;
use postern_store::testing::test_sealing;
use postern_store::transfer::{MigrationOptions, Source, Target, transfer};
use postern_store::{Expect, Indexes, Kind, Order, Part, Range, Record, Store, StoreError, Transaction};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

/// A badge that lies in a drawer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Badge {
    drawer: String,
    text: String,
}

impl Record for Badge {
    const KIND: Kind = Kind::new("badges", "badge").keeping_versions();
    type Key = u32;

    fn indexes(&self) -> Indexes {
        Indexes::default().and(&format!("in:{}", self.drawer)).and_if(self.text.is_empty(), "blank")
    }
}

fn badge(drawer: &str, text: &str) -> Badge {
    Badge { drawer: drawer.to_owned(), text: text.to_owned() }
}

fn change() -> Transaction {
    Transaction::default().audit(AuditEvent::done(Timestamp::UNIX_EPOCH, "a test", "badge.changed"))
}

/// Returns the texts of the badges in an index, the last key first.
async fn in_index(store: &Store, index: &str) -> Vec<String> {
    let range = Range { order: Order::Descending, ..Range::all(index) };
    let found = store.range::<Badge>(range).await.unwrap();
    found.into_iter().map(|badge| badge.record.text).collect()
}

fn is_conflict<T>(outcome: &Result<T, StoreError>) -> bool {
    matches!(outcome, Err(StoreError::Conflict { what }) if what.starts_with("the badge "))
}

/// Uses every part of a store on the new kind, and leaves three badges, one of them deleted.
async fn story(store: &Store) {
    let three = change()
        .put(&1, badge("top", "one"), Expect::Absent)
        .put(&2, badge("top", ""), Expect::Absent)
        .put(&3, badge("low", "three"), Expect::Any);
    store.commit(three).await.unwrap();
    assert!(is_conflict(&store.commit(change().put(&1, badge("top", ""), Expect::Absent)).await));
    assert!(is_conflict(&store.commit(change().put(&4, badge("top", ""), Expect::Version(1))).await));
    assert_eq!(in_index(store, "in:top").await, ["", "one"]);
    assert_eq!(in_index(store, "blank").await, [""]);

    // A badge that changes leaves the indexes in which it is no longer.
    let moved = change().put(&2, badge("low", "two"), Expect::Version(1));
    store.commit(moved).await.unwrap();
    let two = store.get::<Badge>(&2).await.unwrap().unwrap();
    assert_eq!((two.record, two.version), (badge("low", "two"), 2));
    assert_eq!(in_index(store, "in:top").await, ["one"]);
    assert_eq!(in_index(store, "in:low").await, ["three", "two"]);
    assert!(in_index(store, "blank").await.is_empty());
    let before = Range { before: Some("3"), limit: 1, ..Range::all("in:low") };
    assert_eq!(store.range::<Badge>(before).await.unwrap().len(), 1);

    // A conflict anywhere undoes the whole transaction, with its indexes and its audit event.
    let seq = store.audit_head().await.unwrap().seq;
    let half = change().put(&1, badge("low", ""), Expect::Any).delete::<Badge>(&9, Expect::Any);
    assert!(is_conflict(&store.commit(half).await));
    let unaudited = Transaction::default().put(&1, badge("low", ""), Expect::Any);
    assert!(matches!(store.commit(unaudited).await, Err(StoreError::Unaudited)));
    assert_eq!(
        (in_index(store, "in:top").await, store.audit_head().await.unwrap().seq),
        (vec!["one".into()], seq)
    );

    // A version from before a deletion fits no later record.
    assert!(is_conflict(&store.commit(change().delete::<Badge>(&1, Expect::Version(2))).await));
    store.commit(change().delete::<Badge>(&1, Expect::Version(1))).await.unwrap();
    assert!(store.get::<Badge>(&1).await.unwrap().is_none());
    assert!(store.get_durable::<Badge>(&1).await.unwrap().is_none());
    assert!(in_index(store, "in:top").await.is_empty());
    assert!(is_conflict(&store.commit(change().delete::<Badge>(&1, Expect::Any)).await));
    store.commit(change().put(&1, badge("top", "one"), Expect::Absent)).await.unwrap();
    assert!(is_conflict(&store.commit(change().put(&1, badge("top", ""), Expect::Version(1))).await));
    store.commit(change().delete::<Badge>(&1, Expect::Version(3))).await.unwrap();
    is_as_left(store).await;
}

/// Checks what the story has left.
async fn is_as_left(store: &Store) {
    let all = store.list::<Badge>().await.unwrap();
    let all: Vec<_> = all.into_iter().map(|badge| (badge.record.text, badge.version)).collect();
    assert_eq!(all, [("two".to_owned(), 2), ("three".to_owned(), 1)]);
    assert_eq!(in_index(store, "in:low").await, ["three", "two"]);
    assert!(in_index(store, "in:top").await.is_empty());
    let lines = store.audit_lines(0, 100).await.unwrap();
    let head = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
    assert_eq!(head, store.audit_head().await.unwrap());
}

/// A Redis on a socket of its own.
struct Server {
    child: Child,
    dir: TempDir,
}

impl Server {
    async fn start() -> Self {
        let dir = TempDir::with_prefix("postern-redis-").unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "redis-server", "--port", "0", "--save", "", "--unixsocket"]);
        command.arg(dir.path().join("redis.sock")).arg("--dir").arg(dir.path());
        command.args(["--appendonly", "yes", "--appendfsync", "always"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let server = Self { child: child.expect("redis-server is installed"), dir };
        for _ in 0..500 {
            if redis::Transfer::open(&server.settings("probe"), &test_sealing()).await.is_ok() {
                return server;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the server does not come up");
    }

    fn settings(&self, tenant: &str) -> RedisSettings {
        RedisSettings::at(format!("redis+unix://{}/redis.sock", self.dir.path().display()), tenant)
    }

    async fn store(&self, tenant: &str) -> Store {
        Arc::new(Redis::open(&self.settings(tenant), &test_sealing()).await.unwrap()).store()
    }

    async fn transfer(&self, tenant: &str) -> redis::Transfer {
        redis::Transfer::open(&self.settings(tenant), &test_sealing()).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

async fn migrate(source: &mut dyn Source, target: &mut dyn Target) -> u64 {
    let options = MigrationOptions {
        from: "here".into(),
        to: "there".into(),
        keep_source: false,
        overwrite_incomplete: false,
    };
    let now = |last: Option<&AuditRecord>| last.map_or(Timestamp::UNIX_EPOCH, |last| last.event.at);
    let counts = transfer(source, target, &options, now).await.unwrap().counts;
    counts[&Part::Records("badges".to_owned())]
}

fn file(path: &Path) -> embedded::Transfer {
    embedded::Transfer::open(path, &test_sealing()).unwrap()
}

#[tokio::test]
async fn a_kind_of_record_that_one_file_adds_works_on_every_backend() {
    let (dir, server) = (TempDir::new().unwrap(), Server::start().await);
    story(&Memory::default()).await;
    story(&Embedded::open(&dir.path().join("badges.db"), &test_sealing()).unwrap()).await;
    story(&server.store("t").await).await;
}

#[tokio::test]
async fn a_kind_of_record_that_one_file_adds_moves_between_the_backends() {
    let (dir, server) = (TempDir::new().unwrap(), Server::start().await);
    let (first, last) = (dir.path().join("first.db"), dir.path().join("last.db"));
    story(&Embedded::open(&first, &test_sealing()).unwrap()).await;
    assert_eq!(migrate(&mut file(&first), &mut server.transfer("t").await).await, 3, "one is deleted");
    is_as_left(&server.store("t").await).await;
    assert_eq!(migrate(&mut server.transfer("t").await, &mut file(&last)).await, 3);
    let store = Embedded::open(&last, &test_sealing()).unwrap();
    is_as_left(&store).await;
    store.commit(change().put(&1, badge("top", "one"), Expect::Absent)).await.unwrap();
    assert_eq!(store.get::<Badge>(&1).await.unwrap().unwrap().version, 5, "its versions count on");
}
