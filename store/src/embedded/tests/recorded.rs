//! A database that a broker of version 0.1 left, kept as it was: every later version reads each record of it with the same meaning.

use postern_core::audit::verify;
use postern_core::{Grant, Policy};
use serde::Serialize;
use serde_json::Value;

use super::*;
use crate::record::Record;
use crate::records::agent::AgentRecord;
use crate::records::issued::IssuedPrincipal;
use crate::records::request::RequestRecord;
use crate::records::revocation::Revocation;
use crate::records::token::TokenRecord;
use crate::seal::{RecordsKey, without_seal};

/// The database, as statements.
const SCHEMA_4: &str = include_str!("schema_4.sql");
/// The key with which that broker sealed its records.
const KEY: &str = "0de5893e12599551aab9366ac4f60294a7f600bdbf0989aa70654f39d59168a1";

/// Reports whether a value says what was recorded. What later versions have added is not set.
fn says_the_same(now: &Value, recorded: &Value) -> bool {
    let (Value::Object(now), Value::Object(recorded)) = (now, recorded) else {
        return now == recorded;
    };
    recorded.iter().all(|(key, value)| now.get(key).is_some_and(|now| says_the_same(now, value)))
        && now.iter().all(|(key, value)| recorded.contains_key(key) || value.is_null())
}

/// Reads each record of a kind, and checks that it says what its text in the database says. Returns the number of records.
async fn means_the_same<R: Record + Serialize>(store: &Store, db: &Connection) -> usize {
    let page = store.scan::<R>(None, 100).await.unwrap();
    assert_eq!((page.forged.len(), page.next), (0, None), "{}", R::KIND.name);
    for found in &page.found {
        let place = format!("{}/{}", R::KIND.name, found.key);
        let (version, body): (u64, String) = db
            .query_row("SELECT version, body FROM documents WHERE place = ?1", [&place], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        let recorded: Value = serde_json::from_str(without_seal(&body)).unwrap();
        let now = serde_json::to_value(&found.record).unwrap();
        assert_eq!(found.version, version, "{place}");
        assert!(says_the_same(&now, &recorded), "{place}: {now} instead of {recorded}");
    }
    page.found.len()
}

#[tokio::test]
async fn i4_a_database_of_version_0_1_opens_and_each_record_means_the_same() {
    let (_dir, path) = a_place();
    let db = Connection::open(&path).unwrap();
    db.execute_batch(SCHEMA_4).unwrap();
    db.close().unwrap();
    let sealing = Sealing::with(RecordsKey::from_text(KEY).unwrap());
    let store = Embedded::open(&path, &sealing).unwrap();
    // Beside the store, for the texts as they were written.
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(SCHEMA_4).unwrap();
    let counts = [
        means_the_same::<Grant>(&store, &db).await,
        means_the_same::<Policy>(&store, &db).await,
        means_the_same::<AgentRecord>(&store, &db).await,
        means_the_same::<TokenRecord>(&store, &db).await,
        means_the_same::<RequestRecord>(&store, &db).await,
        means_the_same::<Revocation>(&store, &db).await,
        means_the_same::<IssuedPrincipal>(&store, &db).await,
    ];
    assert_eq!(counts, [2, 1, 1, 1, 2, 1, 3]);
    assert_eq!(store.open_grants().await.unwrap().len(), 2, "by the index");
    // That version named each policy's version alone.
    let manifest = store.durable_manifest().await.unwrap().unwrap();
    let marks: Vec<_> = manifest.policies.iter().map(|(name, mark)| (name.as_str(), mark.version)).collect();
    assert_eq!((manifest.generation, marks), (3, vec![("web", 1)]));
    assert_eq!(store.policies().await.unwrap().len(), 1);
    let log = store.audit_lines(0, 100).await.unwrap();
    let head = verify(log.iter().map(|(_, line)| line.as_str())).unwrap();
    assert_eq!((head, head.seq), (store.audit_head().await.unwrap(), 14));
}
