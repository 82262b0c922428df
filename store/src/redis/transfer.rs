//! Moving the store on Redis: its records and its audit log, without memberships, leases and statuses.
//!
//! A migration cannot lock the server. It reads the source as it is, and moves it only if the audit log ends where it ended
//! before the first read: every change has a line there.

use async_trait::async_trait;
use postern_core::audit::{AuditRecord, Head};
use redis::Script;
use redis::aio::MultiplexedConnection;

use super::commands::{Command, command, guarded, index};
use super::confirmed::CONFIRM_TIMEOUT;
use super::connection::SharedConnection;
use super::error::{failed, message, redis_failed};
use super::keys::{SCHEMA, head_of, pairs, parse_document};
use super::marks::{self, INCOMPLETE, MOVED, incomplete};
use super::probe;
use super::sealing::{self, SEALED_MARK};
use super::server::Server;
use super::settings::RedisSettings;
use super::upgrade::upgrade;
use crate::body::corrupt;
use crate::error::{MigrationError, StoreError};
use crate::indexes::Indexes;
use crate::kind::{Part, is_kind_name};
use crate::seal::{Sealer, Sealing};
use crate::transfer::{Counts, Item, PAGE, Page, Source, Target};

/// The number of waits for the replicas' confirmation: they may have much to copy.
const CONFIRMATIONS: usize = 20;

/// A store on Redis, as the source or the target of a migration.
pub struct Transfer {
    server: Server,
    shared: SharedConnection,
    /// The connection for writes: WAIT counts the writes of its own connection.
    connection: MultiplexedConnection,
    /// The mark of this migration on its target.
    mark: String,
    sealer: Sealer,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").field("prefix", &self.server.prefix).finish_non_exhaustive()
    }
}

/// Returns the commands that write a record as `commit.lua` does.
fn commands(item: &Item) -> Vec<Command> {
    match item {
        Item::Audit { line, .. } => vec![command(["RPUSH", "audit", line])],
        Item::Document { kind, key, version, body, indexes } => {
            let text = format!("{version} {}", body.as_deref().unwrap_or_default());
            let mut all = vec![command(["HSET", kind, key, &text]), command(["SADD", "kinds", kind])];
            all.extend(index(kind, key, indexes));
            all
        }
    }
}

impl Transfer {
    /// Connects to a store, to move it or to move another store into it. A store of an older schema is upgraded.
    ///
    /// # Errors
    /// The server cannot be reached, refuses or lacks a command, or the store was written by a newer broker or sealed with another key.
    pub async fn open(settings: &RedisSettings, sealing: &Sealing) -> Result<Self, StoreError> {
        let server = Server::new(settings);
        probe::check(&server).await?;
        let (mut shared, connection) = (server.shared_connection().reading(), server.connect().await?);
        upgrade(&server, &mut shared, sealing).await?;
        sealing::check(&server, &mut shared, sealing).await?;
        let (mark, sealer) = (String::new(), sealing.sealer(&settings.tenant));
        Ok(Self { server, shared, connection, mark, sealer })
    }

    /// Connects to a store that is read while brokers may run on it. Nothing in it is changed: a store of an older schema is refused.
    ///
    /// # Errors
    /// As [`Self::open`], or the store has another schema, was moved or is incomplete.
    pub async fn read(settings: &RedisSettings, sealing: &Sealing) -> Result<Self, StoreError> {
        let server = Server::new(settings);
        let (mut shared, connection) = (server.shared_connection().reading(), server.connect().await?);
        marks::check(&server, &mut shared).await?;
        let mut get = redis::cmd("GET");
        let schema: Option<u32> =
            get.arg(server.key("schema")).query_async(&mut shared).await.map_err(redis_failed)?;
        match schema {
            Some(SCHEMA) => {}
            Some(found) if found > SCHEMA => {
                return Err(StoreError::NewerSchema { found, known: SCHEMA });
            }
            Some(_) => {
                return Err(failed(message(
                    "the store has an older schema; start a broker of this version on it first",
                )));
            }
            None => return Err(failed(message("there is no store of this tenant on the server"))),
        }
        sealing::check(&server, &mut shared, sealing).await?;
        let (mark, sealer) = (String::new(), sealing.sealer(&settings.tenant));
        Ok(Self { server, shared, connection, mark, sealer })
    }

    async fn get(&mut self, name: &str) -> Result<String, StoreError> {
        let mut get = redis::cmd("GET");
        let text: Option<String> =
            get.arg(self.server.key(name)).query_async(&mut self.shared).await.map_err(redis_failed)?;
        Ok(text.unwrap_or_default())
    }

    async fn mark(&mut self, what: &str, mark: &str, more: &str) -> Result<Vec<String>, StoreError> {
        let script = Script::new(include_str!("mark.lua"));
        let mut script = script.key(&self.server.prefix);
        script.arg(what).arg(mark).arg(more);
        script.invoke_async(&mut self.connection).await.map_err(redis_failed)
    }

    async fn run(&mut self, commands: &[Command]) -> Result<(), StoreError> {
        if guarded(&self.server, &mut self.connection, (INCOMPLETE, &self.mark), commands).await? {
            return Ok(());
        }
        Err(failed(message("another migration has taken this store over")))
    }

    async fn count(&mut self) -> Result<Counts, StoreError> {
        let mut members = redis::cmd("SMEMBERS");
        members.arg(self.server.key("kinds"));
        let kinds: Vec<Vec<u8>> = members.query_async(&mut self.shared).await.map_err(redis_failed)?;
        let kinds = kinds.into_iter().filter_map(|kind| String::from_utf8(kind).ok());
        let parts = kinds.filter(|kind| is_kind_name(kind)).map(Part::Records).chain([Part::Audit]);
        let mut counts = Counts::new();
        for part in parts {
            let (command, key) = match &part {
                Part::Audit => ("LLEN", "audit"),
                Part::Records(kind) => ("HLEN", kind.as_str()),
            };
            let mut length = redis::cmd(command);
            length.arg(self.server.key(key));
            let count: u64 = length.query_async(&mut self.shared).await.map_err(redis_failed)?;
            if count > 0 || part == Part::Audit {
                counts.insert(part, count);
            }
        }
        Ok(counts)
    }

    async fn lines(&mut self, from: &str) -> Result<Page, StoreError> {
        let first: u64 = from.parse().map_err(|source| corrupt("audit log", source))?;
        let mut range = redis::cmd("LRANGE");
        range.arg(self.server.key("audit")).arg(first).arg(first + PAGE as u64 - 1);
        let lines: Vec<String> = range.query_async(&mut self.shared).await.map_err(redis_failed)?;
        let next = (lines.len() == PAGE).then(|| (first + PAGE as u64).to_string());
        let base = self.server.base(&mut self.shared).await?.seq;
        let items = (base + first + 1..).zip(lines).map(|(seq, line)| Item::Audit { seq, line }).collect();
        Ok(Page { items, left_out: Vec::new(), next })
    }

    async fn documents(&mut self, kind: &str, from: &str) -> Result<Page, StoreError> {
        let mut scan = redis::cmd("HSCAN");
        scan.arg(self.server.key(kind)).arg(from).arg("COUNT").arg(PAGE);
        let (next, texts): (String, Vec<Vec<u8>>) =
            scan.query_async(&mut self.shared).await.map_err(redis_failed)?;
        let pairs: Vec<(Vec<u8>, Vec<u8>)> = pairs(texts).collect();
        let mut get = redis::cmd("HMGET");
        get.arg(self.server.key(&format!("indexed:{kind}")));
        get.arg(pairs.iter().map(|(key, _)| key).collect::<Vec<_>>());
        let indexes: Vec<Option<Vec<u8>>> = if pairs.is_empty() {
            Vec::new()
        } else {
            get.query_async(&mut self.shared).await.map_err(redis_failed)?
        };
        let (mut items, mut left_out) = (Vec::new(), Vec::new());
        for ((key, text), indexes) in pairs.into_iter().zip(indexes) {
            let (Ok(key), Some((version, body))) = (str::from_utf8(&key), parse_document(&text)) else {
                left_out.push(key);
                continue;
            };
            let body = Some(body.to_owned()).filter(|body| !body.is_empty());
            let indexes = String::from_utf8(indexes.unwrap_or_default()).unwrap_or_default();
            let (kind, key, indexes) = (kind.to_owned(), key.to_owned(), Indexes::from_text(indexes));
            items.push(Item::Document { kind, key, version, body, indexes });
        }
        Ok(Page { items, left_out, next: Some(next).filter(|next| next != "0") })
    }

    /// Deletes what an earlier migration has left. The marks stay.
    async fn empty(&mut self) -> Result<(), StoreError> {
        let marks = [INCOMPLETE, "schema", SEALED_MARK].map(|name| self.server.key(name));
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(self.server.key("*")).arg("COUNT").arg(PAGE);
            let (next, keys): (String, Vec<String>) =
                scan.query_async(&mut self.connection).await.map_err(redis_failed)?;
            let keys: Vec<String> = keys.into_iter().filter(|key| !marks.contains(key)).collect();
            if !keys.is_empty() {
                let mut unlink = redis::cmd("UNLINK");
                unlink.arg(keys).query_async::<()>(&mut self.connection).await.map_err(redis_failed)?;
            }
            cursor = next;
            if cursor == "0" {
                return Ok(());
            }
        }
    }
}

#[async_trait]
impl Source for Transfer {
    fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    async fn head(&mut self) -> Result<Head, StoreError> {
        head_of(&self.get("head").await?)
    }

    async fn base(&mut self) -> Result<Head, StoreError> {
        self.server.base(&mut self.shared).await
    }

    async fn counts(&mut self) -> Result<Counts, StoreError> {
        self.count().await
    }

    async fn page(&mut self, part: &Part, from: Option<&str>) -> Result<Page, StoreError> {
        let from = from.unwrap_or("0");
        match part {
            Part::Audit => self.lines(from).await,
            Part::Records(kind) => self.documents(kind, from).await,
        }
    }

    async fn mark_moved(&mut self, to: &str, head: &Head) -> Result<(), StoreError> {
        let head = self.server.text_of(head);
        let answer = self.mark(MOVED, to, &head).await?;
        if answer.first().map(String::as_str) == Some("ok") {
            Ok(())
        } else {
            Err(MigrationError::Changed.into())
        }
    }
}

#[async_trait]
impl Target for Transfer {
    fn sealer(&self) -> &Sealer {
        &self.sealer
    }

    async fn begin(&mut self, from: &str, overwrite: bool) -> Result<(), StoreError> {
        let mark = format!("{:032x} {from}", rand::random::<u128>());
        let answer = self.mark(INCOMPLETE, &mark, if overwrite { "overwrite" } else { "" }).await?;
        match answer.first().map(String::as_str) {
            Some("ok") => {}
            Some("replaced") => self.empty().await?,
            Some("incomplete") => return Err(incomplete(answer.get(1).map_or("", String::as_str))),
            Some(_) | None => return Err(MigrationError::NotEmpty.into()),
        }
        self.mark = mark;
        let (schema, key) = (SCHEMA.to_string(), self.sealer.key_id());
        self.run(&[command(["SET", "schema", &schema]), command(["SET", SEALED_MARK, &key])]).await
    }

    async fn set_base(&mut self, base: Head) -> Result<(), StoreError> {
        self.run(&[command(["SET", "base", &self.server.text_of(&base)])]).await
    }

    async fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        let commands: Vec<Command> = items.iter().flat_map(commands).collect();
        if commands.is_empty() { Ok(()) } else { self.run(&commands).await }
    }

    async fn arrived(&mut self) -> Result<Counts, StoreError> {
        self.count().await
    }

    async fn settle(&mut self) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for _ in 0..CONFIRMATIONS {
            outcome = self.server.confirm(&mut self.connection, CONFIRM_TIMEOUT).await;
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    async fn finish(&mut self, last: &AuditRecord) -> Result<(), StoreError> {
        let head = self.server.text_of(&last.head());
        let line = last.to_line();
        let commands = [
            command(["RPUSH", "audit", &line]),
            command(["SET", "head", &head]),
            command(["DEL", MOVED]),
            command(["DEL", INCOMPLETE]),
        ];
        self.run(&commands).await
    }
}
