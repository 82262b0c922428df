//! Stores that commit at once on one Redis: each gets its turns, no commit fails for the others', and a head that another
//! answer overtook is not taken for a store that went back.

#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "helpers of tests fail like tests, and the shares are worth reading"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use postern_core::audit::{AuditEvent, verify};
use postern_core::{GrantId, PrincipalKey};
use postern_store::Transaction;
use postern_store::coordination::{Coordination as _, MemberInfo};
use postern_store::redis::{Endpoint, RedisSettings};
use postern_tests::Net;
use postern_tests::redis::{Group, Redis};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::broker::StoreBroker;
use crate::sentinel;

/// The number of commits that are under way at once at each store.
const COMMITTERS: usize = 32;
/// The number of readers beside them at each store, whose answers overtake the commits'.
const READERS: usize = 4;

/// The counts of one store.
#[derive(Default)]
struct Tally {
    commits: AtomicU64,
    /// The longest that one commit took, in ms.
    slowest: AtomicU64,
}

fn transaction(by: usize, number: u64) -> Transaction {
    let grant = GrantId::from_parts(Timestamp::UNIX_EPOCH, u128::from(number));
    let principal = PrincipalKey::parse(&format!("store-{by}")).unwrap();
    let key = format!("key-{number}");
    let event = AuditEvent::done(Timestamp::UNIX_EPOCH, "a test", "tested").with("by", by).with("n", number);
    Transaction::default().remember_request(&principal, &key, grant).audit(event)
}

/// Has so many stores commit for so long without a pause, and returns how many commits each did.
async fn contend(settings: RedisSettings, stores: usize, span: Duration) -> Vec<u64> {
    let mut opened = Vec::new();
    for _ in 0..stores {
        opened.push(Arc::new(StoreBroker::open(&settings).await.unwrap()));
    }
    let until = Instant::now() + span;
    let tallies: Vec<Arc<Tally>> = opened.iter().map(|_| Arc::default()).collect();
    let mut tasks = JoinSet::new();
    for (by, store) in opened.iter().enumerate() {
        let numbers = Arc::new(AtomicU64::new(0));
        for _ in 0..COMMITTERS {
            let (store, numbers, tally) = (Arc::clone(store), Arc::clone(&numbers), Arc::clone(&tallies[by]));
            tasks.spawn(async move {
                while Instant::now() < until {
                    let number = numbers.fetch_add(1, Ordering::SeqCst);
                    let began = Instant::now();
                    store.commit(transaction(by, number)).await.expect("a commit waits for its turn");
                    tally.commits.fetch_add(1, Ordering::SeqCst);
                    let took = u64::try_from(began.elapsed().as_millis()).unwrap();
                    tally.slowest.fetch_max(took, Ordering::SeqCst);
                }
            });
        }
        for _ in 0..READERS {
            let store = Arc::clone(store);
            tasks.spawn(async move {
                while Instant::now() < until {
                    store.audit_head().await.expect("a head that no answer overtook");
                }
            });
        }
        let store = Arc::clone(store);
        tasks.spawn(async move {
            // A member that does not renew is none any more after some seconds.
            while Instant::now() < until {
                store.redis.renew(&MemberInfo::default()).await.expect("a renewal");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("every task ends well");
    }
    for store in &opened {
        let lost = tokio::time::timeout(Duration::from_millis(1), store.lost()).await;
        assert!(lost.is_err(), "a store that lost nothing raises no alarm: {lost:?}");
    }
    is_whole(&opened[0], &tallies).await;
    let count = |tally: &Arc<Tally>| tally.commits.load(Ordering::SeqCst);
    let slowest = |tally: &Arc<Tally>| tally.slowest.load(Ordering::SeqCst);
    println!(
        "commits: {:?}, slowest in ms: {:?}",
        tallies.iter().map(count).collect::<Vec<_>>(),
        tallies.iter().map(slowest).collect::<Vec<_>>()
    );
    tallies.iter().map(count).collect()
}

/// The log is one chain, and has each commit once.
async fn is_whole(store: &StoreBroker, tallies: &[Arc<Tally>]) {
    let (mut lines, mut after) = (Vec::new(), 0);
    loop {
        let page = store.audit_lines(after, 10_000).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        after = *last;
        lines.extend(page.into_iter().map(|(_, line)| line));
    }
    let head = verify(lines.iter().map(String::as_str)).unwrap();
    assert_eq!(head, store.audit_head().await.unwrap());
    let mut found: BTreeMap<usize, u64> = BTreeMap::new();
    for line in &lines {
        let by = (0..tallies.len()).find(|by| line.contains(&format!("\"by\":\"{by}\"")));
        *found.entry(by.unwrap()).or_default() += 1;
    }
    for (by, tally) in tallies.iter().enumerate() {
        assert_eq!(found.get(&by).copied().unwrap_or(0), tally.commits.load(Ordering::SeqCst), "store {by}");
    }
}

/// Asserts that no store has less than half of what it would have if all had the same.
fn is_fair(commits: &[u64]) {
    let all: u64 = commits.iter().sum();
    let share = all / u64::try_from(commits.len()).unwrap() / 2;
    assert!(commits.iter().all(|count| *count >= share), "one store starves: {commits:?}");
}

fn on_one_server(stores: usize, span: Duration) {
    let net = Net::new();
    let redis = Redis::start(&net.hub);
    let settings = RedisSettings::at(redis.url(), "t");
    is_fair(&net.hub.netns().run(contend(settings, stores, span)));
}

#[test]
fn i8_two_stores_that_commit_as_fast_as_they_can_take_turns() {
    on_one_server(2, Duration::from_secs(20));
}

#[test]
fn i8_three_stores_that_commit_as_fast_as_they_can_take_turns() {
    on_one_server(3, Duration::from_secs(10));
}

#[test]
fn i8_two_stores_whose_commits_a_replica_confirms_take_turns() {
    let net = Net::new();
    let group = Group::start(&net.hub, 1);
    let endpoint = Endpoint::Url(group.url(0));
    let settings = RedisSettings { endpoint, replicas: 1, insecure: true, ..RedisSettings::at("", "t") };
    is_fair(&net.hub.netns().run(contend(settings, 2, Duration::from_secs(15))));
}

#[test]
fn i8_two_stores_behind_sentinels_take_turns() {
    let net = Net::new();
    let group = Group::start(&net.hub, 3);
    is_fair(&net.hub.netns().run(contend(sentinel::settings(&group, 1), 2, Duration::from_secs(15))));
}

#[test]
fn i8_a_store_that_died_in_its_turn_keeps_the_others_for_a_moment_only() {
    let net = Net::new();
    let redis = Redis::start(&net.hub);
    let settings = RedisSettings::at(redis.url(), "t");
    let socket = redis.socket();
    let took = net.hub.netns().run(async move {
        let dead = StoreBroker::open(&settings).await.unwrap();
        let living = StoreBroker::open(&settings).await.unwrap();
        living.commit(transaction(0, 1)).await.unwrap();
        // The turn is with a member that will never use it, and one that is gone is next.
        cli(&socket, &["SET", "{postern:t}:turn", &dead.redis.membership(), "PX", "300"]);
        cli(&socket, &["ZADD", "{postern:t}:queue", "0", "a-member-that-is-gone"]);
        let began = Instant::now();
        living.commit(transaction(0, 2)).await.unwrap();
        began.elapsed()
    });
    assert!(took >= Duration::from_millis(50), "the commit waits for the turn to end: {took:?}");
    assert!(took < Duration::from_secs(10), "the commit waits no longer than turns last: {took:?}");
}

fn cli(socket: &Path, command: &[&str]) {
    let status = Command::new("redis-cli").arg("-s").arg(socket).args(command).status().unwrap();
    assert!(status.success());
}
