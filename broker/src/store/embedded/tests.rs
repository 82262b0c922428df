use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use postern_core::audit::{AuditEvent, verify};
use tempfile::TempDir;

use super::*;
use crate::samples::{a_grant, a_policy, start};
use crate::store::{Change, Expect, conformance};

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
    Transaction::default().change(Change::PutGrant { grant, expect: Expect::Absent }).audit(event())
}

#[tokio::test]
async fn it_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let number = std::cell::Cell::new(0);
    conformance::run(async || {
        number.set(number.get() + 1);
        Embedded::open(&dir.path().join(format!("{}.db", number.get()))).unwrap()
    })
    .await;
}

#[tokio::test]
async fn i4_what_was_committed_is_there_when_it_is_opened_again() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path).unwrap();
    store.commit(a_change(1)).await.unwrap();
    let policy = Change::PutPolicy { policy: a_policy().build(), expect: Expect::Absent };
    let head = store.commit(Transaction::default().change(policy).audit(event())).await.unwrap();
    drop(store);

    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.audit_head().await.unwrap(), head);
    let snapshot = store.snapshot(&"host:vm-1".parse().unwrap()).await.unwrap();
    assert_eq!((snapshot.grants.len(), snapshot.policies.len(), snapshot.seq), (1, 1, head.seq));
    assert_eq!(store.commit(a_change(2)).await.unwrap().seq, head.seq + 1);
}

#[tokio::test]
async fn its_files_are_its_owners_alone_and_one_broker_has_them_at_a_time() {
    let (dir, path) = a_place();
    let _store = Embedded::open(&path).unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.file_name());
    }
    let second = Embedded::open(&path).unwrap_err();
    let StoreError::Unavailable { source } = second else { panic!("{second}") };
    assert!(source.to_string().contains("another broker holds"), "{source}");
}

#[tokio::test]
async fn a_database_of_a_newer_broker_is_not_touched() {
    let (_dir, path) = a_place();
    drop(Embedded::open(&path).unwrap());
    let newer = Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 99).unwrap();
    newer.close().unwrap();
    let before = fs::read(&path).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::NewerSchema { found: 99, .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_and_kept() {
    let (_dir, path) = a_place();
    fs::write(&path, "certainly not a database, but as long as one would be".repeat(100)).unwrap();
    let before = fs::read(&path).unwrap();
    let error = Embedded::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test]
async fn a_full_disk_refuses_changes_nothing_and_is_no_end() {
    let (_dir, path) = a_place();
    let store = Embedded::open_with(&path, |db| db.pragma_update(None, "max_page_count", 40)).unwrap();
    let big = || event().with("much", "x".repeat(20_000));
    let mut kept = 0;
    let full = loop {
        match store.commit(Transaction::default().audit(big())).await {
            Ok(head) => kept = head.seq,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::Full), "{full}");
    assert!(kept > 0);
    assert_eq!(store.audit_head().await.unwrap().seq, kept);

    // In a group with one that is too big, what is small is refused with it, or kept whole.
    let outcomes =
        join_all([store.commit(Transaction::default().audit(big())), store.commit(a_change(1))]).await;
    assert!(matches!(outcomes[0], Err(StoreError::Full)));
    let there = store.grant(a_grant().number(1).build().id).await.unwrap().is_some();
    assert_eq!(there, outcomes[1].is_ok());
    let seq = store.audit_head().await.unwrap().seq;
    drop(store);

    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.audit_head().await.unwrap().seq, seq);
    store.commit(a_change(2)).await.unwrap();
    let lines = store.audit_lines(0, 1000).await.unwrap();
    verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
}

#[tokio::test]
async fn one_conflict_in_a_group_hurts_nobody_else() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path).unwrap();
    let changes = (0..200u8).map(|n| store.commit(a_change(n % 100)));
    let outcomes = join_all(changes).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 100);
    assert_eq!(store.audit_head().await.unwrap().seq, 100);
    assert_eq!(store.open_grants().await.unwrap().len(), 100);
}

#[tokio::test]
async fn i9_a_log_that_was_changed_on_disk_is_found_out_with_the_place() {
    for (sql, line) in [
        ("UPDATE audit SET line = replace(line, '\"number\":\"3\"', '\"number\":\"4\"') WHERE seq = 4", 4),
        ("DELETE FROM audit WHERE seq = 6", 6),
        ("UPDATE audit SET line = (SELECT line FROM audit WHERE seq = 8) WHERE seq = 7", 7),
    ] {
        let (_dir, path) = a_place();
        let store = Embedded::open(&path).unwrap();
        for number in 0..10 {
            store.commit(Transaction::default().audit(event().with("number", number))).await.unwrap();
        }
        drop(store);
        let changed = Connection::open(&path).unwrap().execute(sql, []).unwrap();
        assert_eq!(changed, 1, "{sql}");
        let store = Embedded::open(&path).unwrap();
        let lines = store.audit_lines(0, 100).await.unwrap();
        let broken = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap_err();
        assert_eq!(broken.line, line, "{sql}: {broken}");
    }
}

/// Tells the child that [`i4_kill_9_loses_nothing_that_was_answered`] starts what to do.
const CHILD: &str = "POSTERN_TEST_STORE";

#[test]
fn i4_kill_9_loses_nothing_that_was_answered() {
    if let Some(path) = std::env::var_os(CHILD) {
        return commit_for_ever(Path::new(&path));
    }
    let (_dir, path) = a_place();
    let mut known = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::embedded::tests::i4_kill_9_loses_nothing_that_was_answered",
                "--nocapture",
            ])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut answered = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("answered ")?.parse::<u64>().ok());
        known = answered.nth(20 + 17 * round).unwrap();
        child.kill().unwrap();
        // What it had said before it died.
        known = answered.last().unwrap_or(known);
        child.wait().unwrap();

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let store = Embedded::open(&path).unwrap();
        let lines = runtime.block_on(store.audit_lines(0, usize::MAX / 2)).unwrap();
        let head = verify(lines.iter().map(|(_, line)| line.as_str())).unwrap();
        assert!(head.seq >= known, "{known} was answered, and {} is the last", head.seq);
    }
    assert!(known > 100);
}

fn commit_for_ever(path: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Embedded::open(path).unwrap();
    let until = std::time::Duration::from_secs(30);
    let work = async {
        loop {
            let commits = (0..4).map(|_| store.commit(Transaction::default().audit(event())));
            let ends: Vec<u64> = join_all(commits).await.into_iter().map(|head| head.unwrap().seq).collect();
            let newest = ends.into_iter().max().unwrap();
            let mut out = std::io::stdout();
            writeln!(out, "answered {newest}").and_then(|()| out.flush()).unwrap();
        }
    };
    runtime.block_on(async { tokio::time::timeout(until, work).await.unwrap_or(()) });
}

#[tokio::test]
async fn a_look_does_not_wait_for_a_writer() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path).unwrap();
    store.commit(a_change(1)).await.unwrap();
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE; DELETE FROM grants").unwrap();
    let looked = tokio::time::timeout(
        Duration::from_secs(1),
        store.grants(GrantQuery { limit: 9, ..GrantQuery::default() }),
    );
    assert_eq!(looked.await.unwrap().unwrap().len(), 1);
}
