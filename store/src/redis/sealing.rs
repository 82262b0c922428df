//! The seals of a store on Redis: the name of its key, and the one time at which records without seals are sealed.

use redis::aio::ConnectionLike;

use super::commands::{PAGE, command, guarded};
use super::error::redis_failed;
use super::keys::{pairs, parse_document};
use super::server::Server;
use crate::error::StoreError;
use crate::records::{SEALED, SealedKind};
use crate::seal::{Sealed, Sealing, has_seal};

/// The key with the name of the records key.
pub(super) const SEALED_MARK: &str = "sealed";

/// Refuses a store that was sealed with another key.
pub(super) async fn check<C: ConnectionLike + Send>(
    server: &Server,
    connection: &mut C,
    sealing: &Sealing,
) -> Result<(), StoreError> {
    let own = sealing.sealer(&server.tenant).key_id();
    match key_id(server, connection).await? {
        Some(key) if key != own => Err(StoreError::OtherKey),
        Some(_) | None => Ok(()),
    }
}

/// Names the key in the store, if no key is named there, and refuses a store that was sealed with another one.
pub(super) async fn name_key<C: ConnectionLike + Send>(
    server: &Server,
    connection: &mut C,
    sealing: &Sealing,
) -> Result<(), StoreError> {
    let mut name = redis::cmd("SETNX");
    name.arg(server.key(SEALED_MARK)).arg(sealing.sealer(&server.tenant).key_id());
    name.query_async::<()>(connection).await.map_err(redis_failed)?;
    check(server, connection, sealing).await
}

/// Returns the name of the key that the store was sealed with, if it was.
pub(super) async fn key_id<C: ConnectionLike + Send>(
    server: &Server,
    connection: &mut C,
) -> Result<Option<String>, StoreError> {
    let mut get = redis::cmd("GET");
    get.arg(server.key(SEALED_MARK)).query_async(connection).await.map_err(redis_failed)
}

/// Reports whether the store has records of a sealed kind.
pub(super) async fn has_records<C: ConnectionLike + Send>(
    server: &Server,
    connection: &mut C,
) -> Result<bool, StoreError> {
    let mut count = redis::cmd("EXISTS");
    count.arg(SEALED.map(|sealed| server.key(sealed.kind.name)).as_slice());
    let found: u64 = count.query_async(connection).await.map_err(redis_failed)?;
    Ok(found > 0)
}

/// Seals every record that has no seal and can be read, while the mark of an upgrade is there. Reports whether it was; repeating it
/// changes nothing.
pub(super) async fn seal_all<C: ConnectionLike + Send>(
    server: &Server,
    connection: &mut C,
    sealing: &Sealing,
    mark: (&str, &str),
) -> Result<bool, StoreError> {
    let sealer = sealing.sealer(&server.tenant);
    for SealedKind { kind, reads } in SEALED {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(server.key(kind.name)).arg(&cursor).arg("COUNT").arg(PAGE);
            let (next, texts): (String, Vec<Vec<u8>>) =
                scan.query_async(connection).await.map_err(redis_failed)?;
            let mut commands = Vec::new();
            for (key, text) in pairs(texts) {
                let (Ok(key), Some((version, body))) = (str::from_utf8(&key), parse_document(&text)) else {
                    continue;
                };
                if !has_seal(body) && reads(body) {
                    let sealed = sealer.seal(Sealed { kind: kind.name, key, version }, body);
                    commands.push(command(["HSET", kind.name, key, &format!("{version} {sealed}")]));
                }
            }
            if !guarded(server, connection, mark, &commands).await? {
                return Ok(false);
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    Ok(true)
}
