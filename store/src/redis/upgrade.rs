//! The upgrade of a store of an older schema, which survives a crash at any point.
//!
//! The first step is one script (`upgrade.lua`): it raises the schema, marks the store as being upgraded, and ends every
//! membership. From then on Redis refuses the commits of a broker of the older schema, and that broker refuses to join. Every
//! later step can be repeated, and is made only while the mark is there. A broker that finds the mark repeats the upgrade from
//! its first step, and joins the members once the mark is gone.
//!
//! Schema 3 kept records without seals: a data directory that has no key yet seals them as they are, once. Every other one leaves
//! them, and they are forged. Schema 2 kept requests and join tokens without versions, and the indexes of grants under names of their own.

use postern_core::{Grant, GrantId, PrincipalKey};
use redis::Script;
use redis::aio::ConnectionLike;

use super::commands::{Command, PAGE, command, guarded, index};
use super::error::{message, redis_failed};
use super::keys::{SCHEMA, parse_document};
use super::marks::{UPGRADE, UPGRADING};
use super::sealing::{has_records, key_id, seal_all};
use super::server::Server;
use crate::body::{corrupt, from_body, to_body};
use crate::error::StoreError;
use crate::record::Record as _;
use crate::records::request::{RequestKey, RequestRecord};
use crate::seal::{Sealing, without_seal};

/// The indexes of schema 2, as patterns.
const OLD_INDEXES: [&str; 5] = ["all", "open", "of:*", "on:*", "open:*"];

/// Upgrades a store, if it is of an older schema or if an upgrade of it was not completed.
///
/// # Errors
/// The store was written by a newer broker or sealed with another key, or a record in it cannot be read.
pub(super) async fn upgrade<C: ConnectionLike + Send>(
    server: &Server,
    connection: &mut C,
    sealing: &Sealing,
) -> Result<(), StoreError> {
    let mut get = redis::cmd("MGET");
    get.arg(server.key("schema")).arg(server.key(UPGRADING));
    let (schema, mark): (Option<u32>, Option<String>) =
        get.query_async(connection).await.map_err(redis_failed)?;
    let Some(found) = schema else { return Ok(()) };
    if found > SCHEMA {
        return Err(StoreError::NewerSchema { found, known: SCHEMA });
    }
    if found == SCHEMA && mark.is_none() {
        // A data directory without a key cannot have sealed these records.
        let is_other = sealing.is_first() && key_id(server, connection).await?.is_none();
        return if is_other && has_records(server, connection).await? {
            Err(StoreError::OtherKey)
        } else {
            Ok(())
        };
    }
    let script = Script::new(include_str!("upgrade.lua"));
    let mut script = script.key(&server.prefix);
    script.arg(SCHEMA).arg(sealing.sealer(&server.tenant).key_id());
    if script.invoke_async::<String>(connection).await.map_err(redis_failed)? == "other" {
        return Err(StoreError::OtherKey);
    }
    for (kind, change) in [("requests", request as Change), ("tokens", token), ("grants", grant)] {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(server.key(kind)).arg(&cursor).arg("COUNT").arg(PAGE);
            let (next, pairs): (String, Vec<(String, String)>) =
                scan.query_async(connection).await.map_err(redis_failed)?;
            let mut commands = Vec::new();
            for (field, text) in pairs {
                match change(field, text) {
                    Ok(changes) => commands.extend(changes),
                    // This data directory has sealed its records: what is neither sealed nor whole is another program's.
                    Err(_) if !sealing.is_first() => {}
                    Err(error) => return Err(error),
                }
            }
            if !guarded(server, connection, UPGRADE, &commands).await? {
                // Another broker has completed it.
                return Ok(());
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    remove_old_indexes(server, connection).await?;
    if sealing.is_first() && !seal_all(server, connection, sealing).await? {
        return Ok(());
    }
    let done = vec!["DEL".to_owned(), UPGRADING.to_owned()];
    guarded(server, connection, UPGRADE, &[done]).await.map(drop)
}

/// Returns the commands that upgrade a record; none if it is as it should be.
type Change = fn(String, String) -> Result<Vec<Command>, StoreError>;

fn request(field: String, text: String) -> Result<Vec<Command>, StoreError> {
    if parse_document("request", &text).is_ok() {
        return Ok(Vec::new());
    }
    let broken = || corrupt("request", message("its key is not as it was written"));
    let (principal, key) = field.split_once(' ').ok_or_else(broken)?;
    let principal: PrincipalKey = principal.parse().map_err(|source| corrupt("request", source))?;
    let grant: GrantId = text.parse().map_err(|source| corrupt("request", source))?;
    let (key, body) = (RequestKey::new(&principal, key).to_string(), to_body(&RequestRecord { grant })?);
    let mut commands = vec![command(["HSET", "requests", &key, &format!("1 {body}")])];
    if key != field {
        commands.push(command(["HDEL", "requests", &field]));
    }
    Ok(commands)
}

fn token(field: String, text: String) -> Result<Vec<Command>, StoreError> {
    let is_old = parse_document("join token", &text).is_err();
    Ok(is_old.then(|| command(["HSET", "tokens", &field, &format!("1 {text}")])).into_iter().collect())
}

fn grant(field: String, text: String) -> Result<Vec<Command>, StoreError> {
    let (_, body) = parse_document("grant", &text)?;
    Ok(index("grants", &field, &from_body::<Grant>("grant", without_seal(body))?.indexes()))
}

async fn remove_old_indexes<C: ConnectionLike + Send>(
    server: &Server,
    connection: &mut C,
) -> Result<(), StoreError> {
    for pattern in OLD_INDEXES {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(server.key(pattern)).arg("COUNT").arg(PAGE);
            let (next, keys): (String, Vec<String>) =
                scan.query_async(connection).await.map_err(redis_failed)?;
            if !keys.is_empty() {
                redis::cmd("UNLINK").arg(keys).query_async::<()>(connection).await.map_err(redis_failed)?;
            }
            cursor = next;
            if cursor == "0" {
                break;
            }
        }
    }
    Ok(())
}
