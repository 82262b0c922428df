//! The upgrade of a store of an older schema, which survives a crash at any point.
//!
//! The first step is one script (`upgrade.lua`): it raises the schema, marks the store as being upgraded, and ends every
//! membership. From then on Redis refuses the commits of a broker of the older schema, and that broker refuses to join. Every
//! later step can be repeated, and is made only while the mark is there. A broker that finds the mark repeats the upgrade from
//! its first step, and joins the members once the mark is gone.
//!
//! Schema 3 kept records without seals: a data directory that has no key yet seals them as they are, once, and only it removes the mark
//! of such an upgrade. Every other one leaves them, and they are forged. So is a record that cannot be read: it keeps no broker from
//! starting. Schema 2 kept requests and join tokens without versions, and the indexes of grants under names of their own.

use postern_core::{Grant, GrantId, PrincipalKey};
use redis::Script;
use redis::aio::ConnectionLike;

use super::commands::{Command, PAGE, command, guarded, index};
use super::error::{failed, message, redis_failed};
use super::keys::{SCHEMA, pairs, parse_document};
use super::marks::{SEALS_ALL, UPGRADE, UPGRADING};
use super::sealing::{has_records, key_id, seal_all};
use super::server::Server;
use crate::body::{from_body, to_body};
use crate::error::StoreError;
use crate::record::Record as _;
use crate::records::request::{RequestKey, RequestRecord};
use crate::seal::{Sealing, without_seal};

/// The indexes of schema 2, as patterns.
const OLD_INDEXES: [&str; 5] = ["all", "open", "of:*", "on:*", "open:*"];

/// Upgrades a store, if it is of an older schema or if an upgrade of it was not completed.
///
/// # Errors
/// The store was written by a newer broker or sealed with another key, or another broker has to complete the upgrade.
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
    script.arg(if sealing.is_first() { SEALS_ALL } else { UPGRADE });
    let answer: String = script.invoke_async(connection).await.map_err(redis_failed)?;
    let mark = match answer.as_str() {
        "other" => return Err(StoreError::OtherKey),
        SEALS_ALL if !sealing.is_first() => {
            let what = "another broker seals the records of this store for the first time; let it start, and then this one";
            return Err(failed(message(what)));
        }
        mark => (UPGRADING, mark),
    };
    for (kind, change) in [("requests", request as Change), ("tokens", token), ("grants", grant)] {
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("HSCAN");
            scan.arg(server.key(kind)).arg(&cursor).arg("COUNT").arg(PAGE);
            let (next, texts): (String, Vec<Vec<u8>>) =
                scan.query_async(connection).await.map_err(redis_failed)?;
            let texts = pairs(texts).filter_map(|(field, text)| {
                Some((String::from_utf8(field).ok()?, String::from_utf8(text).ok()?))
            });
            // A record that cannot be read stays as it is, without a seal.
            let commands: Vec<Command> =
                texts.filter_map(|(field, text)| change(field, text)).flatten().collect();
            if !guarded(server, connection, mark, &commands).await? {
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
    if sealing.is_first() && !seal_all(server, connection, sealing, mark).await? {
        return Ok(());
    }
    let done = vec!["DEL".to_owned(), UPGRADING.to_owned()];
    guarded(server, connection, mark, &[done]).await.map(drop)
}

/// Returns the commands that upgrade a record, which are none if it is as it should be; or nothing if it cannot be read.
type Change = fn(String, String) -> Option<Vec<Command>>;

fn request(field: String, text: String) -> Option<Vec<Command>> {
    if parse_document(text.as_bytes()).is_some() {
        return Some(Vec::new());
    }
    let (principal, key) = field.split_once(' ')?;
    let principal: PrincipalKey = principal.parse().ok()?;
    let grant: GrantId = text.parse().ok()?;
    let (key, body) = (RequestKey::new(&principal, key).to_string(), to_body(&RequestRecord { grant }).ok()?);
    let mut commands = vec![command(["HSET", "requests", &key, &format!("1 {body}")])];
    if key != field {
        commands.push(command(["HDEL", "requests", &field]));
    }
    Some(commands)
}

fn token(field: String, text: String) -> Option<Vec<Command>> {
    let is_old = parse_document(text.as_bytes()).is_none();
    Some(is_old.then(|| command(["HSET", "tokens", &field, &format!("1 {text}")])).into_iter().collect())
}

fn grant(field: String, text: String) -> Option<Vec<Command>> {
    let (_, body) = parse_document(text.as_bytes())?;
    let grant: Grant = from_body("grant", without_seal(body)).ok()?;
    Some(index("grants", &field, &grant.indexes()))
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
