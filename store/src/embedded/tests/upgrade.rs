//! A database of an older schema is brought to this one, whole.

use super::*;
use crate::schema_2::{AGENTS, GRANTS, POLICIES, REQUESTS, TOKENS, audit_log, is_whole};

/// The schema 2, as brokers made it.
const SCHEMA_2: &str = "
    CREATE TABLE grants (
        id TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        state TEXT NOT NULL,
        open INTEGER NOT NULL,
        principal TEXT NOT NULL,
        body TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX grants_open ON grants (id) WHERE open = 1;
    CREATE INDEX grants_principal ON grants (principal, id);
    CREATE TABLE grant_targets (
        target TEXT NOT NULL,
        id TEXT NOT NULL,
        open INTEGER NOT NULL,
        PRIMARY KEY (target, open, id)
    ) WITHOUT ROWID;
    CREATE TABLE requests (
        principal TEXT NOT NULL,
        key TEXT NOT NULL,
        id TEXT NOT NULL,
        PRIMARY KEY (principal, key)
    ) WITHOUT ROWID;
    CREATE TABLE policies (name TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT) WITHOUT ROWID;
    CREATE TABLE agents (target TEXT PRIMARY KEY, version INTEGER NOT NULL, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE tokens (hash BLOB PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE audit (seq INTEGER PRIMARY KEY, line TEXT NOT NULL);
    CREATE TABLE marks (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
    PRAGMA user_version = 2;
";

/// Makes a database as a broker of schema 2 leaves it.
fn old_database(path: &Path) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch(SCHEMA_2).unwrap();
    let put = |sql: &str, values: &[&dyn rusqlite::ToSql]| assert_eq!(db.execute(sql, values).unwrap(), 1);
    for it in &GRANTS {
        let sql = "INSERT INTO grants VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        put(sql, &[&it.id, &it.version, &it.state, &it.is_open, &it.principal, &it.body]);
        put("INSERT INTO grant_targets VALUES (?1, ?2, ?3)", &[&it.target, &it.id, &it.is_open]);
    }
    for (principal, key, id) in &REQUESTS {
        put("INSERT INTO requests VALUES (?1, ?2, ?3)", &[principal, key, id]);
    }
    for (name, version, body) in &POLICIES {
        put("INSERT INTO policies VALUES (?1, ?2, ?3)", &[name, version, body]);
    }
    for (target, version, body) in &AGENTS {
        put("INSERT INTO agents VALUES (?1, ?2, ?3)", &[target, version, body]);
    }
    for (hash, body) in &TOKENS {
        put("INSERT INTO tokens VALUES (?1, ?2)", &[hash, body]);
    }
    for (seq, line) in (1u64..).zip(audit_log().0) {
        put("INSERT INTO audit VALUES (?1, ?2)", &[&seq, &line]);
    }
    db
}

#[tokio::test]
async fn i4_a_database_of_schema_2_opens_with_all_its_records() {
    let (_dir, path) = a_place();
    old_database(&path).close().unwrap();
    is_whole(&Embedded::open(&path, &first_sealing()).unwrap()).await;
    // What it has become is what a new database is.
    let tables = |path: &Path| {
        let db = Connection::open(path).unwrap();
        let mut names =
            db.prepare("SELECT name FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name").unwrap();
        names.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    let (_dir, new) = a_place();
    drop(Embedded::open(&new, &test_sealing()).unwrap());
    assert_eq!(tables(&path), tables(&new));
}

#[tokio::test]
async fn i2_a_record_that_cannot_be_read_keeps_no_broker_from_starting_and_is_forged_from_then_on() {
    let (_dir, path) = a_place();
    let db = old_database(&path);
    db.execute_batch(
        "INSERT INTO grants VALUES ('junk', 1, 'opening', 1, 'alice', '{}');
         INSERT INTO grants VALUES ('01m8m2vwk16jfpqpqj7qjvr0jr', 1, 'opening', 1, 'alice', CAST(x'ff' AS TEXT));
         INSERT INTO requests VALUES ('a principal', 'k', 'no grant');
         INSERT INTO agents VALUES ('host:junk', 1, '{}');",
    )
    .unwrap();
    db.close().unwrap();
    let store = Embedded::open(&path, &first_sealing()).unwrap();
    is_whole(&store).await;
    let forged = store.agent(&"host:junk".parse().unwrap()).await;
    assert!(matches!(forged, Err(StoreError::Forged { .. })), "{forged:?}");
}
