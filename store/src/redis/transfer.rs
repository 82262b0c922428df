//! Moving the store on Redis: its records and its audit log, without memberships, leases and statuses.
//!
//! A migration cannot lock the server. It reads the source as it is, and moves it only if the audit log ends where it ended
//! before the first read: every change has a line there.

use std::time::Duration;

use async_trait::async_trait;
use data_encoding::HEXLOWER;
use postern_core::audit::{AuditRecord, Head};
use redis::Script;
use redis::aio::MultiplexedConnection;

use super::connection::SharedConnection;
use super::error::{failed, message, redis_failed};
use super::keys::{SCHEMA, head_of, request_field, token_field};
use super::marks::{INCOMPLETE, MOVED, incomplete};
use super::server::Server;
use super::settings::RedisSettings;
use crate::bodies::{corrupt, from_body, to_body};
use crate::transfer::{Counts, Item, PAGE, Page, Source, Target};
use crate::{MigrationError, RecordKind, StoreError, TokenHash, Version};

/// The longest wait for the replicas' confirmation.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(3);
/// The number of such waits: replicas may have much to copy.
const CONFIRMATIONS: usize = 20;

/// A store on Redis, as the source or the target of a migration.
pub struct Transfer {
    server: Server,
    shared: SharedConnection,
    /// The connection for writes: WAIT counts the writes of its own connection.
    connection: MultiplexedConnection,
    /// The mark of this migration on its target.
    mark: String,
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transfer").field("prefix", &self.server.prefix).finish_non_exhaustive()
    }
}

fn key_of(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Audit => "audit",
        RecordKind::Grants => "grants",
        RecordKind::Requests => "requests",
        RecordKind::Policies => "policies",
        RecordKind::Agents => "agents",
        RecordKind::Tokens => "tokens",
    }
}

/// Reads a record from a field and a value of a hash.
fn item(kind: RecordKind, field: String, text: String) -> Result<Item, StoreError> {
    let broken = |what: &'static str| corrupt(what, message("its text is not as it was written"));
    let versioned = |what| {
        let parts =
            text.split_once(' ').and_then(|(version, body)| Some((version.parse::<Version>().ok()?, body)));
        let (version, body) = parts.ok_or_else(|| broken(what))?;
        Ok::<_, StoreError>((version, body.to_owned()))
    };
    Ok(match kind {
        RecordKind::Grants => {
            let (version, body) = versioned("grant")?;
            Item::Grant { grant: Box::new(from_body("grant", &body)?), version, body }
        }
        RecordKind::Policies => {
            let (version, body) = versioned("policy")?;
            Item::Policy { name: field, version, body: Some(body).filter(|body| !body.is_empty()) }
        }
        RecordKind::Agents => {
            let (version, body) = versioned("agent")?;
            Item::Agent { target: field, version, body }
        }
        RecordKind::Requests => {
            let (principal, key) = field.split_once(' ').ok_or_else(|| broken("request"))?;
            let principal = principal.parse().map_err(|source| corrupt("request", source))?;
            Item::Request { principal, key: key.to_owned(), grant: text }
        }
        RecordKind::Tokens => {
            let hash = HEXLOWER.decode(field.as_bytes()).ok().and_then(|hash| hash.try_into().ok());
            Item::Token { hash: TokenHash(hash.ok_or_else(|| broken("join token"))?), body: text }
        }
        RecordKind::Audit => return Err(broken("audit log")),
    })
}

/// Returns the commands that write a record as `commit.lua` does.
fn commands(item: Item) -> Vec<Vec<String>> {
    let command = |parts: &[&str]| parts.iter().map(|&part| part.to_owned()).collect::<Vec<_>>();
    let hash = |hash, field: &str, value: &str| vec![command(&["HSET", hash, field, value])];
    match item {
        Item::Audit { line, .. } => vec![command(&["RPUSH", "audit", &line])],
        Item::Grant { grant, version, body } => {
            let (id, open) = (grant.id.to_string(), !grant.state.is_final());
            let mut all = hash("grants", &id, &format!("{version} {body}"));
            let mut index = |name: &str| all.push(command(&["ZADD", name, "0", &id]));
            index("all");
            index(&format!("of:{}", grant.principal.name));
            if open {
                index("open");
            }
            for target in grant.targets() {
                index(&format!("on:{target}"));
                if open {
                    index(&format!("open:{target}"));
                }
            }
            all
        }
        Item::Request { principal, key, grant } => hash("requests", &request_field(&principal, &key), &grant),
        Item::Policy { name, version, body } => {
            hash("policies", &name, &format!("{version} {}", body.unwrap_or_default()))
        }
        Item::Agent { target, version, body } => hash("agents", &target, &format!("{version} {body}")),
        Item::Token { hash: token, body } => hash("tokens", &token_field(&token), &body),
    }
}

impl Transfer {
    /// Connects to a store, to move it or to move another store into it.
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or the store was written by a newer broker.
    pub async fn open(settings: &RedisSettings) -> Result<Self, StoreError> {
        let server = Server::new(settings);
        let (mut shared, connection) = (server.shared_connection().reading(), server.connect().await?);
        let mut get = redis::cmd("GET");
        let found: Option<u32> =
            get.arg(server.key("schema")).query_async(&mut shared).await.map_err(redis_failed)?;
        if let Some(found) = found.filter(|found| *found > SCHEMA) {
            return Err(StoreError::NewerSchema { found, known: SCHEMA });
        }
        Ok(Self { server, shared, connection, mark: String::new() })
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

    async fn run(&mut self, commands: &[Vec<String>]) -> Result<(), StoreError> {
        let script = Script::new(include_str!("import.lua"));
        let mut script = script.key(&self.server.prefix);
        script.arg(&self.mark).arg(to_body(&commands)?);
        if script.invoke_async(&mut self.connection).await.map_err(redis_failed)? {
            return Ok(());
        }
        Err(failed(message("another migration has taken this store over")))
    }

    async fn count(&mut self) -> Result<Counts, StoreError> {
        let mut counts = Counts::new();
        for kind in [
            RecordKind::Audit,
            RecordKind::Grants,
            RecordKind::Requests,
            RecordKind::Policies,
            RecordKind::Agents,
            RecordKind::Tokens,
        ] {
            let length = if kind == RecordKind::Audit { "LLEN" } else { "HLEN" };
            let mut length = redis::cmd(length);
            length.arg(self.server.key(key_of(kind)));
            counts.insert(kind, length.query_async(&mut self.shared).await.map_err(redis_failed)?);
        }
        Ok(counts)
    }

    /// Deletes what an earlier migration has left. The marks stay.
    async fn empty(&mut self) -> Result<(), StoreError> {
        let marks = [self.server.key(INCOMPLETE), self.server.key("schema")];
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
    async fn head(&mut self) -> Result<Head, StoreError> {
        head_of(&self.get("head").await?)
    }

    async fn counts(&mut self) -> Result<Counts, StoreError> {
        self.count().await
    }

    async fn page(&mut self, kind: RecordKind, from: Option<&str>) -> Result<Page, StoreError> {
        let from = from.unwrap_or("0");
        if kind == RecordKind::Audit {
            let first: u64 = from.parse().map_err(|source| corrupt("audit log", source))?;
            let mut range = redis::cmd("LRANGE");
            range.arg(self.server.key("audit")).arg(first).arg(first + PAGE as u64 - 1);
            let lines: Vec<String> = range.query_async(&mut self.shared).await.map_err(redis_failed)?;
            let next = (lines.len() == PAGE).then(|| (first + PAGE as u64).to_string());
            let items = (first + 1..).zip(lines).map(|(seq, line)| Item::Audit { seq, line }).collect();
            return Ok(Page { items, next });
        }
        let mut scan = redis::cmd("HSCAN");
        scan.arg(self.server.key(key_of(kind))).arg(from).arg("COUNT").arg(PAGE);
        let (next, pairs): (String, Vec<(String, String)>) =
            scan.query_async(&mut self.shared).await.map_err(redis_failed)?;
        let items =
            pairs.into_iter().map(|(field, text)| item(kind, field, text)).collect::<Result<_, _>>()?;
        Ok(Page { items, next: Some(next).filter(|next| next != "0") })
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
        self.run(&[vec!["SET".to_owned(), "schema".to_owned(), SCHEMA.to_string()]]).await
    }

    async fn put(&mut self, items: Vec<Item>) -> Result<(), StoreError> {
        let commands: Vec<Vec<String>> = items.into_iter().flat_map(commands).collect();
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
        let commands: [&[&str]; 4] =
            [&["RPUSH", "audit", &line], &["SET", "head", &head], &["DEL", MOVED], &["DEL", INCOMPLETE]];
        let commands: Vec<Vec<String>> =
            commands.iter().map(|command| command.iter().map(|&part| part.to_owned()).collect()).collect();
        self.run(&commands).await
    }
}
