//! A change of the audit log behind the broker's back is found, and named by its line (I9).

use postern_core::audit::{Broken, Head, verify};

use super::*;

const LINES: u64 = 10;

/// A store with a log, and the connection of an intruder.
async fn a_log() -> (TempDir, Store, Connection) {
    let (dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    for number in 0..LINES {
        store.commit(Transaction::default().audit(event().with("number", number))).await.unwrap();
    }
    let intruder = Connection::open(&path).unwrap();
    intruder.pragma_update(None, "synchronous", "OFF").unwrap();
    (dir, store, intruder)
}

async fn check(store: &Store) -> Result<Head, Broken> {
    let lines = store.audit_lines(0, usize::MAX).await.unwrap();
    verify(lines.iter().map(|(_, line)| line.as_str()))
}

fn write_line(intruder: &Connection, seq: u64, line: &[u8]) {
    let sql = "UPDATE audit SET line = CAST(?2 AS TEXT) WHERE seq = ?1";
    assert_eq!(intruder.execute(sql, params![seq, line]).unwrap(), 1);
}

#[tokio::test]
async fn i9_an_untouched_log_is_sound() {
    let (_dir, store, _intruder) = a_log().await;
    assert_eq!(check(&store).await.unwrap(), store.audit_head().await.unwrap());
}

#[tokio::test]
async fn i9_a_flipped_bit_is_named_by_its_line_wherever_it_is() {
    let (_dir, store, intruder) = a_log().await;
    for seq in [1, 4, LINES] {
        let (_, line) = store.audit_lines(seq - 1, 1).await.unwrap().remove(0);
        for place in 0..line.len() {
            let mut changed = line.clone().into_bytes();
            changed[place] ^= 1;
            write_line(&intruder, seq, &changed);
            let broken = check(&store).await.unwrap_err();
            assert_eq!(broken.line, seq, "byte {place}: {broken}");
        }
        write_line(&intruder, seq, line.as_bytes());
    }
    assert!(check(&store).await.is_ok());
}

#[tokio::test]
async fn i9_a_line_that_is_no_longer_text_is_named() {
    let (_dir, store, intruder) = a_log().await;
    let (_, line) = store.audit_lines(3, 1).await.unwrap().remove(0);
    let mut changed = line.into_bytes();
    changed[50] ^= 0x80;
    write_line(&intruder, 4, &changed);
    let error = store.audit_lines(0, 100).await.unwrap_err();
    assert_eq!(error.to_string(), "the store's audit record 4 cannot be read; restore a backup");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(store.audit_lines(4, 100).await.unwrap().len(), 6);
}

#[tokio::test]
async fn i9_a_removed_line_is_named_by_its_place() {
    let (_dir, store, intruder) = a_log().await;
    assert_eq!(intruder.execute("DELETE FROM audit WHERE seq = 6", []).unwrap(), 1);
    assert_eq!(check(&store).await.unwrap_err().line, 6);
    // Nor does it help to close the gap.
    intruder.execute("UPDATE audit SET seq = seq - 1 WHERE seq > 6", []).unwrap();
    assert_eq!(check(&store).await.unwrap_err().line, 6);
}

#[tokio::test]
async fn i9_two_swapped_lines_are_named_by_the_first() {
    let (_dir, store, intruder) = a_log().await;
    let swap = "UPDATE audit SET seq = -3 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 7;
        UPDATE audit SET seq = 7 WHERE seq = -3";
    intruder.execute_batch(swap).unwrap();
    assert_eq!(store.audit_lines(0, 100).await.unwrap().len(), 10);
    assert_eq!(check(&store).await.unwrap_err().line, 3);
}

#[tokio::test]
async fn i9_a_cut_end_shows_against_a_head_that_was_kept_though_the_log_went_on() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    let numbered = |number: u64| Transaction::default().audit(event().with("number", number));
    store.commit(numbered(1)).await.unwrap();
    let kept = store.commit(numbered(2)).await.unwrap();
    drop(store);
    Connection::open(&path).unwrap().execute("DELETE FROM audit WHERE seq = 2", []).unwrap();

    let store = Embedded::open(&path, &test_sealing()).unwrap();
    store.commit(numbered(3)).await.unwrap();
    let head = check(&store).await.unwrap();
    assert_eq!(head.seq, kept.seq);
    assert_ne!(head, kept);
}

#[tokio::test]
async fn i9_a_log_whose_end_cannot_be_read_is_not_continued() {
    let (_dir, store, intruder) = a_log().await;
    write_line(&intruder, LINES, b"nothing");
    drop(store);
    let error = Embedded::open(Path::new(intruder.path().unwrap()), &test_sealing()).unwrap_err();
    assert!(error.to_string().contains("audit record 10"), "{error}");
}
