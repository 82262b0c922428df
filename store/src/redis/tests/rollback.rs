//! A server that was put back and has grown past the records that a broker knows, before that broker looks again.

use super::*;
use crate::coordination::MemberInfo;

/// Puts the server back to its first record, and has another broker write more records than were there before.
async fn put_back_and_grow(server: &mut RedisServer, store: &Broker) {
    let (kept, copy) = (server.dir.path().join("appendonlydir"), server.dir.path().join("copy"));
    store.commit(a_change(1)).await.unwrap();
    let copied = Command::new("cp").arg("-a").arg(&kept).arg(&copy).status().unwrap();
    assert!(copied.success());
    store.commit(a_change(2)).await.unwrap();
    store.commit(a_change(3)).await.unwrap();
    server.kill();
    std::fs::remove_dir_all(&kept).unwrap();
    std::fs::rename(&copy, &kept).unwrap();
    server.restart().await;
    let other = Broker::open(&server.store("t")).await.unwrap();
    for _ in 0..10 {
        let event = AuditEvent::done(start(), "another broker", "tested");
        other.commit(Transaction::default().audit(event)).await.unwrap();
    }
}

/// Returns the first error that is not only of the connection, which breaks with the server.
async fn refusal<T: std::fmt::Debug>(mut call: impl AsyncFnMut() -> Result<T, StoreError>) -> String {
    for _ in 0..1000 {
        match call().await {
            Err(StoreError::Unavailable { source }) if source.to_string().contains("the store went back") => {
                return source.to_string();
            }
            Err(StoreError::Unavailable { .. } | StoreError::Fenced { .. }) => {}
            answer => panic!("{answer:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it does not come back");
}

async fn is_noticed<T: std::fmt::Debug>(call: impl AsyncFn(&Broker) -> Result<T, StoreError>) {
    let mut server = RedisServer::durable().await;
    let store = Broker::open(&server.store("t")).await.unwrap();
    put_back_and_grow(&mut server, &store).await;
    let reason = refusal(async || call(&store).await).await;
    assert!(reason.contains("record 3"), "{reason}");
    let alarm = tokio::time::timeout(Duration::from_secs(20), store.lost()).await.unwrap();
    // The error of a commit has more words around it.
    assert!(reason.contains(&alarm), "{reason}: {alarm}");
}

#[tokio::test]
async fn i1_a_store_that_went_back_and_grew_again_is_noticed_by_a_read() {
    is_noticed(async |store| store.open_grants().await).await;
}

#[tokio::test]
async fn i1_a_store_that_went_back_and_grew_again_is_noticed_by_a_renewal() {
    is_noticed(async |store| store.redis.renew(&MemberInfo::default()).await).await;
}

#[tokio::test]
async fn i1_a_store_that_went_back_and_grew_again_is_noticed_by_a_commit() {
    is_noticed(async |store| {
        // The membership may be gone with the lost records, and is not what is tested.
        let key = format!("{{postern:t}}:alive:{}", store.redis.membership.id());
        let mut set = redis::cmd("SET");
        set.arg(key).arg("1").query_async::<()>(&mut store.redis.reader.clone()).await.ok();
        store.commit(a_change(4)).await
    })
    .await;
}

#[tokio::test]
async fn i1_a_store_that_went_back_and_grew_again_is_noticed_by_a_look_at_its_head() {
    is_noticed(async |store| store.audit_head().await).await;
}
