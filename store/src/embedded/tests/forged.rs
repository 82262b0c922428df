//! A database that another program writes, and one that is not of this data directory.

use super::*;
use crate::forged_tests::{Attacked, run};
use crate::seal::{RecordsKey, Sealing};

/// A database of which the broker is stopped while another program writes it.
struct Database {
    _dir: TempDir,
    path: PathBuf,
}

impl Attacked for Database {
    type Store = Store;

    async fn open(&self) -> Store {
        Embedded::open(&self.path, &test_sealing()).unwrap()
    }

    async fn read(&self, kind: &str, key: &str) -> (u64, String) {
        let db = Connection::open(&self.path).unwrap();
        let sql = "SELECT version, body FROM documents WHERE place = ?1";
        db.query_row(sql, [format!("{kind}/{key}")], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
    }

    async fn write(&self, kind: &str, key: &str, version: &str, text: &str) {
        let db = Connection::open(&self.path).unwrap();
        let sql = "INSERT OR REPLACE INTO documents (place, version, indexes, body) VALUES (?1, ?2, \
                   coalesce((SELECT indexes FROM documents WHERE place = ?1), 'open'), ?3)";
        // A deleted record has no text.
        let text = Some(text).filter(|text| !text.is_empty());
        db.execute(sql, params![format!("{kind}/{key}"), version, text]).unwrap();
    }

    async fn lose(&self, kind: &str, key: &str) {
        let db = Connection::open(&self.path).unwrap();
        let sql = "DELETE FROM documents WHERE place = ?1";
        assert_eq!(db.execute(sql, [format!("{kind}/{key}")]).unwrap(), 1);
    }

    async fn write_raw(&self, kind: &str, key: &[u8], content: &[u8]) {
        let db = Connection::open(&self.path).unwrap();
        let sql = "INSERT OR REPLACE INTO documents (place, version, indexes, body) VALUES (CAST(?1 AS TEXT), 1, \
                   'open', CAST(?2 AS TEXT))";
        db.execute(sql, params![[kind.as_bytes(), b"/", key].concat(), content]).unwrap();
    }

    async fn enter_raw(&self, kind: &str, indexes: &[&str], key: &[u8]) {
        let db = Connection::open(&self.path).unwrap();
        for index in indexes {
            let entry = [format!("{kind}/{index}\n").as_bytes(), key].concat();
            db.execute("INSERT OR IGNORE INTO entries (entry) VALUES (CAST(?1 AS TEXT))", [entry]).unwrap();
        }
    }

    async fn enter(&self, kind: &str, index: &str, key: &str) {
        let db = Connection::open(&self.path).unwrap();
        db.execute("INSERT OR IGNORE INTO entries (entry) VALUES (?1)", [format!("{kind}/{index}\n{key}")])
            .unwrap();
    }
}

#[tokio::test]
async fn i7_a_program_that_writes_the_database_gets_nothing() {
    run(async || {
        let (dir, path) = a_place();
        Database { _dir: dir, path }
    })
    .await;
}

#[tokio::test]
async fn i7_bytes_that_are_no_text_stop_neither_the_start_nor_a_change() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    store.commit(a_change(1)).await.unwrap();
    store.commit(a_change(2)).await.unwrap();
    drop(store);
    let db = Connection::open(&path).unwrap();
    let first = a_grant().number(1).build();
    let sql = "UPDATE documents SET body = x'ff', indexes = x'fe', version = -1 WHERE place = ?1";
    assert_eq!(db.execute(sql, [format!("grants/{}", first.id)]).unwrap(), 1);
    drop(db);
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    assert_eq!(store.open_grants().await.unwrap().len(), 1);
    assert!(matches!(store.grant(first.id).await, Err(StoreError::Forged { .. })));
    store.commit(Transaction::default().put_grant(first.clone(), Expect::Any).audit(event())).await.unwrap();
    assert_eq!(store.grant(first.id).await.unwrap().unwrap().record, first);
}

#[tokio::test]
async fn i7_a_database_is_sealed_once_and_not_again_when_its_schema_is_set_back() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    store.commit(a_change(1)).await.unwrap();
    drop(store);
    let set_back = || {
        let db = Connection::open(&path).unwrap();
        let forged = a_grant().number(9).build();
        let (place, body) = (format!("grants/{}", forged.id), serde_json::to_string(&forged).unwrap());
        let sql =
            "INSERT OR REPLACE INTO documents (place, version, indexes, body) VALUES (?1, 1, 'open', ?2)";
        db.execute(sql, [place, body]).unwrap();
        db.execute("INSERT OR IGNORE INTO entries VALUES (?1)", [format!("grants/open\n{}", forged.id)])
            .unwrap();
        db.execute("DELETE FROM marks", []).unwrap();
        db.pragma_update(None, "user_version", 3).unwrap();
    };
    set_back();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    assert_eq!(store.open_grants().await.unwrap().len(), 1, "the forged grant is not sealed");
    drop(store);
    // A data directory that has sealed nothing yet takes the records as they are.
    set_back();
    let store = Embedded::open(&path, &first_sealing()).unwrap();
    assert!(store.grant(a_grant().number(9).build().id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_database_of_another_data_directory_is_refused_and_the_file_to_copy_is_named() {
    let (_dir, path) = a_place();
    let store = Embedded::open(&path, &test_sealing()).unwrap();
    store.commit(a_change(1)).await.unwrap();
    drop(store);
    let other = RecordsKey::from_bytes([8; 32]);
    for sealing in [Sealing::with(other.clone()), Sealing::first(other.clone())] {
        let refused = Embedded::open(&path, &sealing).unwrap_err();
        assert!(matches!(refused, StoreError::OtherKey), "{refused}");
        assert!(refused.to_string().contains("copy ca/records.key"), "{refused}");
    }
    Connection::open(&path).unwrap().execute("DELETE FROM marks", []).unwrap();
    let refused = Embedded::open(&path, &Sealing::first(other)).unwrap_err();
    assert!(matches!(refused, StoreError::OtherKey), "without a key it cannot have sealed them: {refused}");
    assert_eq!(Embedded::open(&path, &test_sealing()).unwrap().open_grants().await.unwrap().len(), 1);
}
