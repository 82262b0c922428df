mod audit;
mod forged;
mod killed;
mod recorded;
mod upgrade;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use postern_core::audit::{AuditEvent, verify};
use postern_core::{AgentKeys, CloseReason, Event, TargetId};
use rusqlite::types::Value;
use tempfile::TempDir;

use super::*;
use crate::testing::builders::{a_grant, a_policy, at, key, start};
use crate::testing::conformance::{self, Leasing as _};
use crate::testing::{first_sealing, test_sealing};
use crate::{AgentRecord, Expect, GrantQuery, Medium, TokenHash, TokenRecord, Transaction};

/// A directory with a database, and its path.
fn a_place() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("postern.db");
    (dir, path)
}

fn event() -> AuditEvent {
    AuditEvent::done(start(), "a test", "tested")
}

fn a_change(number: u8) -> Transaction {
    let grant = a_grant().number(number).build();
    Transaction::default().put_grant(grant, Expect::Absent).audit(event())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let number = std::cell::Cell::new(0);
    conformance::run(async || {
        number.set(number.get() + 1);
        Embedded::open(&dir.path().join(format!("{}.db", number.get())), &test_sealing()).unwrap()
    })
    .await;
}

/// Everything that the store holds, in words.
async fn everything(store: &Store) -> String {
    let all = GrantQuery { limit: usize::MAX, ..GrantQuery::default() };
    format!(
        "{:#?}",
        (
            (store.grants(all).await.unwrap(), store.open_grants().await.unwrap()),
            store.grant_of_request(&key("alice"), "key").await.unwrap(),
            (store.policies().await.unwrap(), store.agents().await.unwrap()),
            store.token(&TokenHash([7; 32])).await.unwrap(),
            store.snapshot(&store.lease(&"host:vm-1".parse().unwrap()).await).await.unwrap(),
            (store.audit_head().await.unwrap(), store.audit_lines(0, usize::MAX).await.unwrap()),
        )
    )
}

#[tokio::test]
async fn i4_what_was_committed_is_there_when_it_is_opened_again() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    let (open, deleted) = (a_grant().number(1).build(), a_policy().named("deleted").build());
    let closing = a_grant().number(2).build().after(Event::Close(CloseReason::Expired), at(60)).unwrap();
    let closed = closing.after(Event::ClosedEverywhere, at(61)).unwrap();
    let target: TargetId = "host:vm-1".parse().unwrap();
    let (enrolled_at, certificate_not_after) = (start(), at(3600));
    let keys = AgentKeys::none();
    let agent = AgentRecord::enrolled(target.clone(), enrolled_at, certificate_not_after, keys);
    let token = TokenRecord { target, created_at: at(0), expires_at: at(60) };
    let all = Transaction::default()
        .put_grant(open.clone(), Expect::Absent)
        .put_grant(closed.clone(), Expect::Absent)
        .remember_request(&key("alice"), "key", open.id)
        .put_policy(a_policy().build(), Expect::Absent)
        .put_policy(deleted.clone(), Expect::Absent)
        .delete_policy(&deleted.name)
        .put_agent(agent, Expect::Absent)
        .put_token(TokenHash([7; 32]), token)
        .audit(event());
    let head = store.commit(all).await.unwrap();
    let before = everything(&store).await;
    drop(store);

    let store = Embedded::open(&path, &test_sealing()).unwrap();
    assert_eq!(everything(&store).await, before);
    assert_eq!(store.audit_head().await.unwrap(), head);
    assert_eq!(store.grant(closed.id).await.unwrap().unwrap().record, closed);
    let put = |expect| Transaction::default().put_policy(deleted.clone(), expect).audit(event());
    assert!(store.commit(put(Expect::Version(1))).await.is_err(), "it was deleted");
    assert_eq!(store.commit(put(Expect::Absent)).await.unwrap().seq, head.seq + 1);
    assert_eq!(store.policy(&deleted.name).await.unwrap().unwrap().version, 3, "it counts on");
}

#[tokio::test]
async fn i4_a_commit_waits_for_the_disk() {
    let (_dir, path) = a_place();
    let mut found = None;
    let store = Embedded::open_with(&path, &test_sealing(), |db| {
        let pragma = |name| db.pragma_query_value(None, name, |row| row.get::<_, Value>(0));
        found = Some((pragma("journal_mode")?, pragma("synchronous")?));
        Ok(())
    });
    store.unwrap();
    // 2 is FULL: the log is synchronised at every commit.
    assert_eq!(found, Some((Value::Text("wal".to_owned()), Value::Integer(2))));
}

#[tokio::test]
async fn its_files_are_for_their_owner_alone() {
    let (dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    store.commit(a_change(1)).await.unwrap();
    let mut modes = BTreeMap::new();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
        modes.insert(entry.file_name().into_string().unwrap(), mode);
    }
    let files = ["postern.db", "postern.db-shm", "postern.db-wal", "postern.lock"];
    assert_eq!(modes, files.map(|file| (file.to_owned(), 0o600)).into());
}

#[tokio::test]
async fn one_broker_has_it_open_at_a_time() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    let StoreError::Unavailable { source } = Embedded::open(&path, &test_sealing()).unwrap_err() else {
        panic!()
    };
    assert!(source.to_string().contains(path.to_str().unwrap()), "{source}");
    store.commit(a_change(1)).await.unwrap();
    drop(store);
    Embedded::open(&path, &test_sealing()).unwrap();
}

#[test]
fn a_database_of_a_newer_broker_is_not_touched() {
    let (_dir, path) = a_place();
    drop(Embedded::open(&path, &test_sealing()).unwrap());
    let newer = Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    // As the newer broker leaves it when it is killed, and when it ends.
    let (_dir, killed) = a_place();
    for suffix in ["", "-wal"] {
        fs::copy(with_suffix(&path, suffix), with_suffix(&killed, suffix)).unwrap();
    }
    newer.close().unwrap();
    for path in [killed, path] {
        let files = || ["", "-wal"].map(|suffix| fs::read(with_suffix(&path, suffix)).unwrap_or_default());
        let before = files();
        let error = Embedded::open(&path, &test_sealing()).unwrap_err();
        assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error}");
        assert!(files() == before, "{} or its log was changed", path.display());
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_kept() {
    let (_dir, path) = a_place();
    fs::write(&path, "certainly not a database, but as long as one would be".repeat(100)).unwrap();
    let before = fs::read(&path).unwrap();
    let error = Embedded::open(&path, &test_sealing()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_full_disk_refuses_changes_nothing_and_is_no_end() {
    let (_dir, path) = a_place();
    // No database can be made smaller than it is: this one has no page to spare.
    let full = "CREATE TABLE ballast (bytes); INSERT INTO ballast VALUES (zeroblob(500000));
        PRAGMA max_page_count = 1";
    let store = Embedded::open_with(&path, &test_sealing(), |db| db.execute_batch(full)).unwrap();
    store.commit(a_change(1)).await.unwrap();
    let before = everything(&store).await;
    let big = || {
        a_change(2)
            .put_policy(a_policy().build(), Expect::Absent)
            .audit(event().with("much", "x".repeat(20_000)))
    };
    let refused = store.commit(big()).await;
    assert!(matches!(refused, Err(StoreError::Full(Medium::Disk))), "{refused:?}");
    assert_eq!(everything(&store).await, before);

    // In a group with one that is too big, what is small is refused with it, or kept whole.
    let outcomes = join_all([store.commit(big()), store.commit(a_change(3))]).await;
    assert!(matches!(outcomes[0], Err(StoreError::Full(Medium::Disk))), "{outcomes:?}");
    let there = store.grant(a_grant().number(3).build().id).await.unwrap().is_some();
    assert_eq!(there, outcomes[1].is_ok());

    let seq = store.audit_head().await.unwrap().seq;
    Connection::open(&path).unwrap().execute_batch("DROP TABLE ballast").unwrap();
    assert_eq!(store.commit(big()).await.unwrap().seq, seq + 2, "there is room again");
    let after = everything(&store).await;
    drop(store);

    let store = Embedded::open(&path, &test_sealing()).unwrap();
    assert_eq!(everything(&store).await, after);
    let lines = store.audit_lines(0, usize::MAX).await.unwrap();
    let head = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
    assert_eq!(head, store.audit_head().await.unwrap());
}

#[tokio::test]
async fn i10_what_deleted_records_have_left_counts_as_room() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    let left = || unused(&Connection::open(&path).unwrap()).unwrap();
    let before = left();
    let tokens: Vec<TokenHash> = (0..200).map(|number| TokenHash([number; 32])).collect();
    let token = TokenRecord { target: "host:vm-1".parse().unwrap(), created_at: at(0), expires_at: at(60) };
    let all = tokens.iter().fold(Transaction::default(), |all, hash| all.put_token(*hash, token.clone()));
    store.commit(all.audit(event())).await.unwrap();
    let none = tokens.iter().fold(Transaction::default(), |none, hash| none.take_token(hash));
    store.commit(none.audit(event())).await.unwrap();
    assert!(left() > before, "{} {before}", left());
    assert_eq!([free(LOG_ROOM, 9), free(LOG_ROOM - 1, 9)], [LOG_ROOM + 9, LOG_ROOM - 1]);
    assert!(store.backend().room().await.unwrap().is_some());
}

#[tokio::test]
async fn one_conflict_in_a_group_refuses_no_other_transaction() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    let changes = (0..200u8).map(|n| store.commit(a_change(n % 100)));
    let outcomes = join_all(changes).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 100);
    assert_eq!(store.audit_head().await.unwrap().seq, 100);
    assert_eq!(store.open_grants().await.unwrap().len(), 100);
}

#[tokio::test]
async fn all_that_wait_share_a_commit_and_each_is_answered() {
    const MANY: u64 = 1000;
    let (_dir, path) = a_place();
    let store =
        Embedded::open_with(&path, &test_sealing(), |db| db.pragma_update(None, "wal_autocheckpoint", 0))
            .unwrap();
    let log = with_suffix(&path, "-wal");
    let before = commits_in(&fs::read(&log).unwrap());
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The writer waits for the other connection, and every transaction that comes meanwhile waits for the writer.
    let all = join_all((0..MANY).map(|_| store.commit(Transaction::default().audit(event()))));
    let (outcomes, ()) = tokio::join!(all, async { other.execute_batch("ROLLBACK").unwrap() });
    let mut places: Vec<u64> = outcomes.into_iter().map(|outcome| outcome.unwrap().seq).collect();
    places.sort_unstable();
    assert!(places.into_iter().eq(1..=MANY));
    let commits = commits_in(&fs::read(&log).unwrap()) - before;
    assert!((1..=5).contains(&commits), "{commits} commits");
}

/// Counts the commits in SQLite's log: the frames that carry a database size
/// (<https://www.sqlite.org/fileformat2.html#the_write_ahead_log>).
fn commits_in(log: &[u8]) -> usize {
    let page_size = u32::from_be_bytes(log[8..12].try_into().unwrap()) as usize;
    log[32..].chunks(24 + page_size).filter(|frame| frame[4..8] != [0; 4]).count()
}

#[tokio::test]
async fn a_look_does_not_wait_for_a_writer() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    store.commit(a_change(1)).await.unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE; DELETE FROM documents").unwrap();
    let looked = tokio::time::timeout(
        Duration::from_secs(20),
        store.grants(GrantQuery { limit: 9, ..GrantQuery::default() }),
    );
    assert_eq!(looked.await.unwrap().unwrap().len(), 1);
}
