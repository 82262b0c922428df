//! The store on Redis (7.0 or later) or Valkey, for several brokers on several machines.
//!
//! Each broker is a member, and every write names its membership, so that the server refuses a broker whose membership has
//! ended, however late its write comes. No record has a time to live: a window never ends because a key expired.
//!
//! ```text
//! {postern:<tenant>}:schema            the version of these keys
//!                    head              the number of the last audit record, and its hash
//!                    audit             the records, one a line
//!                    grants, policies, agents      hashes: an id, and a version and a body
//!                    requests, tokens              hashes
//!                    moved, incomplete    marks of a store that was moved, or whose migration was not completed
//!                    all, open, of:<principal>, on:<target>, open:<target>      ids of grants, in order
//!                    alive:<membership>            exists while the membership lasts: a key with a time to live
//!                    members, jobs                 hashes: the members' descriptions, and the members that hold locks
//!                    leases, turns, views          hashes by target: lease, exclusive claim, and published status
//!                    held:<membership>             the targets of its leases
//!                    losses                        a hash: the number of a member's leases that others took
//!                    fence                         the newest lease's token
//!                    turn                          the membership that commits next; a key with a time to live
//!                    queue                         a sorted set: the memberships that wait to commit, by arrival
//!                    news                          a channel
//! ```

/// The text of a script that answers the head, with the function that does so before it.
macro_rules! script {
    ($file:literal) => {
        concat!(include_str!("known.lua"), include_str!($file))
    };
}

mod connection;
mod coordination;
mod discovery;
mod error;
mod keys;
mod marks;
mod membership;
mod rollback;
mod server;
mod settings;
#[cfg(test)]
mod tests;
mod transfer;
mod warnings;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use postern_core::audit::Head;
use postern_core::{Grant, GrantId, Name, Policy, TargetId};
use redis::Script;
use serde::de::DeserializeOwned;

use super::bodies::{corrupt, from_body};
use super::{
    AgentRecord, Durable, GrantQuery, Lease, Store, StoreError, TargetSnapshot, TokenHash, TokenRecord,
    Transaction, Versioned,
};
use connection::SharedConnection;
use error::{message, redis_failed};
use keys::{SCHEMA, request_field, token_field};
use membership::{Membership, Scripts, lost};
use rollback::HeadReply;
use server::Server;
pub use settings::{Endpoint, RedisSettings, Sentinels, TlsFiles};
pub use transfer::Transfer;
use writer::Writer;

/// The number of grants that are read at once.
const PAGE: usize = 500;

/// The store on Redis.
pub struct Redis {
    server: Server,
    reader: SharedConnection,
    writer: Writer,
    index_script: Script,
    membership: Arc<Membership>,
    scripts: Scripts,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("prefix", &self.server.prefix).finish_non_exhaustive()
    }
}

impl Redis {
    /// Opens the store, or makes it, and joins its members.
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or the store was written by a newer broker, was moved, or is incomplete.
    pub async fn open(settings: &RedisSettings) -> Result<Self, StoreError> {
        let server = Server::new(settings);
        let mut reader = server.shared_connection().reading();
        marks::check(&server, &mut reader).await?;
        let schema: (u32, u32) = redis::pipe()
            .cmd("SETNX")
            .arg(server.key("schema"))
            .arg(SCHEMA)
            .cmd("GET")
            .arg(server.key("schema"))
            .query_async(&mut reader)
            .await
            .map_err(redis_failed)?;
        if schema.1 > SCHEMA {
            return Err(StoreError::NewerSchema { found: schema.1, known: SCHEMA });
        }
        if schema.1 < SCHEMA {
            upgrade(&server, &mut reader).await?;
        }
        let membership = Arc::new(Membership::new());
        let writer = Writer::start(server.clone(), Arc::clone(&membership));
        let index_script = Script::new(script!("look.lua"));
        let store = Self { server, reader, writer, index_script, membership, scripts: Scripts::new() };
        store.join().await?;
        Ok(store)
    }

    /// Returns warnings about settings of the server that break the store's promises, each with the remedy.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn warnings(settings: &RedisSettings) -> Result<Vec<String>, StoreError> {
        warnings::warnings(&Server::new(settings)).await
    }

    async fn field(&self, hash: &str, field: &str) -> Result<Option<String>, StoreError> {
        let mut get = redis::cmd("HGET");
        get.arg(self.server.key(hash)).arg(field);
        get.query_async(&mut self.reader.clone()).await.map_err(redis_failed)
    }

    async fn one<T: DeserializeOwned>(
        &self,
        what: &str,
        hash: &str,
        field: &str,
    ) -> Result<Option<Versioned<T>>, StoreError> {
        self.field(hash, field).await?.map_or(Ok(None), |text| versioned(what, &text))
    }

    /// Reads a record, and waits until the replicas have it, or have that it is not there.
    async fn durable<T: DeserializeOwned>(
        &self,
        what: &str,
        hash: &str,
        field: &str,
    ) -> Result<Durable<Option<Versioned<T>>>, StoreError> {
        // At one instant: the log up to this head has every change of the record that was read.
        let (head, text) = self.server.head_and(&mut self.reader.clone(), Some((hash, field))).await?;
        self.writer.confirmed(head).await?;
        Ok(Durable::new(text.map_or(Ok(None), |text| versioned(what, &text))?))
    }

    async fn every<T: DeserializeOwned>(
        &self,
        what: &str,
        hash: &str,
    ) -> Result<Vec<Versioned<T>>, StoreError> {
        let mut get = redis::cmd("HGETALL");
        get.arg(self.server.key(hash));
        let pairs: Vec<String> = get.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        bodies(&pairs).filter_map(|text| versioned(what, text).transpose()).collect()
    }

    /// Reads the grants of an index, and the head and the policies at that instant.
    async fn read_index(&self, query: IndexQuery<'_>) -> Result<IndexRead, StoreError> {
        let mut script = self.index_script.key(&self.server.prefix);
        script.arg(query.index).arg(query.end).arg(if query.newest_first { "-" } else { "+" });
        script.arg(if query.limit == usize::MAX {
            -1
        } else {
            i64::try_from(query.limit).unwrap_or(i64::MAX)
        });
        script.arg(if query.policies { "policies" } else { "" });
        if let Some(lease) = query.lease {
            script.arg(self.membership.id()).arg(lease.target.to_string()).arg(lease.token);
        }
        let mut reader = self.reader.clone();
        let command = |known| async move {
            script.arg(self.server.text_of(&known));
            let answer: (String, Vec<String>, Vec<String>) =
                script.invoke_async(&mut reader).await.map_err(redis_failed)?;
            let (head, grants, policies) = answer;
            if let Some(lease) = query.lease.filter(|_| head == "lost") {
                return Err(lost(&lease.target.to_string()));
            }
            Ok((HeadReply::parse(&head)?, grants, policies))
        };
        let (reply, grants, policies) =
            self.server.guard.ask(command, |(reply, ..)| Ok(Some(*reply))).await?;
        let head = reply.head;
        let missing = || corrupt("index of grants", message("a grant in it is not there"));
        let grants: Vec<Versioned<Grant>> = bodies(&grants)
            .map(|text| versioned("grant", text)?.ok_or_else(missing))
            .collect::<Result<_, StoreError>>()?;
        let policies: Vec<Versioned<Policy>> = bodies(&policies)
            .filter_map(|text| versioned("policy", text).transpose())
            .collect::<Result<_, _>>()?;
        Ok(IndexRead { head, grants, policies })
    }
}

/// Upgrades a store that one broker had for itself. The server refuses that broker from now on: it names a writer, and there
/// is none.
async fn upgrade(server: &Server, connection: &mut SharedConnection) -> Result<(), StoreError> {
    let mut pipe = redis::pipe();
    pipe.atomic().del(server.key("writer")).ignore().set(server.key("schema"), SCHEMA).ignore();
    pipe.query_async(connection).await.map_err(redis_failed)
}

/// A query of an index of grants.
struct IndexQuery<'a> {
    index: &'a str,
    end: &'a str,
    newest_first: bool,
    limit: usize,
    policies: bool,
    /// The lease that the read needs, if any.
    lease: Option<&'a Lease>,
}

/// The result of a query.
struct IndexRead {
    head: Head,
    grants: Vec<Versioned<Grant>>,
    policies: Vec<Versioned<Policy>>,
}

/// Returns the values of alternating fields and values.
fn bodies(pairs: &[String]) -> impl Iterator<Item = &String> {
    pairs.iter().skip(1).step_by(2)
}

/// Reads a record with its version; none for a deleted one.
fn versioned<T: DeserializeOwned>(what: &str, text: &str) -> Result<Option<Versioned<T>>, StoreError> {
    let parts = text.split_once(' ').and_then(|(version, body)| Some((version.parse().ok()?, body)));
    let (version, body) = parts.ok_or_else(|| corrupt(what, message("it has no version")))?;
    if body.is_empty() {
        return Ok(None);
    }
    Ok(Some(Versioned { record: from_body(what, body)?, version }))
}

#[async_trait]
impl Store for Redis {
    async fn commit(&self, transaction: Transaction) -> Result<Head, StoreError> {
        self.writer.commit(transaction).await
    }

    async fn grant(&self, id: GrantId) -> Result<Option<Versioned<Grant>>, StoreError> {
        self.one("grant", "grants", &id.to_string()).await
    }

    async fn durable_grant(&self, id: GrantId) -> Result<Durable<Option<Versioned<Grant>>>, StoreError> {
        self.durable("grant", "grants", &id.to_string()).await
    }

    async fn grants(&self, query: GrantQuery) -> Result<Vec<Versioned<Grant>>, StoreError> {
        let index = match (&query.target, &query.principal) {
            (Some(target), _) => format!("on:{target}"),
            (None, Some(principal)) => format!("of:{principal}"),
            (None, None) => "all".to_owned(),
        };
        let wanted = |grant: &Grant| {
            query.principal.as_ref().is_none_or(|name| grant.principal.name == *name)
                && (query.states.is_empty() || query.states.contains(&grant.state.word()))
        };
        let (mut found, mut before) = (Vec::new(), query.before);
        while found.len() < query.limit {
            let end = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
            let page = IndexQuery {
                index: &index,
                end: &end,
                newest_first: true,
                limit: PAGE,
                policies: false,
                lease: None,
            };
            let page = self.read_index(page).await?.grants;
            let is_last = page.len() < PAGE;
            before = page.last().map(|grant| grant.record.id);
            found.extend(page.into_iter().filter(|grant| wanted(&grant.record)));
            if is_last {
                break;
            }
        }
        found.truncate(query.limit);
        Ok(found)
    }

    async fn open_grants(&self) -> Result<Vec<Versioned<Grant>>, StoreError> {
        let query = IndexQuery {
            index: "open",
            end: "+",
            newest_first: false,
            limit: usize::MAX,
            policies: false,
            lease: None,
        };
        Ok(self.read_index(query).await?.grants)
    }

    async fn grant_of_request(&self, principal: &Name, key: &str) -> Result<Option<GrantId>, StoreError> {
        let id = self.field("requests", &request_field(principal, key)).await?;
        id.map(|id| id.parse().map_err(|source| corrupt("grant id", source))).transpose()
    }

    async fn snapshot(&self, lease: &Lease) -> Result<TargetSnapshot, StoreError> {
        let target = &lease.target;
        let (index, limit) = (format!("open:{target}"), usize::MAX);
        let query = IndexQuery {
            index: &index,
            end: "+",
            newest_first: false,
            limit,
            policies: true,
            lease: Some(lease),
        };
        let IndexRead { head, grants, policies } = self.read_index(query).await?;
        // Another broker's commit shows before its replicas have it: no window opens on a record that may be lost (I4).
        self.writer.confirmed(head).await?;
        let mut policies: Vec<Policy> =
            policies.into_iter().map(|policy| policy.record).filter(|policy| policy.covers(target)).collect();
        policies.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(TargetSnapshot { grants, policies, seq: head.seq })
    }

    async fn policies(&self) -> Result<Vec<Versioned<Policy>>, StoreError> {
        let mut policies: Vec<Versioned<Policy>> = self.every("policy", "policies").await?;
        policies.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        Ok(policies)
    }

    async fn policy(&self, name: &Name) -> Result<Option<Versioned<Policy>>, StoreError> {
        self.one("policy", "policies", name.as_str()).await
    }

    async fn durable_policy(&self, name: &Name) -> Result<Durable<Option<Versioned<Policy>>>, StoreError> {
        self.durable("policy", "policies", name.as_str()).await
    }

    async fn agents(&self) -> Result<Vec<Versioned<AgentRecord>>, StoreError> {
        let mut agents: Vec<Versioned<AgentRecord>> = self.every("agent", "agents").await?;
        agents.sort_by(|a, b| a.record.target.cmp(&b.record.target));
        Ok(agents)
    }

    async fn agent(&self, target: &TargetId) -> Result<Option<Versioned<AgentRecord>>, StoreError> {
        self.one("agent", "agents", &target.to_string()).await
    }

    async fn token(&self, hash: &TokenHash) -> Result<Option<TokenRecord>, StoreError> {
        let body = self.field("tokens", &token_field(hash)).await?;
        body.map(|body| from_body("join token", &body)).transpose()
    }

    async fn audit_lines(&self, after: u64, limit: usize) -> Result<Vec<(u64, String)>, StoreError> {
        let (Ok(from), Some(count)) = (i64::try_from(after), i64::try_from(limit).ok().or(Some(i64::MAX)))
        else {
            return Ok(Vec::new());
        };
        if count == 0 {
            return Ok(Vec::new());
        }
        let to = from.saturating_add(count - 1);
        let mut range = redis::cmd("LRANGE");
        range.arg(self.server.key("audit")).arg(from).arg(to);
        let lines: Vec<String> = range.query_async(&mut self.reader.clone()).await.map_err(redis_failed)?;
        Ok((after.saturating_add(1)..).zip(lines).collect())
    }

    async fn audit_head(&self) -> Result<Head, StoreError> {
        self.server.head(&mut self.reader.clone()).await
    }

    async fn lost(&self) -> String {
        self.server.guard.lost().await
    }

    async fn ended(&self) -> String {
        self.writer.ended().await;
        "the task that commits to the store has ended".to_owned()
    }
}
